"""The transformer over all maps at once, packed side by side: one kernel launch where there would be one per map."""

from collections.abc import Sequence
from functools import partial
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from sotr.acceleration.cuda.packed_maps import Packing, packing_of
from sotr.network.attention import AttentionKernel, ColumnAttention, RowAttention, TwinAttention
from sotr.network.transformer import ConvolutionBlock, HybridTwinLayer, PureTwinLayer, Transformer


class PackedTransformer(nn.Module):
    """Equal to a transformer of twin layers, to rounding, for inference.

    Args:
        transformer: whose parameters are shared.

    Raises:
        TypeError: a layer is of another type than the paper's twin layers.
    """

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        if type(transformer) is not Transformer:
            raise TypeError(f"{type(transformer).__name__} is not the paper's transformer")
        for layer in transformer.layers:
            exact = type(layer) in (PureTwinLayer, HybridTwinLayer)
            parts = (TwinAttention, ColumnAttention, RowAttention, ConvolutionBlock)
            if not exact or any(isinstance(part, parts) and type(part) not in parts for part in layer.modules()):
                raise TypeError(f"{type(layer).__name__} is no twin layer of the paper's")
        self.transformer = transformer

    def forward(self, maps_BCNN: Sequence[Tensor]) -> list[Tensor]:
        """See `Transformer.forward`."""
        maps_BNNC = [self.transformer.position(x_BCNN.permute(0, 2, 3, 1)) for x_BCNN in maps_BCNN]
        packing = packing_of(maps_BNNC)
        x_BRLC = packing.join(maps_BNNC)
        for layer in self.transformer.layers:
            x_BRLC = _layer(cast(PureTwinLayer, layer), x_BRLC, packing)
        return [x_BNNC.permute(0, 3, 1, 2) for x_BNNC in packing.split(self.transformer.norm(x_BRLC))]


def _layer(layer: PureTwinLayer, x_BRLC: Tensor, packing: Packing) -> Tensor:
    attention = cast(TwinAttention, layer.attention)
    mixed_BRLC = attention.column(layer.attention_norm(x_BRLC), _masked(packing.columns_S1RR))
    x_BRLC = x_BRLC + attention.row(mixed_BRLC, _masked(packing.rows_S1LL))
    if isinstance(layer, HybridTwinLayer):
        x_BRLC = x_BRLC + _convolve(layer.convolution, x_BRLC, packing.inside_RL1)
    return x_BRLC + layer.mlp(layer.mlp_norm(x_BRLC))


def _masked(mask_S1LL: Tensor) -> AttentionKernel:
    """Attention in which only cells of one map see one another."""
    return partial(F.scaled_dot_product_attention, attn_mask=mask_S1LL)


def _convolve(block: ConvolutionBlock, x_BRLC: Tensor, inside_RL1: Tensor) -> Tensor:
    """The block, with zeros between the maps before each convolution, as there are beyond a map's edge."""
    inside = inside_RL1.permute(2, 0, 1).to(x_BRLC.dtype)
    x_BCRL = block.activation(block.conv1(x_BRLC.permute(0, 3, 1, 2) * inside))
    return cast(Tensor, block.conv2(x_BCRL * inside)).permute(0, 2, 3, 1)
