"""What inference on CPUs does to maps of a quarter of the picture's size in memory that is there already.

The system clears the pages of every large map at their first use, which takes longer than computing some of them.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sotr.network.backbone import FPN
from sotr.network.fast_conv import fast_conv
from sotr.network.inference_layers import scale_and_shift

LARGE = 32 << 20
"""Bytes from which glibc's malloc hands out fresh pages every time, however often such memory was freed before."""

BAND_ROWS = 8
"""Rows of a large map that a cache holds."""


class FusedFPN(nn.Module):
    """The feature pyramid for inference: lateral convolutions write their sum over the upsampled map, and Winograd's
    convolutions that sum's result over it.

    Args:
        fpn: the pyramid; stays as it is.
        dtype: of convolutions and results.
    """

    def __init__(self, fpn: FPN, dtype: torch.dtype) -> None:
        super().__init__()
        *lower, top = (cast(nn.Conv2d, block[0]) for block in fpn.pyramid.inner_blocks)
        self.top = fast_conv(top, dtype)
        self.laterals = nn.ModuleList(fast_conv(conv, dtype, adds=True, in_place=True) for conv in lower)
        self.outputs = nn.ModuleList(fast_conv(block[0], dtype, over_input=True) for block in fpn.pyramid.layer_blocks)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """P2..P6 of C channels each, from C2..C5."""
        merged = [self.top(features[-1])]
        for lateral, feature in zip(reversed(self.laterals), reversed(features[:-1]), strict=True):
            upsampled = F.interpolate(merged[-1], size=feature.shape[-2:], mode="nearest")
            merged.append(lateral(feature, add=upsampled))
        levels = [output(map) for output, map in zip(self.outputs, reversed(merged), strict=True)]
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]


class GroupNormInPlace(nn.Module):
    """Group norm that writes its result over a large map, which nobody may read again; float32 only.

    Mean and variance of the whole are put together from those of bands of rows.

    Args:
        norm: the norm.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The same shape."""
        if x_BCHW.numel() * x_BCHW.element_size() < LARGE:
            return self.norm(x_BCHW)
        batch, channels, height, width = x_BCHW.shape
        groups, eps = self.norm.num_groups, self.norm.eps
        bands = x_BCHW.split(BAND_ROWS, 2)
        statistics = [
            torch.native_group_norm(band, None, None, batch, channels, band.shape[2] * width, groups, eps)[1:]
            for band in bands
        ]
        means_KBG = torch.stack([mean for mean, _ in statistics]).double()
        variances_KBG = torch.stack([rstd for _, rstd in statistics]).double().pow(-2) - eps
        share_K11 = means_KBG.new_tensor([band.shape[2] / height for band in bands])[:, None, None]
        mean_BG = (share_K11 * means_KBG).sum(0)
        rstd_BG = ((share_K11 * (variances_KBG + (means_KBG - mean_BG).square())).sum(0) + eps).rsqrt()

        scale_BC11, shift_BC11 = (each.to(x_BCHW.dtype) for each in scale_and_shift(self.norm, mean_BG, rstd_BG))
        for band in bands:
            torch.addcmul(shift_BC11, band, scale_BC11, out=band)
        return x_BCHW
