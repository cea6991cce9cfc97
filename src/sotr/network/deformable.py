"""Modulated deformable convolution (Zhu et al. 2019), for the backbone of Table 7's last row."""

from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from sotr.errors import SOTRError


class DeformableConv(nn.Module):
    """A 3x3 convolution each of whose nine samples is moved and weighted as an ordinary 3x3 convolution says.

    That convolution starts at zero, so that at first the samples stay in place, each weighted by a half.

    Args:
        conv: the convolution to take the place of; its weight is kept.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.weight, self.bias = conv.weight, conv.bias
        taps = conv.kernel_size[0] * conv.kernel_size[1]
        self.taps = taps
        self.offset = nn.Conv2d(conv.in_channels, 3 * taps, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h / stride, w / stride)."""
        # Two coordinates for each tap, (y, x), then a weight for each.
        offsets, weights = self.offset(x).split([2 * self.taps, self.taps], 1)
        return deform_conv2d(
            x, offsets, self.weight, self.bias, self.stride, self.padding, self.dilation, mask=weights.sigmoid()
        )


def make_deformable(body: nn.Module, name: str, stages: tuple[int, ...]) -> None:
    """Make the 3x3 convolutions of a timm ResNet's stages deformable, in place.

    Raises:
        SOTRError: if `body` is not built of a ResNet's blocks.
    """
    for stage in stages:
        blocks = getattr(body, f"layer{stage - 1}", None)
        convs = [getattr(block, "conv2", None) for block in blocks or ()]
        if not convs or not all(isinstance(conv, nn.Conv2d) and conv.groups == 1 for conv in convs):
            raise SOTRError(f"backbone {name!r} has no ResNet blocks to make deformable; set deformable_stages to ()")
        for block, conv in zip(blocks or (), convs, strict=True):
            block.conv2 = DeformableConv(conv)
