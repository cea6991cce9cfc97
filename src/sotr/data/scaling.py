"""How values of more than 8 bits become 8 bits: one rule for grey and color, files and arrays, wholes and parts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

DEPTHS = (8, 12, 16)
"""Bits of cameras' values. 12-bit cameras store theirs unscaled in 16-bit files."""

Limits = tuple[float, float]


def limits_of(values: NDArray[Any]) -> Limits | None:
    """The least and the largest finite value; None if there is none."""
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    return (values.min().item(), values.max().item()) if values.size else None


def scale_to_8_bit(
    values: NDArray[Any], limits: Limits | None = None, declared: int | None = None
) -> NDArray[np.uint8]:
    """Scale values linearly to 0..255.

    Whole numbers within 0..65535 are scaled from the smallest of 0..255, 0..4095 and 0..65535 that holds them all.
    Others, and floating point, are scaled from their least..largest finite value; what is not finite becomes 0, and so
    does a flat image.

    Args:
        limits: the least and the largest value of the image of which these are a part.
        declared: the largest value that the file allows. If it is none of the three, whole numbers within it are scaled
            from 0 to it.
    """
    limits = limits_of(values) if limits is None else limits
    if limits is None:
        return np.zeros(values.shape, np.uint8)
    if values.dtype == np.uint8:
        return values
    low, high = limits
    if (most := _most(values, limits, declared)) is not None:
        return np.rint(values.astype(np.float32) * np.float32(255 / most)).astype(np.uint8)
    if high == low:
        return np.zeros(values.shape, np.uint8)
    finite = np.isfinite(values)
    # Halves, because the difference of two finite numbers may be infinite.
    share = (np.where(finite, values, low).astype(np.float64) / 2 - low / 2) / (high / 2 - low / 2)
    return np.rint(share * 255).astype(np.uint8)


def invert(values: NDArray[Any], limits: Limits | None = None, declared: int | None = None) -> NDArray[np.uint8]:
    """The same of values of which 0 is white.

    Whole numbers are held against the end of the smallest range that holds them all, and then scaled.
    """
    limits = limits_of(values) if limits is None else limits
    if limits is None or (most := _most(values, limits, declared)) is None:
        return 255 - scale_to_8_bit(values, limits)
    rest = most - values.astype(np.uint16)
    return scale_to_8_bit(rest, (most - limits[1], most - limits[0]), declared).astype(np.uint8)


def _most(values: NDArray[Any], limits: Limits, declared: int | None) -> int | None:
    """The end of the range from which whole numbers are scaled."""
    if values.dtype.kind not in "ui" or limits[0] < 0:
        return None
    ends = [2**bits - 1 for bits in DEPTHS]
    if declared is not None and ends[0] < declared < ends[-1] and declared not in ends and limits[1] <= declared:
        return declared
    return next((end for end in ends if limits[1] <= end), None)
