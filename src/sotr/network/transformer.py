"""The transformer of Figure 2 with the three layers of Figure 3."""

from collections.abc import Sequence

from torch import Tensor, nn

from sotr.config import TRANSFORMERS, SOTRConfig, SOTRError
from sotr.network.attention import FullAttention, PositionEmbedding, TwinAttention


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
        self.activation = nn.LeakyReLU(inplace=True)  # its gradient needs only its output, which conv2 keeps anyway
        self.conv2 = convolution(width, width, 3, padding=1)
        # The branch has no normalization of its own: starting it at zero keeps a deep stack's signal at its scale.
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_BNNC: Tensor) -> Tensor:
        """(B, rows, columns, C) -> the same shape."""
        x_BCNN = x_BNNC.permute(0, 3, 1, 2)  # a view: channels_last memory
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
        x_BNNC = x_BNNC + self.attention(self.attention_norm(x_BNNC))
        return x_BNNC + self.mlp(self.mlp_norm(x_BNNC))


class PureTwinLayer(OriginalLayer):
    """Figure 3 (b): the original layer with twin attention."""

    def make_attention(self, width: int, heads: int) -> FullAttention | TwinAttention:
        return TwinAttention(width, heads)


class HybridTwinLayer(PureTwinLayer):
    """Figure 3 (c): the pure twin layer with two residual convolutions after its attention."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__(width, heads, mlp_ratio)
        self.convolution = ConvolutionBlock(width)

    def forward(self, x_BNNC: Tensor) -> Tensor:
        """(B, rows, columns, C) -> the same shape."""
        x_BNNC = x_BNNC + self.attention(self.attention_norm(x_BNNC))
        x_BNNC = x_BNNC + self.convolution(x_BNNC)
        return x_BNNC + self.mlp(self.mlp_norm(x_BNNC))


LAYERS: dict[str, type[OriginalLayer]] = {
    "original": OriginalLayer,
    "pure_twin": PureTwinLayer,
    "hybrid_twin": HybridTwinLayer,
}
"""The layers of Figure 3, as `SOTRConfig.transformer` names them."""


def add_layer(name: str, layer: type[OriginalLayer]) -> None:
    """Make a layer of one's own a value of `SOTRConfig.transformer`, before a model that has it is built or loaded.

    Args:
        name: what model folders will call it.
        layer: its `forward` takes (B, rows, columns, C) and returns the same shape.

    Raises:
        SOTRError: the paper has this name.
    """
    if name in ("original", "pure_twin", "hybrid_twin", "none"):
        raise SOTRError(f"{name!r} is the paper's; give your layer another name")
    LAYERS[name] = layer
    if name not in TRANSFORMERS:
        TRANSFORMERS.append(name)


class Transformer(nn.Module):
    """Position embedding, layers, one final layer norm; shared by all levels, for maps of any size."""

    def __init__(self, config: SOTRConfig) -> None:
        super().__init__()
        self.position = PositionEmbedding(max(config.grids), config.width)
        layer = LAYERS[config.transformer]
        self.layers = nn.ModuleList(layer(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, maps_BCNN: Sequence[Tensor]) -> list[Tensor]:
        """Maps of (B, C, rows, columns), which do not see one another -> maps of the same shapes."""
        return [self.encode(x_BCNN) for x_BCNN in maps_BCNN]

    def encode(self, x_BCNN: Tensor) -> Tensor:
        """One map, (B, C, rows, columns) -> the same shape."""
        x_BNNC = self.position(x_BCNN.permute(0, 2, 3, 1)).contiguous()
        for layer in self.layers:
            x_BNNC = layer(x_BNNC)
        return self.norm(x_BNNC).permute(0, 3, 1, 2)
