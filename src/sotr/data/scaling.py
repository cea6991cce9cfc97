"""How values of more than 8 bits become 8 bits: one rule for gray and color, files and arrays, wholes and parts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sotr.errors import SOTRError

DEPTHS = range(8, 17)
"""Bits that whole numbers may have. Cameras of 10, 12 or 14 bits store their values unscaled in 16-bit files."""

Limits = tuple[float, float]

PERCENTILES = (1.0, 99.8)
"""Black and white of models that are trained with `--normalize`."""

SAMPLES = 2**22
"""Values of which percentiles are taken, at most, where these are not whole numbers of up to 16 bits."""


@dataclass(frozen=True)
class IntensityRange:
    """Values that become black and white; those between are scaled linearly, those beyond are cut."""

    low: float
    high: float
    percent: bool = False
    """Whether the two are percentiles of the image rather than values."""

    def __post_init__(self) -> None:
        within = 0 <= self.low and self.high <= 100 if self.percent else True
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high and within):
            sign = "%" * self.percent
            raise SOTRError(
                f"intensity range {self.low:g}{sign},{self.high:g}{sign}: give two finite numbers, the smaller first, "
                "such as 100,4000, or percentiles such as 1%,99.8%"
            )

    @classmethod
    def of(cls, percentiles: Sequence[float]) -> "IntensityRange | None":
        """The range of `SOTRConfig.intensity_percentiles`."""
        return cls(percentiles[0], percentiles[1], percent=True) if percentiles else None

    @classmethod
    def parse(cls, text: str) -> "IntensityRange":
        """The range that "100,4000" or, of percentiles, "1%,99.8%" means.

        Raises:
            SOTRError: it means none.
        """
        parts = [part.strip() for part in text.split(",")]
        percent = all(part.endswith("%") for part in parts)
        try:
            low, high = (float(part.removesuffix("%") if percent else part) for part in parts)
        except ValueError:
            raise SOTRError(
                f"intensity-range is {text!r}; give two values such as 100,4000, or percentiles such as 1%,99.8%"
            ) from None
        return cls(low, high, percent)

    def limits(self, parts: Iterable[NDArray[Any]], size: int) -> Limits | None:
        """The values that become black and white in an image that comes in parts; None where there is no finite one.

        Where the two percentiles are the same value, the least and the largest are taken.

        Args:
            parts: all of one type.
            size: how many values they have together.
        """
        if not self.percent:
            return self.low, self.high
        counts, samples, dtype = np.zeros(2**16, np.int64), [], np.dtype(np.uint8)
        for part in parts:
            dtype = part.dtype
            if dtype in (np.uint8, np.uint16):
                counts += np.bincount(part.ravel(), minlength=len(counts))
            else:
                sample = part.ravel()[:: max(1, size // SAMPLES)]
                samples.append(sample[np.isfinite(sample)] if dtype.kind == "f" else sample)
        if samples:
            values = np.sort(np.concatenate(samples))
            ranks = np.arange(1, len(values) + 1)
        else:
            values = np.flatnonzero(counts)
            ranks = np.cumsum(counts[values])
        if not len(values):
            return None
        low, high = (values[np.searchsorted(ranks, share / 100 * ranks[-1])].item() for share in (self.low, self.high))
        return (low, high) if low < high else (values[0].item(), values[-1].item())

    def apply(self, values: NDArray[Any], limits: Limits | None = None) -> NDArray[np.uint8]:
        """Values in 0..255; a flat image whose percentiles are alike is scaled by the usual rule.

        Args:
            limits: those of the image of which these are a part.
        """
        limits = self.limits([values], values.size) if limits is None else limits
        if limits is None or limits[0] == limits[1]:
            return scale_to_8_bit(values)
        return stretched(values, limits)


def stretched(values: NDArray[Any], limits: Limits) -> NDArray[np.uint8]:
    """Values scaled linearly from the limits to 0..255 and cut there; what is not finite becomes 0."""
    low, high = limits
    # Halves, because the difference of two finite numbers may be infinite.
    numbers: NDArray[Any] = values.astype(np.float32 if values.dtype in (np.uint8, np.uint16) else np.float64)
    share = (numbers / 2 - low / 2) * (255 / (high / 2 - low / 2))
    return np.rint(np.clip(np.nan_to_num(share, nan=0.0, posinf=0.0, neginf=0.0), 0, 255)).astype(np.uint8)


def limits_of(values: NDArray[Any]) -> Limits | None:
    """The least and the largest finite value; None if there is none."""
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    return (values.min().item(), values.max().item()) if values.size else None


def scale_to_8_bit(
    values: NDArray[Any], limits: Limits | None = None, declared: int | None = None
) -> NDArray[np.uint8]:
    """Scale values linearly to 0..255.

    Whole numbers within 0..65535 are scaled from the smallest of 0..255, 0..511, 0..1023 and so on to 0..65535 that
    holds them all, so that the brightest is never darker than half. Others, and floating point, are scaled from their
    least..largest finite value; what is not finite becomes 0, and so does a flat image.

    Args:
        limits: the least and the largest value of the image of which these are a part.
        declared: the largest value that the file allows. If that tells more than 8 or 16 bits would, whole numbers are
            scaled from 0 to it.
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
    if declared is not None and ends[0] < declared < ends[-1] and limits[1] <= declared:
        return declared
    return next((end for end in ends if limits[1] <= end), None)
