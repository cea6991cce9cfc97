"""Preprocessing on a GPU, with the same bits as on a CPU, so that a model sees the same image wherever it runs.

On CPUs torchvision resizes bytes with whole numbers: along each axis a new byte is the sum of old ones times weights of
16 bits, rounded. What follows has 256 possible values per channel, which are looked up.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sotr.data.byte_taps import byte_taps
from sotr.data.transforms import preprocess


class Taps(NamedTuple):
    """What each of L new lines takes of up to T old ones.

    Attributes:
        lines_TL: the old lines.
        weights_TL: their shares, times 2^bits.
        bits: how exact the shares are.
    """

    lines_TL: Tensor
    weights_TL: Tensor
    bits: int


def preprocess_on_device(image_3HW: Tensor, size: tuple[int, int]) -> Tensor:
    """The same as `preprocess` makes of an image, whatever the device, given the size that `resized_size` tells.

    Args:
        image_3HW: uint8, RGB.
        size: (h, w).

    Returns:
        float32, 3 x h x w, normalized.
    """
    bytes_3hw = resize_exactly(image_3HW, size)
    values_K, channels_311 = _normalised(bytes_3hw.device)
    return values_K.take(bytes_3hw + channels_311)


def resize_exactly(image_3HW: Tensor, size: tuple[int, int]) -> Tensor:
    """The same as torchvision's antialiased bilinear resizing of bytes on a CPU, (3, h, w) uint8."""
    for axis in (2, 1):  # in this order, for in between are bytes again
        if size[axis - 1] != image_3HW.shape[axis]:
            image_3HW = _along(axis, image_3HW, _taps(image_3HW.shape[axis], size[axis - 1], image_3HW.device))
    return image_3HW


def _along(axis: int, image_3HW: Tensor, taps: Taps) -> Tensor:
    image_3HW = image_3HW.contiguous()  # once, where index_select would do so for each tap
    sums = torch.full((), 1 << (taps.bits - 1), dtype=torch.int32, device=image_3HW.device)  # to round, not cut off
    for lines_L, weights_L in zip(*taps[:2], strict=True):
        sums = sums + image_3HW.index_select(axis, lines_L) * weights_L.view(-1, *[1] * (2 - axis))
    return (sums >> taps.bits).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _taps(old: int, new: int, device: torch.device) -> Taps:
    first_L, weights_LT, bits = byte_taps(old, new)
    # Where there are fewer taps than that the weight is zero.
    lines_TL = np.minimum(first_L + np.arange(weights_LT.shape[1])[:, None], old - 1)
    return Taps(torch.from_numpy(lines_TL).to(device), torch.from_numpy(weights_LT.T.copy()).to(device), bits)


@lru_cache(maxsize=8)
def _normalised(device: torch.device) -> tuple[Tensor, Tensor]:
    """What a byte of each channel becomes, one channel after the other; and where each channel's begin."""
    bytes_1K3 = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    values_31K = preprocess(bytes_1K3, 1, 256)
    return values_31K.flatten().to(device), torch.arange(0, 3 * 256, 256, device=device)[:, None, None]
