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
    """Resampling along one axis: what each of L new lines takes of up to three old ones."""

    lines_LT: Tensor
    shares_LT: Tensor


class RepeatedTaps(NamedTuple):
    """Resampling along one axis of I maps, one after the other: what each of L new lines takes of up to three old ones.

    Attributes:
        lines: of the old maps, I L T.
        shares: of each line, I L T.
        firsts: where those of each new line begin, I L.
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


def _resample(lines_ISC: Tensor, taps: RepeatedTaps) -> Tensor:
    """I maps of S lines each -> (I, L, C), sums of lines."""
    count, lines, channels = lines_ISC.shape
    # A weighted sum of a few rows of a table is what this kernel is made for, vectorised along the rows.
    table = lines_ISC.reshape(count * lines, channels)
    sums = F.embedding_bag(taps.lines, table, taps.firsts, per_sample_weights=taps.shares, mode="sum")
    return sums.view(count, -1, channels)


@lru_cache(maxsize=64)
def _repeated(count: int, features: int, padded: int, image: int, original: int, device: torch.device) -> RepeatedTaps:
    """Of so many maps along one axis, for these sizes; kept, for the next maps are often as many and of the same."""
    taps = _taps(features, padded, image, original, device)
    first_I11 = torch.arange(0, count * features, features, device=device)[:, None, None]
    lines = (taps.lines_LT + first_I11).flatten()
    firsts = torch.arange(0, len(lines), taps.lines_LT.shape[1], device=device)
    return RepeatedTaps(lines, taps.shares_LT.repeat(count, 1).flatten(), firsts)


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
    taps = int(np.flatnonzero(shares_L3.any(0))[-1]) + 1
    index = np.minimum(first + np.arange(taps), features - 1)
    shares_LT = torch.from_numpy(shares_L3[:, :taps].astype(np.float32))
    return Taps(torch.from_numpy(index).to(device), shares_LT.to(device))


def _bilinear(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each new pixel the two old ones that it lies between, and their shares, (new, 2) each."""
    # In float32, as `F.interpolate` computes it: for long sides the rounding of this shows in the shares.
    scale = np.float32(old) / np.float32(new)
    place = np.maximum(scale * (np.arange(new, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0))
    low = np.minimum(place.astype(np.int64), old - 1)
    share = (place - low.astype(np.float32)).astype(np.float64)
    return np.stack([low, np.minimum(low + 1, old - 1)], 1), np.stack([1 - share, share], 1)
