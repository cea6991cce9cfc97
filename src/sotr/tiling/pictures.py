"""Rectangles of an image, read when they are asked for where its format allows that."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sotr.data.choice import WHOLE, Choice
from sotr.data.images import load_image, open_tiled
from sotr.data.sources import ImageSource
from sotr.errors import SOTRError

MAX_PIXELS_IN_MEMORY = 1_000_000_000
"""Images with more pixels than this are refused where they have to be decoded as a whole, at 3 bytes a pixel."""

MAX_PIXELS_ON_DISK = 2**32 - 1
"""Images with more pixels than this are refused: COCO's run-length encoding counts pixels with 32 bits."""


class TilePicture(Protocol):
    """An image that gives rectangles of itself."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def read(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        """The pixels of a rectangle, half-open, inside the image: rows x columns x 3, uint8, RGB."""
        ...


@contextmanager
def open_picture(
    source: ImageSource, load: Callable[..., NDArray[np.uint8]] = load_image, choice: Choice = WHOLE
) -> Iterator[TilePicture]:
    """Open an image for reading it rectangle by rectangle.

    Of a tiled TIFF or BigTIFF file only what is asked for is decoded; one of more than 8 bits is read once from end to
    end to find its range. All other images are decoded at once, by `load`, which is `load_image` or its like, and
    holds 3 bytes a pixel, and up to 10 while it decodes. `choice` says which image of a file is meant, and which values
    become black and white; percentiles are those of the whole image.

    Raises:
        SOTRError: as `load_image`; the limits are `MAX_PIXELS_IN_MEMORY` and `MAX_PIXELS_ON_DISK`.
    """
    with open_tiled(source, choice) as tiff:
        if tiff is None:
            yield _Loaded(load(source, max_pixels=MAX_PIXELS_IN_MEMORY, choice=choice))
            return
        if tiff.height * tiff.width > MAX_PIXELS_ON_DISK:
            raise SOTRError(
                f"{tiff.name}: {tiff.width} x {tiff.height} pixels are more than masks can number (2^32); cut it up"
            )
        yield tiff


@dataclass(frozen=True)
class _Loaded:
    pixels_HW3: NDArray[np.uint8]

    @property
    def height(self) -> int:
        return self.pixels_HW3.shape[0]

    @property
    def width(self) -> int:
        return self.pixels_HW3.shape[1]

    def read(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        return self.pixels_HW3[y0:y1, x0:x1]
