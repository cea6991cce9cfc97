"""Modulated deformable convolution (Zhu et al. 2019), for the backbone of Table 7's last row."""

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from sotr.config import SOTRError

TAPS = 9
"""Samples of a 3x3 convolution."""


class DeformableConv(nn.Module):
    """A 3x3 convolution each of whose nine samples is moved and weighted as an ordinary 3x3 convolution says.

    That convolution starts at zero, so that at first the samples stay in place, each weighted by a half.

    Args:
        conv: the convolution to take the place of, 3x3 with padding 1; its weight is kept.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.stride = conv.stride[0]
        self.weight, self.bias = conv.weight, conv.bias
        self.offset = nn.Conv2d(conv.in_channels, 3 * TAPS, 3, self.stride, padding=1)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def set_stride(self, stride: int) -> None:
        """Change the stride of the convolution and of the one that moves its samples."""
        self.stride, self.offset.stride = stride, (stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h / stride, w / stride)."""
        # Two coordinates for each sample, (y, x), then a weight for each.
        offsets, weights = self.offset(x).split([2 * TAPS, TAPS], 1)
        if x.dtype != torch.bfloat16:
            return deform_conv2d(x, offsets, self.weight, self.bias, self.stride, padding=1, mask=weights.sigmoid())
        # The operator is not there in bfloat16.
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(x.device.type, enabled=False):
            return deform_conv2d(
                x.float(),
                offsets.float(),
                self.weight.float(),
                bias,
                self.stride,
                padding=1,
                mask=weights.float().sigmoid(),
            ).to(x.dtype)


def make_deformable(body: nn.Module, name: str, stages: tuple[int, ...]) -> None:
    """Make the 3x3 convolutions of a timm ResNet's stages deformable, in place.

    Raises:
        SOTRError: if `body` is not built of a ResNet's blocks.
    """
    for stage in stages:
        blocks = list(getattr(body, f"layer{stage - 1}", ()))
        if not blocks or not all(_is_plain(getattr(block, "conv2", None)) for block in blocks):
            raise SOTRError(f"backbone {name!r} has no ResNet blocks to make deformable; set deformable_stages to ()")
        for block in blocks:
            block.conv2 = DeformableConv(block.conv2)


def _is_plain(conv: nn.Module | None) -> bool:
    return isinstance(conv, nn.Conv2d) and (conv.kernel_size, conv.groups, conv.dilation) == ((3, 3), 1, (1, 1))
