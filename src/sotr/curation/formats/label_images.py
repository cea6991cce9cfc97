"""Images whose pixels are numbers or colors of objects and classes, read as they are stored."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sotr.data.images import MAX_PIXELS
from sotr.data.tiff import MAGICS, open_tiff
from sotr.errors import SOTRError

LOSSY = ("JPEG", "MPO")
"""Pillow's names of formats that make numbers of their own."""

ROWS_AT_ONCE = 256
"""Rows of an image that are looked at together."""

SOFT_SHARE = 0.9
"""A number is that of a soft edge if this share of its pixels lies between a smaller and a larger one."""

SOFT_NUMBERS = 3
"""So many numbers of soft edges, and a third of all, make an image that is no label image."""


@dataclass(frozen=True)
class LabelImage:
    """Numbers of pixels."""

    numbers_HW: NDArray[Any]
    """Gray values as stored, indices of a palette, or colors as 65536 R + 256 G + B."""
    colors: NDArray[np.int64] | None
    """The colors of a palette's indices as 65536 R + 256 G + B, or None where the numbers are no indices."""
    is_color: bool
    is_lossy: bool
    bits: int
    """Of the pixels' type."""
    from_alpha: bool
    """Whether all colors were alike, so that the alpha channel was taken."""

    @property
    def colors_HW(self) -> NDArray[Any]:
        """The pixels as colors; gray ones stay numbers."""
        return self.numbers_HW if self.colors is None else self.colors[self.numbers_HW]


def load_labels(path: Path, size: tuple[int, int] | None = None) -> LabelImage:
    """Read a label image as it is stored: unlike for photos, turning it would be a mistake.

    Args:
        path: the file.
        size: height and width that it must have.

    Raises:
        SOTRError: it cannot be read, is of another size, or holds no whole numbers.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(4)
        values, palette, kind = _of_tiff(path, size) if begins in MAGICS else _of_image(path, size)
    except SOTRError:
        raise
    except Exception as error:  # damaged files make the decoders raise almost anything
        raise SOTRError(f"{path}: cannot be read as a mask; {' '.join(str(error).split())[:200]}") from None
    from_alpha = False
    if values.ndim == 3 and values.shape[2] in (2, 4):
        colors, alpha = values[..., :-1], values[..., -1]
        from_alpha = bool((colors == colors[:1, :1]).all() and (alpha != alpha[0, 0]).any())
        values = alpha if from_alpha else colors
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.rint(values)).all():
        values = values.astype(np.int64)
    if values.ndim not in (2, 3) or values.dtype.kind not in "bui":
        raise SOTRError(f"{path}: has pixels of type {values.dtype}; masks need whole numbers, gray or in a palette")
    bits = 8 * values.dtype.itemsize
    if values.ndim == 3:
        red, green, blue = (values[..., channel].astype(np.int64) for channel in range(3))
        return LabelImage(red * 65536 + green * 256 + blue, None, True, kind in LOSSY, bits, from_alpha)
    values = values.view(np.uint8) if values.dtype == np.bool_ else values
    return LabelImage(values, palette, False, kind in LOSSY, bits, from_alpha)


_Read = tuple[NDArray[Any], NDArray[np.int64] | None, str]


def _check_size(path: Path, height: int, width: int, size: tuple[int, int] | None) -> None:
    if size is not None and (height, width) != size:
        raise SOTRError(f"{path}: is {width} x {height}, its image {size[1]} x {size[0]} (upright); make them equal")
    if height * width > MAX_PIXELS:
        raise SOTRError(f"{path}: has more than {MAX_PIXELS // 10**6} megapixels; cut it up")


def _of_tiff(path: Path, size: tuple[int, int] | None) -> _Read:
    with open_tiff(path, str(path)) as tiff:
        _check_size(path, *tiff.stored_size, size)
        return tiff.numbers(), None, "TIFF"


def _of_image(path: Path, size: tuple[int, int] | None) -> _Read:
    with Image.open(path) as file:
        _check_size(path, file.height, file.width, size)
        palette = None
        if file.mode == "P" and file.palette is not None:
            colors = np.array(file.getpalette("RGB"), np.int64).reshape(-1, 3)
            palette = np.zeros(256, np.int64)
            palette[: len(colors)] = colors @ np.array([65536, 256, 1])
        return np.asarray(file), palette, str(file.format)


def has_soft_edges(labels: LabelImage) -> bool:
    """Whether many numbers lie between others only, as where edges were smoothed; objects are solid."""
    numbers_HW = labels.numbers_HW
    if labels.is_color:
        numbers_HW = numbers_HW // 65536 + numbers_HW // 256 % 256 + numbers_HW % 256
    most = int(numbers_HW.max(initial=0))
    if most >= 2**24 or numbers_HW.min(initial=0) < 0:
        return False
    kernel = np.ones((3, 3), np.uint8)
    counts, between = np.zeros(most + 1, np.int64), np.zeros(most + 1, np.int64)
    for top in range(0, len(numbers_HW), ROWS_AT_ONCE):
        # With the row before and the row behind, which belong to the neighborhood.
        first, stop = max(0, top - 1), top + ROWS_AT_ONCE
        grey = numbers_HW[first : stop + 1].astype(np.float32)
        is_between = (cv2.erode(grey, kernel) < grey) & (cv2.dilate(grey, kernel) > grey)
        band, is_between = numbers_HW[top:stop], is_between[top - first : stop - first]
        counts += np.bincount(band.ravel(), minlength=most + 1)
        between += np.bincount(band[is_between], minlength=most + 1)
    soft = int(((between >= SOFT_SHARE * counts) & (counts > 0)).sum())
    return soft >= SOFT_NUMBERS and soft * 3 >= int((counts > 0).sum())


def parts_of(mask_HW: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The separate parts of a mask; pixels that touch at corners belong together."""
    count, parts_HW = cv2.connectedComponents(mask_HW.astype(np.uint8), connectivity=8)
    return [parts_HW == part for part in range(1, count)]


def is_inverted(mask_HW: NDArray[np.bool_]) -> bool:
    """Whether a mask covers all four corners and most of the image, as one whose objects are 0."""
    corners = mask_HW[[0, 0, -1, -1], [0, -1, 0, -1]]
    return bool(corners.all() and mask_HW.mean() > 0.5 and not mask_HW.all())


def voc_colors(count: int = 256) -> NDArray[np.int64]:
    """The colors with which VOC's tools draw numbers, as 65536 R + 256 G + B: bits of the number in turn, the highest
    bits of a color first."""
    numbers = np.arange(count)
    colors = np.zeros((count, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((numbers >> (3 * bit + channel)) & 1) << (7 - bit)
    return colors @ np.array([65536, 256, 1])
