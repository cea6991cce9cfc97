"""Masks from the features' resolution to the picture's own, in one step."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]
"""Height and width."""


class Taps(NamedTuple):
    """Resampling along one axis: what each of L new lines takes of one to three old ones.

    Attributes:
        lines: the old lines, those of each new line after another, of several maps one after the other.
        shares: of each of them.
        firsts: where those of each new line begin.
    """

    lines: Tensor
    shares: Tensor
    firsts: Tensor


def to_picture(maps_Ihw: Tensor, padded_size: Size, image_size: Size, original_size: Size) -> Tensor:
    """Resize maps to the network's input, cut off its padding, and resize what is left to the picture.

    Both resizes are bilinear between pixel centres and so linear along each axis: along each they are one sum of two or
    three terms, and the maps of the input's size are never made. Equal to the two steps to float32 rounding.

    Args:
        maps_Ihw: mask logits or probabilities, float32.
        padded_size: of the network's input.
        image_size: of the part of it that is picture, at its top left.
        original_size: of the picture's file.

    Returns:
        (I, W, H) of the original size: column by column, as masks are compressed.
    """
    sizes = zip(maps_Ihw.shape[1:], padded_size, image_size, original_size, strict=True)
    rows, columns = [_repeated(len(maps_Ihw), *along, maps_Ihw.device) for along in sizes]
    maps_IHw = _resample(maps_Ihw, rows)
    return _resample(maps_IHw.transpose(1, 2), columns)


def _resample(lines_ISC: Tensor, taps: Taps) -> Tensor:
    """I maps of S lines each -> (I, L, C), sums of lines."""
    count, lines, channels = lines_ISC.shape
    # A weighted sum of a few rows of a table is what this kernel is made for, vectorised along the rows.
    table = lines_ISC.reshape(count * lines, channels)
    sums = F.embedding_bag(taps.lines, table, taps.firsts, per_sample_weights=taps.shares, mode="sum")
    return sums.view(count, -1, channels)


@lru_cache(maxsize=64)
def _repeated(count: int, features: int, padded: int, image: int, original: int, device: torch.device) -> Taps:
    """Of so many maps along one axis, for these sizes; kept, for the next maps are often as many and of the same."""
    taps = _taps(features, padded, image, original, device)
    map_I1 = torch.arange(count, device=device)[:, None]
    return Taps(
        (taps.lines + map_I1 * features).flatten(),
        taps.shares.repeat(count),
        (taps.firsts + map_I1 * len(taps.lines)).flatten(),
    )


@lru_cache(maxsize=64)
def _taps(features: int, padded: int, image: int, original: int, device: torch.device) -> Taps:
    """Along one axis, for these sizes; kept, for the next picture is often of the same."""
    outer_L2, outer_shares_L2 = _bilinear(image, original)
    inner_S2, inner_shares_S2 = _bilinear(features, padded)
    places = inner_S2[outer_L2].reshape(original, 4)
    shares = (outer_shares_L2[:, :, None] * inner_shares_S2[outer_L2]).reshape(original, 4)
    # Two neighbours of the input lie between three neighbours of the features at most.
    first = places.min(1, keepdims=True)
    shares_L3 = np.zeros((original, 3))
    np.add.at(shares_L3, (np.arange(original)[:, None], places - first), shares)
    taken_L3 = shares_L3 > 0
    counts = taken_L3.sum(1)
    of_taps = (first + np.arange(3))[taken_L3], shares_L3[taken_L3].astype(np.float32), np.cumsum(counts) - counts
    return Taps(*(torch.from_numpy(each).to(device) for each in of_taps))


def _bilinear(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each new pixel the two old ones that it lies between, and their shares, (new, 2) each."""
    # In float32, as `F.interpolate` computes it: for long sides the rounding of this shows in the shares.
    scale = np.float32(old) / np.float32(new)
    place = np.maximum(scale * (np.arange(new, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0))
    low = np.minimum(place.astype(np.int64), old - 1)
    share = (place - low.astype(np.float32)).astype(np.float64)
    return np.stack([low, np.minimum(low + 1, old - 1)], 1), np.stack([1 - share, share], 1)
