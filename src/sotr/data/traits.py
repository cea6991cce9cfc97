"""A few numbers that tell how an image looks, and whether it looks like those that a model was trained on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sotr.errors import SOTRError

PIXELS = 2**16
"""Pixels that are looked at, at most."""

DIM = 0.25
"""An image whose brightest values lie below this share of the range uses a small part of it."""

MARGIN = 0.1
"""How far beyond the training images' traits an image may lie, on the scale 0..1, and still count as alike."""


@dataclass(frozen=True)
class Traits:
    """How an image looks, all on the scale of 0..1 of its channels."""

    mean: float
    """Mean brightness."""
    contrast: float
    """Standard deviation of brightness."""
    red: float
    """Mean of red minus green."""
    blue: float
    """Mean of blue minus green."""
    peak: float
    """99.9th percentile of the channels' values."""

    @classmethod
    def of(cls, image_HW3: NDArray[np.uint8]) -> "Traits":
        """The traits of an RGB image, by some of its pixels."""
        step = max(1, int((image_HW3.shape[0] * image_HW3.shape[1] / PIXELS) ** 0.5))
        red, green, blue = np.moveaxis(image_HW3[::step, ::step].astype(np.float32) / 255, 2, 0)
        grey = (red + green + blue) / 3
        values = (
            grey.mean(),
            grey.std(),
            (red - green).mean(),
            (blue - green).mean(),
            np.percentile(np.maximum(np.maximum(red, green), blue), 99.9),
        )
        return cls(*(round(float(value), 4) for value in values))

    @property
    def is_dim(self) -> bool:
        """Whether the image uses a small part of its range."""
        return 0 < self.peak < DIM
