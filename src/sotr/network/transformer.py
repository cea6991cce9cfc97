"""The transformer of Figure 2 with the three layers of Figure 3.

A layer takes one map, or several at once: their cells one after the other, (T, C) tokens. What looks at a cell alone
(norms, projections, MLP) then runs once over all tokens, and only attention and convolutions map by map.
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sotr.config import SOTRConfig
from sotr.network.attention import FullAttention, PositionEmbedding, TwinAttention

Shape = tuple[int, int, int]
"""B, rows and columns of a map."""


class MLP(nn.Sequential):
    """Linear, GELU, linear on the channels of each cell."""

    def __init__(self, width: int, ratio: float) -> None:
        hidden = round(width * ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class ConvolutionBlock(nn.Module):
    """Two 3x3 convolutions joined by a Leaky ReLU, the local complement of twin attention (section 3.1)."""

    def __init__(self, width: int, convolution: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.conv1 = convolution(width, width, 3, padding=1)
        self.activation = nn.LeakyReLU()
        self.conv2 = convolution(width, width, 3, padding=1)
        # The branch has no normalisation of its own: starting it at zero keeps a deep stack's signal at its scale.
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_BNNC: Tensor) -> Tensor:
        """(B, rows, columns, C) -> the same shape."""
        x_BCNN = x_BNNC.permute(0, 3, 1, 2)  # a view, in channels_last memory
        return self.conv2(self.activation(self.conv1(x_BCNN))).permute(0, 2, 3, 1)


class OriginalLayer(nn.Module):
    """Figure 3 (a): full self-attention and MLP, each after a layer norm and within a residual connection."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = self.make_attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)

    def make_attention(self, width: int, heads: int) -> FullAttention | TwinAttention:
        return FullAttention(width, heads)

    def forward(self, x_BNNC: Tensor) -> Tensor:
        """(B, rows, columns, C) -> the same shape."""
        return self.together(join([x_BNNC]), [map_shape(x_BNNC)]).view(x_BNNC.shape)

    def together(self, x_TC: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """The cells of maps of these shapes, (T, C) -> the same shape."""
        x_TC = x_TC + self.attend(self.attention_norm(x_TC), shapes)
        return x_TC + self.mlp(self.mlp_norm(x_TC))

    def attend(self, x_TC: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """What attention makes of the cells of each map."""
        for attention in self.attention.parts():
            mixed_TC = each_map(attention.mix, attention.to_qkv(x_TC), shapes)
            x_TC = attention.to_out(mixed_TC)
        return x_TC


class PureTwinLayer(OriginalLayer):
    """Figure 3 (b): the original layer with twin attention."""

    def make_attention(self, width: int, heads: int) -> FullAttention | TwinAttention:
        return TwinAttention(width, heads)


class HybridTwinLayer(PureTwinLayer):
    """Figure 3 (c): the pure twin layer with two residual convolutions after its attention."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__(width, heads, mlp_ratio)
        self.convolution = ConvolutionBlock(width)

    def together(self, x_TC: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """The cells of maps of these shapes, (T, C) -> the same shape."""
        x_TC = x_TC + self.attend(self.attention_norm(x_TC), shapes)
        x_TC = x_TC + each_map(self.convolution, x_TC, shapes)
        return x_TC + self.mlp(self.mlp_norm(x_TC))


LAYERS: dict[str, type[OriginalLayer]] = {
    "original": OriginalLayer,
    "pure_twin": PureTwinLayer,
    "hybrid_twin": HybridTwinLayer,
}
"""The layers of Figure 3, as `SOTRConfig.transformer` names them."""


class Transformer(nn.Module):
    """Position embedding, layers, one final layer norm; shared by all levels, for maps of any size."""

    def __init__(self, config: SOTRConfig) -> None:
        super().__init__()
        self.position = PositionEmbedding(max(config.grids), config.width)
        layer = LAYERS[config.transformer]
        self.layers = nn.ModuleList(layer(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x_BCNN: Tensor) -> Tensor:
        """(B, C, rows, columns) -> the same shape."""
        return self.together([x_BCNN])[0]

    def together(self, maps_BCNN: Sequence[Tensor]) -> list[Tensor]:
        """Several maps, which do not see one another, through each layer at once."""
        maps_BNNC = [self.position(x_BCNN.permute(0, 2, 3, 1)) for x_BCNN in maps_BCNN]
        shapes = [map_shape(x_BNNC) for x_BNNC in maps_BNNC]
        x_TC = join(maps_BNNC)
        for layer in self.layers:
            x_TC = cast(OriginalLayer, layer).together(x_TC, shapes)
        return [x_BNNC.permute(0, 3, 1, 2) for x_BNNC in split(self.norm(x_TC), shapes)]


def map_shape(x_BNNC: Tensor) -> Shape:
    """B, rows and columns."""
    batch, rows, columns, _ = x_BNNC.shape
    return batch, rows, columns


def join(maps_BNNC: Sequence[Tensor]) -> Tensor:
    """The cells of all maps one after the other, (T, C); of a single map without a copy, if it is contiguous."""
    tokens = [x_BNNC.flatten(0, 2) for x_BNNC in maps_BNNC]
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens)


def split(x_TC: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """The maps (B, rows, columns, C) of these shapes, as views of their joint cells."""
    parts = x_TC.split([math.prod(shape) for shape in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def each_map(function: Callable[[Tensor], Tensor], x_TC: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """The function of each map (B, rows, columns, C) -> joint cells again."""
    return join([function(x_BNNC) for x_BNNC in split(x_TC, shapes)])
