"""The transformer for inference on CPUs: the maps of a picture go through its layers side by side."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from sotr.network.transformer import HybridTwinLayer, Transformer
from sotr.network.winograd import WinogradConv


class TransformerInStep(nn.Module):
    """Every layer takes all maps, one by one, before the next layer does; its convolutions take them at once.

    They do not lie on one sheet as in `Transformer.together`: what an MLP makes of one map stays in the cache.

    Args:
        transformer: of hybrid twin layers with `WinogradConv`.
    """

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_BCNN: Tensor) -> Tensor:
        """(B, C, rows, columns) -> the same shape."""
        return self.transformer(x_BCNN)

    def together(self, maps_BCNN: Sequence[Tensor]) -> list[Tensor]:
        """Several maps, which do not see one another."""
        maps_BNNC = [self.transformer.position(x_BCNN.permute(0, 2, 3, 1)).contiguous() for x_BCNN in maps_BCNN]
        for layer in cast(Sequence[HybridTwinLayer], self.transformer.layers):
            for x_BNNC in maps_BNNC:
                x_BNNC += layer.attention(layer.attention_norm(x_BNNC))
            maps_BCNN = [x_BNNC.permute(0, 3, 1, 2) for x_BNNC in maps_BNNC]
            for conv in (layer.convolution.conv1, layer.convolution.conv2):
                maps_BCNN = cast(WinogradConv, conv).together(maps_BCNN)
            for x_BNNC, y_BCNN in zip(maps_BNNC, maps_BCNN, strict=True):
                x_BNNC += y_BCNN.permute(0, 2, 3, 1)
                x_BNNC += layer.mlp(layer.mlp_norm(x_BNNC))
        return [self.transformer.norm(x_BNNC).permute(0, 3, 1, 2) for x_BNNC in maps_BNNC]
