"""Where a cell looks: attention weights, computed anew from what the attention modules were given.

The network itself uses fused attention, which never has the weights at hand, and knows nothing of this.
"""

import math
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sotr.network import SOTR
from sotr.network.attention import ColumnAttention, FullAttention, RowAttention, TwinAttention
from sotr.released.network import ReleasedLayer


@torch.no_grad()
def attention_inputs(network: SOTR, images_13HW: Tensor, level: int) -> list[Tensor]:
    """What the attention of each transformer layer is given for one level of one image.

    Args:
        level: 0 for P2 to 4 for P6.

    Returns:
        (1, rows, columns, C) for each layer; where a released network duplicates the width, with twice the columns.
    """
    patches = network.patches(network.fpn(network.backbone(images_13HW)))[level]
    grid = network.config.grids[level]
    inputs: list[Tensor] = []
    hooks = []
    for layer in transformer_layers(network):
        if isinstance(layer, ReleasedLayer):
            hooks.append(layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])))
        else:
            norm = cast(nn.LayerNorm, layer.attention_norm)
            hooks.append(norm.register_forward_hook(lambda _, __, output: inputs.append(output)))
    try:
        network.transformer([patches])
    finally:
        for hook in hooks:
            hook.remove()
    return [x.view(1, grid, -1, network.config.width) for x in inputs]


def transformer_layers(network: SOTR) -> list[nn.Module]:
    """The layers, none if the network has no transformer."""
    return list(cast(nn.ModuleList, getattr(network.transformer, "layers", ())))


def attention_weights(attention: FullAttention, x_BNNC: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) of a module's input, head by head.

    Returns:
        (S, heads, L, L), each row summing to 1: for each sequence that `attention` makes of the map, the weight of each
        of its cells (last) in each of its cells (third).
    """
    if isinstance(attention, ColumnAttention):
        x_BNNC = x_BNNC.transpose(1, 2)
    x_SLC = x_BNNC.flatten(0, 1) if isinstance(attention, RowAttention) else x_BNNC.flatten(1, 2)
    S, L, C = x_SLC.shape
    qkv = attention.to_qkv(x_SLC).view(S, L, 3, attention.heads, C // attention.heads)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4)
    return (query @ key.transpose(-2, -1) / math.sqrt(C // attention.heads)).softmax(-1)


class CellAttention(NamedTuple):
    """The attention of one cell in one layer: what is computed for it, head by head, and what it comes to."""

    full: Tensor | None
    """(heads, rows, columns) of full attention."""
    row: Tensor | None
    """(heads, columns): what the cell takes from the cells of its row."""
    column: Tensor | None
    """Of twin attention (heads, columns, rows): what each cell of its row has taken from its own column before. Of a
    released layer (heads, rows): what the cell takes from its column."""
    total: Tensor
    """(rows, columns), the mean over the heads, which sums to 1."""

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """What there is, by name."""
        return {name: x.float().cpu().numpy() for name, x in self._asdict().items() if x is not None}


@torch.no_grad()
def attention_of_cell(layer: nn.Module, x_1NNC: Tensor, row: int, column: int) -> CellAttention:
    """How much each cell of a map counts in the attention of one of its cells, in one layer.

    Twin attention is composed: the row attention of the cell weighs the cells of its row, each of which has gathered
    its own column before. In a released layer, whose two attentions stand side by side, the two are averaged.

    Args:
        layer: of the network's transformer.
        x_1NNC: what its attention is given, from `attention_inputs`.
        row, column: the cell that looks.
    """
    attention = layer if isinstance(layer, ReleasedLayer) else layer.attention
    if isinstance(attention, FullAttention):
        columns = x_1NNC.shape[2]
        full = attention_weights(attention, x_1NNC)[0, :, row * columns + column].unflatten(-1, (-1, columns))
        return CellAttention(full, None, None, full.mean(0))
    assert isinstance(attention, TwinAttention | ReleasedLayer)
    of_columns = attention_weights(attention.column, x_1NNC)  # (columns, heads, rows, rows)
    if isinstance(attention, TwinAttention):
        of_row = attention_weights(attention.row, attention.column(x_1NNC))[row, :, column]
        of_column = of_columns[:, :, row].transpose(0, 1)
        return CellAttention(None, of_row, of_column, of_row.mean(0) * of_column.mean(0).T)
    of_row, of_column = attention_weights(attention.row, x_1NNC)[row, :, column], of_columns[column, :, row]
    total = torch.zeros_like(x_1NNC[0, :, :, 0])
    total[row] += of_row.mean(0) / 2
    total[:, column] += of_column.mean(0) / 2
    return CellAttention(None, of_row, of_column, total)
