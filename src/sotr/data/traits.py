"""A few numbers that tell how an image looks, and whether it looks like those that a model was trained on."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sotr.errors import SOTRError

PIXELS = 2**16
"""Pixels that are looked at, at most."""

DIM = 0.1
"""An image whose brightest values lie below this share of the range uses a small part of it."""

MARGIN = 0.02
"""How far beyond the training images' traits an image may lie, on the scale 0..1, and still count as alike; more where
these were few."""

WORDS = {"mean": "brightness", "contrast": "contrast", "red": "color", "blue": "color"}
"""What messages call the traits."""


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


@dataclass(frozen=True)
class Domain:
    """How the images that a model was trained on look."""

    images: int
    """How many were looked at."""
    low: Traits
    high: Traits
    median_size: tuple[int, int] | None = None
    """Height and width of a common one, in pixels, if it is known."""

    @classmethod
    def of(cls, traits: Iterable[Traits], median_size: tuple[int, int] | None = None) -> "Domain":
        """The range of some images' traits; at least one."""
        values = np.array([astuple(each) for each in traits])
        return cls(len(values), Traits(*values.min(0).tolist()), Traits(*values.max(0).tolist()), median_size)

    def unlike(self, traits: Traits) -> list[str]:
        """The traits, brightness of the peaks aside, in which an image lies outside of this range."""
        margin = max(MARGIN, 2 / self.images)
        found = []
        for name, word in WORDS.items():
            low, value, high = (getattr(each, name) for each in (self.low, traits, self.high))
            if not low - margin <= value <= high + margin:
                found.append(word)
        return list(dict.fromkeys(found))

    def is_dim(self, traits: Traits) -> bool:
        """Whether an image is darker than all of these."""
        return 0 < traits.peak < self.low.peak

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Domain":
        """What `to_dict` gave.

        Raises:
            SOTRError: it is damaged; the message has to be completed with the file's name.
        """
        names = [field.name for field in fields(Traits)]
        try:
            low, high = (Traits(*(float(values[end][name]) for name in names)) for end in ("low", "high"))
            if values["images"] < 1:
                raise ValueError("no images")
            size = values.get("median_size")
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise ValueError("no size")
            median_size = None if size is None else (int(size[0]), int(size[1]))
            return cls(int(values["images"]), low, high, median_size)
        except (KeyError, TypeError, ValueError) as error:
            raise SOTRError(f"has damaged traits of the training images ({type(error).__name__}: {error})") from None
