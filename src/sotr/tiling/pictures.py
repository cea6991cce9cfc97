"""Rectangles of a picture, read when they are asked for where its format allows that."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from sotr.data.images import ImageSource, load_image, scale_to_8_bit
from sotr.errors import SOTRError

if TYPE_CHECKING:
    import tifffile

MAX_PIXELS_IN_MEMORY = 1_000_000_000
"""Pictures with more pixels than this are refused where they have to be decoded as a whole, at 3 bytes a pixel."""

MAX_PIXELS_ON_DISK = 2**32 - 1
"""Pictures with more pixels than this are refused: COCO's run-length encoding counts pixels with 32 bits."""

TIFF_SUFFIXES = frozenset({".tif", ".tiff", ".btf", ".svs"})


class TilePicture(Protocol):
    """A picture that gives rectangles of itself."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def read(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        """The pixels of a rectangle, half-open, inside the picture: rows x columns x 3, uint8, RGB."""
        ...


@contextmanager
def open_picture(source: ImageSource) -> Iterator[TilePicture]:
    """Open a picture for reading it rectangle by rectangle.

    Of a tiled TIFF or BigTIFF file (8 bit grey, RGB or RGBA, or 16 bit grey) only what is asked for is decoded, if the
    package tifffile is installed (extra `tiff`); 16 bit grey is read once from end to end to find its range. All other
    pictures are decoded at once, by `load_image`, which holds 3 bytes a pixel, and up to 10 while it decodes.

    Raises:
        SOTRError: as `load_image`; the limits are `MAX_PIXELS_IN_MEMORY` and `MAX_PIXELS_ON_DISK`.
    """
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() in TIFF_SUFFIXES:
        with _open_tiff(Path(source)) as tiff:
            if tiff is not None:
                yield tiff
                return
    yield _Loaded(load_image(source, max_pixels=MAX_PIXELS_IN_MEMORY))


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


@contextmanager
def _open_tiff(path: Path) -> Iterator["_TiledTiff | None"]:
    """The first page of a TIFF file, or None where `load_image` has to take it as a whole, or to say what is wrong."""
    try:
        import tifffile
    except ModuleNotFoundError:
        yield None
        return
    try:
        file = tifffile.TiffFile(path)
    except Exception:  # damaged files raise almost anything; load_image tells what is wrong
        yield None
        return
    with file:
        yield _tiled(path, file)


def _tiled(path: Path, file: "tifffile.TiffFile") -> "_TiledTiff | None":
    try:
        page = file.pages.first
        kind = (page.dtype, page.samplesperpixel, int(page.photometric))
        orientation = page.tags.valueof("Orientation", default=1)
        if not page.is_tiled or orientation != 1 or kind not in _KINDS or page.imagedepth != 1:
            return None
        if page.is_subsampled and page.compression != _JPEG:
            return None
        if page.samplesperpixel > 1 and page.planarconfig != 1:
            return None
        picture = _TiledTiff(path, page)
        picture.decode(0)
    except Exception:  # no decoder for its compression, or damaged
        return None
    if picture.height * picture.width > MAX_PIXELS_ON_DISK:
        raise SOTRError(
            f"{path}: {picture.width} x {picture.height} pixels are more than masks can number (2^32); cut it up"
        )
    return picture


_JPEG = 7
_GREY, _RGB, _YCBCR = 1, 2, 6
_KINDS = {
    *((np.dtype(np.uint8), samples, color) for samples, color in ((1, _GREY), (3, _RGB), (4, _RGB), (3, _YCBCR))),
    (np.dtype(np.uint16), 1, _GREY),
}
"""(type, samples, colour space) that are read in tiles; tifffile turns YCbCr into RGB."""


class _TiledTiff:
    """A page whose tiles are read and decoded one by one."""

    def __init__(self, path: Path, page: "tifffile.TiffPage") -> None:
        self._path, self._page = path, page
        self.height, self.width = page.imagelength, page.imagewidth

    @cached_property
    def _largest(self) -> int:
        """The largest value in the file."""
        return max(int(self.decode(index).max(initial=0)) for index in range(len(self._page.dataoffsets)))

    def read(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        tile_h, tile_w = self._page.tilelength, self._page.tilewidth
        values = np.zeros((y1 - y0, x1 - x0, self._page.samplesperpixel), self._page.dtype)
        per_row = -(-self.width // tile_w)
        for row in range(y0 // tile_h, -(-y1 // tile_h)):
            for column in range(x0 // tile_w, -(-x1 // tile_w)):
                y, x = row * tile_h, column * tile_w
                tile = self.decode(row * per_row + column)[max(0, y0 - y) : y1 - y, max(0, x0 - x) : x1 - x]
                top, left = max(y, y0) - y0, max(x, x0) - x0
                values[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        return load_image(values if values.dtype == np.uint8 else scale_to_8_bit(values, self._largest))

    def decode(self, index: int) -> NDArray[np.generic]:
        """The tile of this position, rows x columns x samples; those at the picture's end may be cut there.

        Raises:
            SOTRError: it is damaged.
        """
        file = self._page.parent.filehandle
        try:
            file.seek(self._page.dataoffsets[index])
            data = file.read(self._page.databytecounts[index])
            tile, _, shape = self._page.decode(data or None, index, jpegtables=self._page.jpegtables)
        except Exception as error:  # decoders raise almost anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SOTRError(f"{self._path}: tile {index} is damaged; {reason}") from None
        # A tile may be left out of the file: it is black.
        return np.zeros(shape[1:], self._page.dtype) if tile is None else tile[0]
