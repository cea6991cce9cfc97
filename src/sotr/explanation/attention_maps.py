"""Where a cell looks: attention weights, computed anew from what the attention modules were given.

The network itself uses fused attention, which never has the weights at hand, and knows nothing of this.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sotr.network import SOTR
from sotr.network.attention import ColumnAttention, FullAttention, RowAttention, TwinAttention
from sotr.network.released import ReleasedLayer

Inputs = Mapping[nn.Module, list[Tensor]]
"""Attention module -> what it was given, call by call: the levels P2..P6 first, in order."""


@contextmanager
def recorded_inputs(network: SOTR) -> Iterator[Inputs]:
    """Keep the inputs of all attention modules while the block runs."""
    inputs: dict[nn.Module, list[Tensor]] = {}
    hooks = []
    for module in network.transformer.modules():
        if isinstance(module, FullAttention):
            calls = inputs.setdefault(module, [])
            hooks.append(
                module.register_forward_pre_hook(lambda _, given, calls=calls: calls.append(given[0].detach()))
            )
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def attention_weights(attention: FullAttention, x_BNNC: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) of a module's input, averaged over the heads.

    Returns:
        (S, L, L), each row summing to 1: for each sequence that `attention` makes of the map, the weight of each of its
        cells (last) in each of its cells (middle).
    """
    if isinstance(attention, ColumnAttention):
        x_BNNC = x_BNNC.transpose(1, 2)
    x_SLC = x_BNNC.flatten(0, 1) if isinstance(attention, RowAttention) else x_BNNC.flatten(1, 2)
    S, L, C = x_SLC.shape
    qkv = attention.to_qkv(x_SLC).view(S, L, 3, attention.heads, C // attention.heads)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-2, -1) / math.sqrt(C // attention.heads)).softmax(-1)
    return weights.mean(1)


@torch.no_grad()
def attention_of_cell(layer: nn.Module, inputs: Inputs, level: int, row: int, column: int) -> Tensor:
    """How much each cell of a level counts in the attention of one cell, in one layer.

    Twin attention is composed: the row attention of the cell weighs the cells of its row, each of which has gathered
    its own column before. In a released layer, whose two attentions stand side by side, the two are averaged.

    Args:
        layer: of the network's transformer.
        inputs: recorded in a forward pass of one picture.
        level: 0 for P2 to 4 for P6.
        row, column: the cell that looks.

    Returns:
        (rows, columns) weights that sum to 1.
    """
    attention = layer if isinstance(layer, ReleasedLayer) else layer.attention
    if isinstance(attention, FullAttention):
        x_BNNC = inputs[attention][level]
        columns = x_BNNC.shape[2]
        return attention_weights(attention, x_BNNC)[0, row * columns + column].view(-1, columns)
    assert isinstance(attention, TwinAttention | ReleasedLayer)
    of_columns = attention_weights(attention.column, inputs[attention.column][level])  # (columns, rows, rows)
    of_rows = attention_weights(attention.row, inputs[attention.row][level])  # (rows, columns, columns)
    if isinstance(attention, TwinAttention):
        return of_rows[row, column] * of_columns[:, row].T
    weights = torch.zeros(of_rows.shape[:2])
    weights[row] += of_rows[row, column] / 2
    weights[:, column] += of_columns[column, row] / 2
    return weights
