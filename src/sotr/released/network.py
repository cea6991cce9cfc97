"""The network behind the checkpoints that the paper's authors released.

It departs from the paper's text: no position embedding, layer norm or MLP; column and row attention side by side
rather than in sequence, and two convolution branches side by side, each scaled by a learned gain; P2 and P6 resized
before they are cut into patches; and every map concatenated with itself along the width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from sotr.config import SOTRConfig, SOTRError
from sotr.network.attention import ColumnAttention, RowAttention
from sotr.network.deformable import DeformableConv
from sotr.network.sotr import SOTR
from sotr.network.transformer import ConvolutionBlock


class WrappedConv(nn.Conv2d):
    """A 3x3 convolution that sees half the opposite column beyond the left and the right edge, and zeros above and
    below.

    Beside its own copy a map's outer column meets the copy's on one side of the seam and zeros at the other end; the
    mean of the two halves is what one linear convolution with this padding gives.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h, w)."""
        padded = torch.cat([x[..., -1:] / 2, x, x[..., :1] / 2], -1)
        return F.conv2d(padded, self.weight, self.bias, padding=(1, 0))


class ReleasedLayer(nn.Module):
    """x + g1 column attention(x) + g2 row attention(x), then x + g3 convolutions(x) + g4 convolutions(x)."""

    def __init__(self, width: int, heads: int, convolution: type[nn.Conv2d]) -> None:
        super().__init__()
        self.column = ColumnAttention(width, heads, qkv_bias=False)
        self.row = RowAttention(width, heads, qkv_bias=False)
        self.convolution1 = ConvolutionBlock(width, convolution)
        self.convolution2 = ConvolutionBlock(width, convolution)
        self.gains = nn.Parameter(torch.zeros(4))
        """Of column attention, row attention and the two convolutions; a new layer is the identity (ReZero)."""

    def forward(self, x_BNNC: Tensor) -> Tensor:
        """(B, rows, columns, C) -> the same shape."""
        column, row, convolution1, convolution2 = self.gains
        x_BNNC = x_BNNC + column * self.column(x_BNNC) + row * self.row(x_BNNC)
        return x_BNNC + convolution1 * self.convolution1(x_BNNC) + convolution2 * self.convolution2(x_BNNC)


class ReleasedTransformer(nn.Module):
    """The released layers over a map beside its own copy; the two halves of the result are averaged.

    The copy changes nothing for attention, but the convolutions see it across the seam. Other settings of
    `config.width_duplication` than "exact" take the map once, for half the work; "wrapped" pads the convolutions such
    that they see about the same at the edges.
    """

    def __init__(self, config: SOTRConfig) -> None:
        super().__init__()
        self.duplicate = config.width_duplication == "exact"
        convolution = WrappedConv if config.width_duplication == "wrapped" else nn.Conv2d
        self.layers = nn.ModuleList(ReleasedLayer(config.width, config.heads, convolution) for _ in range(config.depth))

    def forward(self, maps_BCNN: Sequence[Tensor]) -> list[Tensor]:
        """Maps of (B, C, rows, columns) -> maps of the same shapes."""
        return [self.encode(x_BCNN) for x_BCNN in maps_BCNN]

    def encode(self, x_BCNN: Tensor) -> Tensor:
        """One map, (B, C, rows, columns) -> the same shape."""
        x_BNNC = x_BCNN.permute(0, 2, 3, 1)
        if self.duplicate:
            x_BNNC = torch.cat([x_BNNC, x_BNNC], 2)
        for layer in self.layers:
            x_BNNC = layer(x_BNNC)
        if self.duplicate:
            columns = x_BCNN.shape[3]
            x_BNNC = (x_BNNC[:, :, :columns] + x_BNNC[:, :, columns:]) / 2
        return x_BNNC.permute(0, 3, 1, 2)


class ReleasedSOTR(SOTR):
    """SOTR as the authors' checkpoints have it.

    Args:
        config: the architecture, of the released variant.

    Raises:
        SOTRError: the configuration is of another variant, or its backbone is no ResNet of bottleneck blocks.
    """

    variant = "released"

    def __init__(self, config: SOTRConfig) -> None:
        super().__init__(config)
        stride_in_first_convolution(self.backbone.body, config.backbone)

    def make_transformer(self, config: SOTRConfig) -> nn.Module:
        """See `SOTR`."""
        return ReleasedTransformer(config)

    def patches(self, features: list[Tensor]) -> list[Tensor]:
        """See `SOTR`; the levels are resized first."""
        return super().patches(resize_released(features))


def resize_released(features: list[Tensor]) -> list[Tensor]:
    """P2..P6 as the released transformer gets them: P2 halved, P6 resized to P5's size."""
    p2, p3, p4, p5, p6 = features
    p2 = F.interpolate(p2, scale_factor=0.5, mode="bilinear", align_corners=False)
    p6 = F.interpolate(p6, size=p5.shape[-2:], mode="bilinear", align_corners=False)
    return [p2, p3, p4, p5, p6]


def stride_in_first_convolution(body: nn.Module, name: str) -> None:
    """Move the stride of a timm ResNet's bottlenecks from the 3x3 convolution to the 1x1 before it, in place.

    Raises:
        SOTRError: `body`, the backbone `name`, is not built of bottlenecks.
    """
    stages = [getattr(body, stage, None) for stage in ("layer2", "layer3", "layer4")]
    blocks: list[Any] = [stage[0] for stage in stages if isinstance(stage, nn.Sequential)]
    if len(blocks) < len(stages) or not all(type(block) is Bottleneck for block in blocks):
        raise SOTRError(f"backbone {name!r} has no bottleneck blocks, as the released variant needs; use resnet50")
    for block in blocks:
        block.conv1.stride = (2, 2)
        if isinstance(block.conv2, DeformableConv):
            block.conv2.set_stride(1)
        else:
            block.conv2.stride = (1, 1)
