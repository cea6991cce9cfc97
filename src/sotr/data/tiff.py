"""The one reader of TIFF files: one image of them, whole or in rectangles. tifffile and imagecodecs decode."""

import io
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sotr.data.choice import WHOLE, Choice
from sotr.data.scaling import IntensityRange, Limits, invert, limits_of, scale_to_8_bit, stretched
from sotr.data.stack import Stack
from sotr.errors import SOTRError

if TYPE_CHECKING:
    import tifffile

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF files, of either byte order."""

MAX_SEGMENT_BYTES = 2**31
"""Strips and tiles that decode to more bytes than this are refused."""

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _CMYK, _YCBCR = range(7)
_JPEG, _OLD_JPEG = 7, 6
_PREMULTIPLIED, _ALPHA = 1, 2

TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""What makes a stored image upright, by the tag Orientation."""


class UnsupportedTiffError(SOTRError):
    """A TIFF file of a kind that this reader leaves to others."""


class _Quiet(logging.Filter):
    """Drops what tifffile logs of a damaged file while this module reads it: the error says it once."""

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self.here, "on", False)


_QUIET = _Quiet()
logging.getLogger("tifffile").addFilter(_QUIET)


@contextmanager
def _quietly() -> Iterator[None]:
    before, _QUIET.here.on = getattr(_QUIET.here, "on", False), True
    try:
        yield
    finally:
        _QUIET.here.on = before


@contextmanager
def open_tiff(source: str | Path | bytes, name: str, choice: Choice = WHOLE) -> Iterator["TiffImage"]:
    """Open an image of a TIFF file.

    Args:
        source: the file, or its bytes.
        name: what messages call it.
        choice: which image is meant, where there are several.

    Raises:
        UnsupportedTiffError: it is of a kind that this reader does not know.
        SOTRError: it is damaged, or the choice does not tell one image.
        OSError: it cannot be opened.
    """
    with _opened(source, name) as file, ExitStack() as quiet:
        quiet.enter_context(_quietly())
        try:
            stack = Stack.of(file)
            pages, sample = stack.pages(choice, name)
            image = TiffImage(_pages(file, pages, name), name, sample, choice.intensity)
        except SOTRError:
            raise
        except Exception as error:
            raise SOTRError(f"{name}: is not an image that can be read; {_reason(error)}") from None
        quiet.close()
        yield image


def stack_of(source: str | Path | bytes, name: str) -> Stack:
    """What a TIFF file holds.

    Raises:
        SOTRError, OSError: as `open_tiff`.
    """
    with _opened(source, name) as file, _quietly():
        return Stack.of(file)


@contextmanager
def _opened(source: str | Path | bytes, name: str) -> Iterator["tifffile.TiffFile"]:
    import tifffile  # only where there is a TIFF file

    with _quietly():
        try:
            # Never the other files that an OME-TIFF file names: who sends one file is not to open more.
            file = tifffile.TiffFile(io.BytesIO(source) if isinstance(source, bytes) else source, _multifile=False)
        except OSError:
            raise
        except Exception as error:  # damaged headers raise almost anything
            raise SOTRError(f"{name}: is not an image that can be read; {_reason(error)}") from None
    with file:
        yield file


@dataclass(frozen=True)
class _Page:
    """A page of a file, and how many bytes behind its own pixels those of the image lie."""

    page: Any
    shift: int = 0


def _pages(file: "tifffile.TiffFile", numbers: Sequence[int], name: str) -> list[_Page]:
    """The pages of the first series at these positions."""
    if list(numbers) == [0]:
        try:
            first = file.series[0].pages[0]
        except Exception:  # its notes are damaged
            first = None
        return [_Page(first or file.pages.first)]
    series = file.series[0]
    if len(series.pages) == 1:  # ImageJ writes one page of a stack beyond 4 GiB; the others' pixels follow it
        page = series.keyframe
        return [_Page(page, number * page.nbytes) for number in numbers]
    pages = [series.pages[number] for number in numbers]
    if any(page is None for page in pages):
        raise SOTRError(f"{name}: the plane is missing in the file, or lies in another one; save all in one file")
    return [_Page(page) for page in pages]


class TiffImage:
    """An image of a TIFF file, whose strips or tiles are decoded when they are asked for.

    `height` and `width` are those of the upright image.

    Args:
        pages: the brightest values of these are the image.
        name: what messages call it.
        sample: the only one to take of a page's samples.
        intensity: which values become black and white.
    """

    def __init__(
        self, pages: Sequence[_Page], name: str, sample: int | None = None, intensity: IntensityRange | None = None
    ) -> None:
        page = pages[0].page.keyframe
        self._pages, self._page, self.name, self._sample = pages, page, name, sample
        self._intensity = intensity
        self._orientation = int(page.tags.valueof("Orientation", default=1))
        if self._orientation not in TURNS:
            self._orientation = 1
        self.stored_size = int(page.imagelength), int(page.imagewidth)
        self.height, self.width = self.stored_size[:: -1 if self._orientation > 4 else 1]
        self.is_tiled = bool(page.is_tiled)
        self._photometric, self._samples = int(page.photometric), int(page.samplesperpixel)
        self._bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        if min(self.stored_size) < 1 or page.dtype is None:
            raise SOTRError(f"{name}: is damaged or of an unsupported kind; it has no pixels")
        self._dtype = np.dtype(page.dtype)
        self._check_kind()

    def _check_kind(self) -> None:
        page, name = self._page, self.name
        if page.imagedepth != 1 or self._dtype.kind not in "buif":
            raise UnsupportedTiffError(f"{name}: is a volume or has complex numbers; save its images as PNG or TIFF")
        subsampled = page.is_subsampled and page.compression != _JPEG
        if page.compression == _OLD_JPEG or subsampled or self._photometric > _YCBCR:
            raise UnsupportedTiffError(f"{name}: has a color space or compression of its own; save it as RGB")
        colors = {_RGB: 3, _YCBCR: 3, _CMYK: 4}.get(self._photometric, 1)
        extra = 0 if self._sample is not None else self._samples - colors
        kinds = tuple(map(int, page.extrasamples))
        if extra < 0 or (extra and colors == 1 and not (extra == 1 and kinds and kinds[0] in (0, 1, 2))):
            raise SOTRError(
                f"{name}: has {self._samples} channels, and nothing says which are red, green and blue; "
                "save it as RGB, or one gray image for each channel"
            )
        self._colors = 1 if self._sample is not None else colors
        self._premultiplied = bool(extra and kinds and kinds[0] == _PREMULTIPLIED)
        segment = (page.tilelength * page.tilewidth if self.is_tiled else min(page.rowsperstrip, page.imagelength)) * (
            1 if self.is_tiled else page.imagewidth
        )
        if segment * self._samples * self._dtype.itemsize > MAX_SEGMENT_BYTES:
            raise SOTRError(f"{name}: its strips or tiles are too large to decode; save it again in smaller tiles")

    def read(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        """The pixels of a rectangle of the upright image, half-open: rows x columns x 3, uint8, RGB.

        Raises:
            SOTRError: a strip or tile that it needs is damaged.
        """
        height, width = self.stored_size
        rows, columns = (x0, x1) if self._orientation > 4 else (y0, y1), (y0, y1) if self._orientation > 4 else (x0, x1)
        if self._orientation in (3, 4, 6, 7):
            rows = height - rows[1], height - rows[0]
        if self._orientation in (2, 3, 7, 8):
            columns = width - columns[1], width - columns[0]
        with _quietly():
            rgb = self._rgb(self._values(self._stored(rows, columns)))
        return np.ascontiguousarray(TURNS[self._orientation](rgb))

    def numbers(self) -> NDArray[Any]:
        """The whole image as it is stored: not turned, not scaled, and without colors for a palette's indices."""
        height, width = self.stored_size
        with _quietly():
            values = self._stored((0, height), (0, width))
        return values[..., 0] if values.shape[2] == 1 else values

    def values(self) -> NDArray[Any]:
        """The whole upright image as it is stored, without alpha: rows x columns, or rows x columns x 3."""
        height, width = self.stored_size
        with _quietly():
            values = self._values(self._stored((0, height), (0, width)))
        return np.ascontiguousarray(TURNS[self._orientation](values))

    @cached_property
    def _limits(self) -> Limits | None:
        """The least and the largest finite value of the whole file; None where none is needed."""
        if self._dtype.kind in "b" or (self._bits <= 8 and self._dtype.kind == "u"):
            return None
        found = [limits for part in self._parts() if (limits := limits_of(self._values(part))) is not None]
        return (min(low for low, _ in found), max(high for _, high in found)) if found else None

    @cached_property
    def _ends(self) -> Limits | None:
        """The values that become black and white by `intensity`; None where the usual rule holds."""
        if self._intensity is None:
            return None
        height, width = self.stored_size
        ends = self._intensity.limits(
            (self._values(part) for part in self._parts()), height * width * (3 if self._colors > 1 else 1)
        )
        return ends if ends is not None and ends[0] < ends[1] else None

    def _parts(self) -> Iterator[NDArray[Any]]:
        """The stored image in bands of whole strips or tiles."""
        page, (height, width) = self._page, self.stored_size
        band = page.tilelength if self.is_tiled else min(page.rowsperstrip, height)
        step = page.tilewidth if self.is_tiled else width
        band *= 1 if self.is_tiled else max(1, 2**22 // max(1, band * width))
        for top in range(0, height, band):
            for left in range(0, width, step):
                yield self._stored((top, min(top + band, height)), (left, min(left + step, width)))

    def _stored(self, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[Any]:
        """A rectangle of the image as stored, rows x columns x samples."""
        parts = [self._stored_of(page, rows, columns) for page in self._pages[:1]]
        for page in self._pages[1:]:
            np.maximum(parts[0], self._stored_of(page, rows, columns), out=parts[0])
        return parts[0]

    def _stored_of(self, own: _Page, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[Any]:
        page, (height, width) = self._page, self.stored_size
        tile_h, tile_w = (page.tilelength, page.tilewidth) if self.is_tiled else (page.rowsperstrip, width)
        tile_h, per_row = min(tile_h, height) if not self.is_tiled else tile_h, math.ceil(width / tile_w)
        planes = self._samples if self._samples > 1 and page.planarconfig != 1 else 1
        values = np.zeros((rows[1] - rows[0], columns[1] - columns[0], self._samples), self._dtype)
        for plane in range(planes) if self._sample is None or planes == 1 else [self._sample]:
            channels = slice(plane, plane + 1) if planes > 1 else slice(None)
            for row in range(rows[0] // tile_h, math.ceil(rows[1] / tile_h)):
                for column in range(columns[0] // tile_w, math.ceil(columns[1] / tile_w)):
                    y, x = row * tile_h, column * tile_w
                    index = (plane * math.ceil(height / tile_h) + row) * per_row + column
                    part = self._segment(own, index, min(tile_h, height - y), min(tile_w, width - x))
                    part = part[max(0, rows[0] - y) : rows[1] - y, max(0, columns[0] - x) : columns[1] - x]
                    top, left = max(y, rows[0]) - rows[0], max(x, columns[0]) - columns[0]
                    values[top : top + part.shape[0], left : left + part.shape[1], channels] = part
        return values

    def _segment(self, own: _Page, index: int, height: int, width: int) -> NDArray[Any]:
        """The strip or tile of this position, rows x columns x samples, cut at the end of the image."""
        page, what = self._page, "tile" if self.is_tiled else "strip"
        try:
            offset, count = own.page.dataoffsets[index] + own.shift, own.page.databytecounts[index]
            file = page.parent.filehandle
            file.seek(offset)
            data = file.read(count)
            if len(data) < count:
                raise SOTRError("the file ends before it does")
            part, _, shape = page.decode(data or None, index, jpegtables=own.page.jpegtables)
            if part is None:  # a tile may be left out of the file: it is black
                return np.zeros((height, width, shape[3]), self._dtype)
            if part.shape[1] < height or part.shape[2] < width:
                raise SOTRError("it has fewer pixels than it should")
        except Exception as error:  # decoders raise almost anything
            raise SOTRError(f"{self.name}: {what} {index} is damaged; {_reason(error)}") from None
        return np.asarray(part[0, :height, :width])

    def _values(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Gray (rows x columns) or color (rows x columns x 3 or 4) values without alpha and other channels."""
        if self._sample is not None:
            return stored[..., self._sample]
        values = stored[..., : self._colors]
        if self._photometric == _PALETTE:
            return self._palette[values[..., 0]]
        if self._premultiplied:
            alpha = stored[..., self._colors : self._colors + 1].astype(np.float64)
            most = 1.0 if stored.dtype.kind == "f" else float(2**self._bits - 1)
            whole = values * np.divide(most, alpha, out=np.ones_like(alpha), where=alpha > 0)
            if stored.dtype.kind != "f":
                whole = np.minimum(whole, most)  # cut, as Pillow does
            values = whole.astype(stored.dtype)
        return values[..., 0] if self._colors == 1 else values

    @cached_property
    def _palette(self) -> NDArray[np.uint8]:
        """Numbers x 3. Some programs write colors of 8 bits where 16 are due."""
        colors = np.asarray(self._page.colormap)
        return (colors if colors.max() < 256 else colors >> 8).astype(np.uint8).T

    def _rgb(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        if self._photometric == _PALETTE:
            return values
        if self._photometric in (_CMYK, _YCBCR):
            if values.dtype != np.uint8:
                values = np.rint(values * (255 / (2**self._bits - 1))).astype(np.uint8)
            if self._photometric == _YCBCR and self._page.compression == _JPEG:
                return values  # tifffile decodes JPEG to RGB
            mode = "CMYK" if self._photometric == _CMYK else "YCbCr"
            height, width = values.shape[:2]
            return np.array(Image.frombytes(mode, (width, height), values.tobytes()).convert("RGB"))
        grey = self._scaled(values)
        return np.repeat(grey[..., None], 3, axis=2) if grey.ndim == 2 else grey

    def _scaled(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Gray or RGB values in 0..255."""
        white_is_zero = self._photometric == _WHITE_IS_ZERO and self._sample is None
        if (ends := self._ends) is not None:
            grey = stretched(values, ends)
            return 255 - grey if white_is_zero else grey
        limits, declared = self._limits, 2**self._bits - 1 if self._dtype.kind == "u" else None
        if self._dtype.kind == "b" or self._bits < 8:
            grey = (values * (255 / (2**self._bits - 1))).astype(np.uint8)
            return 255 - grey if white_is_zero else grey
        if white_is_zero:
            return invert(values, limits, declared)
        return scale_to_8_bit(values, limits, declared)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
