"""Where in the image masks may have pixels. The rest, most of a large image of small objects, need not be made."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sotr.masks.resize import Size, Taps, Windows, taps_of
from sotr.masks.run_lengths import Ints

MARGIN = 1e-5
"""By how much of the level rounding may lift a resized pixel above those that it lies between, many times over."""

WHOLE = 0.6
"""Share of the image from which on a mask gets all of it."""

HEIGHT_STEP = 16
"""Windows' heights are multiples of it or the image's: for each that is new to a process a kernel is made."""


def windows_of(
    maps_Ihw: Tensor, level: float, padded_size: Size, image_size: Size, original_size: Size, *, pixels: int
) -> Iterator[Windows]:
    """Some masks after others, all of them in the end, each with a part of the image that holds all its pixels.

    Masks that come together have windows of one size, so masks of about one size are grouped. A window that is lower
    than the image has one empty row more than the mask needs, so that no run of it goes on in the next column.

    Args:
        maps_Ihw: logits or probabilities on the host.
        level: above it a pixel belongs to the mask.
        padded_size: see `to_picture`, and so the other sizes.
        pixels: that the windows of masks that come together may have; a single mask may have more.
    """
    least = level - MARGIN * abs(level)
    sizes = zip(maps_Ihw.shape[1:], padded_size, image_size, original_size, strict=True)
    rows, columns = [taps_of(*along, maps_Ihw.device) for along in sizes]
    # Interpolation makes nothing larger than what it lies between. What holds a NaN may be anything.
    top_I, bottom_I = _reached(~(maps_Ihw.amax(2) <= least).numpy(), rows)
    left_I, right_I = _reached(~(maps_Ihw.amax(1) <= least).numpy(), columns)
    height, width = original_size
    # With the row to spare no window with pixels has lines of length 1 either, which are summed with another rounding.
    height_I = np.minimum((bottom_I - top_I + HEIGHT_STEP) // HEIGHT_STEP * HEIGHT_STEP, height)
    width_I = np.maximum(right_I - left_I, 1)
    # All of the image is quicker to make than a part, pixel for pixel.
    whole_I = height_I * width_I > WHOLE * height * width
    top_I, left_I = np.where(whole_I, 0, top_I), np.where(whole_I, 0, left_I)
    height_I, width_I = np.where(whole_I, height, height_I), np.where(whole_I, width, width_I)
    # By height, roughly, and masks about as high by width.
    order_I = np.lexsort((width_I, np.frexp(height_I)[1]))
    first = 0
    while first < len(order_I):
        # The more masks come together, the larger all their windows; the lines that they are made of are w long.
        heights = np.maximum.accumulate(height_I[order_I[first:]])
        widths = np.maximum.accumulate(width_I[order_I[first:]])
        needed = np.arange(1, len(heights) + 1) * heights * np.maximum(widths, maps_Ihw.shape[2])
        count = max(1, int(np.searchsorted(needed, pixels, side="right")))
        masks, h, w = np.sort(order_I[first : first + count]), int(heights[count - 1]), int(widths[count - 1])
        yield Windows(masks, np.minimum(top_I[masks], height - h), np.minimum(left_I[masks], width - w), h, w)
        first += count


def _reached(live_IS: NDArray[np.bool_], taps: Taps) -> tuple[Ints, Ints]:
    """For each mask the first new line that reads a live old one, and the one after the last; equal if none does."""
    lines, firsts = taps.lines.numpy(), taps.firsts.numpy()
    lowest_L, highest_L = lines[firsts], lines[np.append(firsts[1:], len(lines)) - 1]
    first_I, last_I = live_IS.argmax(1), live_IS.shape[1] - 1 - live_IS[:, ::-1].argmax(1)
    start_I, stop_I = np.searchsorted(highest_L, first_I, "left"), np.searchsorted(lowest_L, last_I, "right")
    any_I = live_IS.any(1)
    return np.where(any_I, start_I, 0), np.where(any_I, stop_I, 0)
