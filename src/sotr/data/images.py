"""The one image loader: any picture file or array in, height x width x 3 uint8 RGB out."""

import glob
import io
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sotr.errors import SOTRError

MAX_PIXELS = 200_000_000
"""Pictures with more pixels than this are refused unless the caller raises `max_pixels`."""

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm", ".jp2", ".avif"}
)
"""File name endings, in lower case, that are taken for pictures when a folder or a glob is searched."""

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "AVIF")
"""Pillow's names of the formats that are read. Others unpack pictures while they are opened (ICO, ICNS), hand what they
hold to any format (IPTC), or run it (EPS)."""

_CAMERA_DEPTHS = (8, 12, 16)
_ORIENTATION = 0x0112  # the EXIF tag
_PILLOW_LIMIT = threading.Lock()
_REMEDY = "save it again as PNG, JPEG or TIFF"


class PictureTooLargeError(SOTRError):
    """A picture has more pixels than are accepted."""


ImageSource = str | Path | bytes | Image.Image | NDArray[Any]


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Load a picture as RGB, upright.

    What becomes of the less usual kinds:

    - EXIF orientation is applied; of an animation or multi-page file the first frame is taken.
    - Grey, palette, bilevel, CMYK and YCbCr are converted to RGB; transparency is dropped, not composited: the
      colours are those stored under the alpha channel.
    - 16-bit grey is scaled linearly to 8 bit from 0..255, 0..4095 or 0..65535, whichever is the smallest that holds
      the file's largest value, because 12-bit cameras store their values unscaled in 16-bit files. (16-bit RGB PNG is
      reduced by the decoder to its upper 8 bits.)
    - 32-bit integer grey within 0..65535 follows the same rule; outside of it, and for floating point, the finite
      values are scaled linearly from their minimum..maximum; non-finite pixels become 0, and so does a flat picture.

    Args:
        source: a file, the bytes of a file, a PIL image, or an array: H x W, H x W x 1, H x W x 3 (RGB) or H x W x 4
            (RGBA), uint8 (taken as it is) or uint16 (scaled as above).
        max_pixels: the largest width times height that is accepted.

    Returns:
        A fresh, contiguous, writable array H x W x 3, uint8, RGB.

    Raises:
        PictureTooLargeError: if it has more than `max_pixels` pixels.
        SOTRError: if the file is missing, no picture, truncated, or of an unsupported kind.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _decode(source, "<PIL image>", max_pixels)
    name = "<bytes>" if isinstance(source, bytes) else str(source)
    try:
        with _without_pillow_limit():
            picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())
    except FileNotFoundError:
        raise SOTRError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise SOTRError(f"{name}: is a folder, not a picture") from None
    except PermissionError:
        raise SOTRError(f"{name}: may not be read; check its permissions") from None
    except UnidentifiedImageError:  # its text is the name once more
        empty = source == b"" if isinstance(source, bytes) else Path(source).stat().st_size == 0
        reason = "the file is empty" if empty else "its format is none that is known here"
        raise SOTRError(f"{name}: is not a picture that can be read; {reason}; {_REMEDY}") from None
    except Exception as error:  # a damaged header makes Pillow's parsers raise almost anything
        raise SOTRError(f"{name}: is not a picture that can be read; {_reason(error)}") from None
    with picture:
        return _decode(picture, name, max_pixels)


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) as `load_image` would give them, read from the file's header alone.

    Raises:
        SOTRError: the file is missing or no picture.
    """
    try:
        with _without_pillow_limit():
            picture = Image.open(path, formats=_formats())
        with picture:
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (picture.width, picture.height) if turned else (picture.height, picture.width)
    except FileNotFoundError:
        raise SOTRError(f"{path}: no such file") from None
    except Exception as error:  # a damaged header makes Pillow's parsers raise almost anything
        raise SOTRError(f"{path}: is not a picture that can be read; {_reason(error)}") from None


def list_images(inputs: Sequence[str | Path]) -> list[Path]:
    """The picture files that `inputs` name, in order, each once however often and in whatever way it is named.

    Args:
        inputs: files (taken whatever their ending), folders (searched recursively for `IMAGE_SUFFIXES`, sorted), or
            glob patterns (`**` included; sorted, only `IMAGE_SUFFIXES`).

    Raises:
        SOTRError: for an input that does not exist or that holds no pictures.
    """
    if not inputs:
        raise SOTRError("no pictures given; name files, folders or glob patterns")
    found: dict[str, Path] = {}
    for item in inputs:
        path = Path(item)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = sorted(file for file in path.rglob("*") if _looks_like_picture(file))
            if not matches:
                raise SOTRError(f"{path}: the folder holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
        elif glob.has_magic(str(item)):
            matches = sorted(Path(name) for name in glob.glob(str(item), recursive=True))
            matches = [file for file in matches if _looks_like_picture(file)]
            if not matches:
                raise SOTRError(f"{item}: the pattern matches no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
        else:
            raise SOTRError(f"{item}: no such file or folder")
        for match in matches:
            found.setdefault(os.path.abspath(match), match)
    return list(found.values())


def _looks_like_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # some are left out when Pillow is built


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Let `max_pixels`, not Pillow's own global limit, decide; `Image.open` reads headers only, so this is brief."""
    with _PILLOW_LIMIT:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PictureTooLargeError(
            f"{name}: {width} x {height} is {width * height / 1e6:.0f} megapixels, over the limit of "
            f"{max_pixels / 1e6:.0f}; cut or shrink it, predict in pieces with --tile, or raise max_pixels"
        )


def _decode(picture: Image.Image, name: str, max_pixels: int) -> NDArray[np.uint8]:
    _check_pixels(picture.width, picture.height, name, max_pixels)
    if picture.format == "EPS":  # Pillow would hand it to Ghostscript, an interpreter of programs
        raise SOTRError(f"{name}: is PostScript, which is run rather than read; {_REMEDY}")
    try:
        picture.load()
        if picture.getexif().get(_ORIENTATION, 1) != 1:  # otherwise Pillow would copy the picture
            picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I") or picture.mode == "F":
            return _stack(scale_to_8_bit(np.asarray(picture)))
        if picture.mode == "La":  # premultiplied alpha: Pillow has no direct way to RGB
            picture = picture.convert("LA")
        elif picture.mode == "RGBa" or "transparency" in picture.info:
            picture = picture.convert("RGBA")
        return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except Exception as error:  # damaged data makes Pillow's decoders raise almost anything
        raise SOTRError(f"{name}: is damaged or of an unsupported kind; {_reason(error)}") from None


def _from_array(array: NDArray[Any], max_pixels: int) -> NDArray[np.uint8]:
    shape = " x ".join(map(str, array.shape))
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise SOTRError(f"<array>: shape {shape} is no picture; give H x W, H x W x 3 (RGB) or H x W x 4 (RGBA)")
    if array.dtype not in (np.uint8, np.uint16):
        raise SOTRError(f"<array>: type {array.dtype} has no fixed range; scale it to 0..255 and give uint8")
    _check_pixels(array.shape[1], array.shape[0], "<array>", max_pixels)
    if array.ndim == 3 and array.shape[2] == 4:
        array = array[:, :, :3]
    values = array if array.dtype == np.uint8 else scale_to_8_bit(array)
    if values.ndim == 3 and values.shape[2] == 3:
        return np.array(values, order="C")
    return _stack(values.reshape(values.shape[:2]))


def scale_to_8_bit(values: NDArray[Any], largest: int | None = None) -> NDArray[np.uint8]:
    """Scale grey values as `load_image` documents; `largest` is the file's largest value, if these are a part of it."""
    if np.issubdtype(values.dtype, np.integer) and values.min() >= 0 and values.max() < 2 ** _CAMERA_DEPTHS[-1]:
        most = values.max() if largest is None else largest
        depth = next(bits for bits in _CAMERA_DEPTHS if most < 2**bits)
        return np.rint(values.astype(np.float32) * (255 / (2**depth - 1))).astype(np.uint8)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = float(values[finite].min()), float(values[finite].max())
    if high == low:
        return np.zeros(values.shape, np.uint8)
    share = (np.where(finite, values, low).astype(np.float64) - low) / (high - low)
    return np.rint(share * 255).astype(np.uint8)


def _stack(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text or type(error).__name__}; {_REMEDY}"
