"""Masks from the features' resolution to the image's own, in one step."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sotr.masks.run_lengths import Ints

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


class Windows(NamedTuple):
    """A part of the image for each of some masks, all of one size.

    Attributes:
        masks_I: which masks, rising.
        tops_I: the first row of each one's part.
        lefts_I: its first column.
        height: of every part.
        width: of every part.
    """

    masks_I: Ints
    tops_I: Ints
    lefts_I: Ints
    height: int
    width: int


def to_picture(
    maps_Ihw: Tensor, padded_size: Size, image_size: Size, original_size: Size, windows: Windows | None = None
) -> Tensor:
    """Resize maps to the network's input, cut off its padding, and resize what is left to the image.

    Both resizes are bilinear between pixel centers and so linear along each axis: along each they are one sum of two or
    three terms, and the maps of the input's size are never made. Equal to the two steps to float32 rounding.

    Args:
        maps_Ihw: mask logits or probabilities, float32.
        padded_size: of the network's input.
        image_size: of the part of it that is image, at its top left.
        original_size: of the image's file.
        windows: the masks and the parts of the image that are wanted, on the host; by default all of each.

    Returns:
        (I, W, H) of the original size, or of the windows': column by column, as masks are compressed.
    """
    h, w = maps_Ihw.shape[1:]
    along_h, along_w = zip((h, w), padded_size, image_size, original_size, strict=True)
    count = len(maps_Ihw) if windows is None else len(windows.masks_I)
    if windows is None or (windows.height, windows.width) == original_size:
        rows, columns = [_repeated(count, *along, maps_Ihw.device) for along in (along_h, along_w)]
        if windows is not None:
            maps_Ihw = maps_Ihw[windows.masks_I[0] :]
            further_I = windows.masks_I - windows.masks_I[0] - np.arange(count)
            if further_I.any():  # masks that do not follow one another
                lines = rows.lines.view(count, -1) + torch.from_numpy(further_I * h)[:, None]
                rows = rows._replace(lines=lines.flatten())
    else:
        rows = _cut(taps_of(*along_h, maps_Ihw.device), windows.tops_I, windows.height, windows.masks_I * h)
        columns = _cut(taps_of(*along_w, maps_Ihw.device), windows.lefts_I, windows.width, np.arange(count) * w)
    maps_IHw = _resample(maps_Ihw.flatten(0, 1), rows).view(count, -1, w)
    columns_IwH = maps_IHw.transpose(1, 2).contiguous()  # of strided lines the sums take six times as long
    return _resample(columns_IwH.flatten(0, 1), columns).view(count, -1, columns_IwH.shape[2])


def _resample(table_SC: Tensor, taps: Taps) -> Tensor:
    """S lines -> (L, C), sums of lines."""
    # A weighted sum of a few rows of a table is what this kernel is made for, vectorised along the rows.
    return F.embedding_bag(taps.lines, table_SC, taps.firsts, per_sample_weights=taps.shares, mode="sum")


@lru_cache(maxsize=64)
def _repeated(count: int, features: int, padded: int, image: int, original: int, device: torch.device) -> Taps:
    """Of so many maps along one axis, for these sizes; kept, for the next maps are often as many and of the same."""
    taps = taps_of(features, padded, image, original, device)
    map_I1 = torch.arange(count, device=device)[:, None]
    return Taps(
        (taps.lines + map_I1 * features).flatten(),
        taps.shares.repeat(count),
        (taps.firsts + map_I1 * len(taps.lines)).flatten(),
    )


def _cut(taps: Taps, starts_I: Ints, length: int, offsets_I: Ints) -> Taps:
    """Of I maps so many new lines each, from a start on; the old lines of each map begin at an offset. On the host."""
    lines, shares, firsts = (each.numpy() for each in taps)
    # What the new lines of a map take follows one another, so that it is one piece of all.
    begins_I, stops_I = firsts[starts_I], starts_I + length
    ends_I = np.where(stops_I < len(firsts), firsts[np.minimum(stops_I, len(firsts) - 1)], len(lines))
    sizes_I = ends_I - begins_I
    before_I = np.cumsum(sizes_I) - sizes_I
    places = np.arange(sizes_I.sum()) + np.repeat(begins_I - before_I, sizes_I)
    firsts_IL = firsts[starts_I[:, None] + np.arange(length)] + (before_I - begins_I)[:, None]
    cut = lines[places] + np.repeat(offsets_I, sizes_I), shares[places], firsts_IL.reshape(-1)
    return Taps(*(torch.from_numpy(each) for each in cut))


@lru_cache(maxsize=64)
def taps_of(features: int, padded: int, image: int, original: int, device: torch.device) -> Taps:
    """Along one axis, for these sizes; kept, for the next image is often of the same."""
    outer_L2, outer_shares_L2 = _bilinear(image, original)
    inner_S2, inner_shares_S2 = _bilinear(features, padded)
    places = inner_S2[outer_L2].reshape(original, 4)
    shares = (outer_shares_L2[:, :, None] * inner_shares_S2[outer_L2]).reshape(original, 4)
    # Two neighbors of the input lie between three neighbors of the features at most.
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
