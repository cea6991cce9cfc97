"""The one image loader: any image file or array in, height x width x 3 uint8 RGB out."""

import glob
import io
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from sotr.data.choice import WHOLE, Choice
from sotr.data.costly import refuse_costly
from sotr.data.deep import deep_values
from sotr.data.scaling import scale_to_8_bit
from sotr.data.sources import ImageSource, plain_source
from sotr.data.stack import Stack
from sotr.data.tiff import MAGICS, TURNS, TiffImage, UnsupportedTiffError, open_tiff, stack_of
from sotr.errors import SOTRError

MAX_PIXELS = 200_000_000
"""Images with more pixels than this are refused unless the caller raises `max_pixels`."""

IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".gif", ".webp", ".avif"),
        *(".pgm", ".ppm", ".pbm", ".pnm", ".tif", ".tiff", ".btf", ".tf8", ".svs", ".lsm"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf"),
    }
)
"""File name endings, in lower case, that are taken for images when a folder or a glob is searched."""

MICROSCOPE_SUFFIXES = frozenset({".czi", ".nd2", ".lif", ".oib", ".oif", ".vsi", ".ims"})
"""File name endings, in lower case, of microscopes' own formats, which are not read."""

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "AVIF")
"""Pillow's names of the formats that are read. Others unpack images while they are opened (ICO, ICNS), hand what they
hold to any format (IPTC), or run it (EPS)."""

IGNORED_FOLDERS = frozenset({"__macosx", "$recycle.bin", "system volume information"})
"""Folders, in lower case, in which systems keep copies; folders whose name begins with a dot are passed over, too."""

LONGEST_NAME = 1000
"""Characters of a name that messages show."""

_PILLOW_LIMIT = threading.Lock()
_REMEDY = "save it again as PNG, JPEG or TIFF"


class PictureTooLargeError(SOTRError):
    """An image has more pixels than are accepted."""


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, choice: Choice = WHOLE) -> NDArray[np.uint8]:
    """Load an image as RGB, upright.

    What becomes of the less usual kinds:

    - The EXIF or TIFF orientation is applied. Of an animation the first image is taken.
    - Of a TIFF file with several channels or planes `choice` says which is meant.
    - Gray, palette, bilevel, CMYK and YCbCr become RGB. Transparency is dropped, not composited: the colors are those
      stored under the alpha channel. Premultiplied colors are divided by alpha.
    - Whole numbers of more than 8 bits, gray or color, in a file or an array, are scaled from the smallest of 0..255,
      0..511, 0..1023 and so on to 0..65535 that holds the largest value of the image, because cameras store fewer
      bits unscaled in 16-bit files. Files that declare 10 or 14 bits are scaled from that range. Gray TIFF files of
      which 0 is white are inverted before that.
    - Whole numbers beyond 0..65535 and floating point are scaled from the least to the largest finite value.
      Non-finite pixels become 0, and so does a flat image.
    - `choice.intensity` takes the place of these rules, for 8 bits too.

    Args:
        source: a file, the bytes of a file, a PIL image, or an array: H x W, H x W x 1, H x W x 3 (RGB) or H x W x 4
            (RGBA), uint8 (taken as it is) or uint16 (scaled as above); an open file; or a tensor, see `plain_source`.
        max_pixels: the largest width times height that is accepted.
        choice: channel and plane, where there are several, and the values that become black and white.

    Returns:
        A fresh, contiguous, writable array H x W x 3, uint8, RGB.

    Raises:
        PictureTooLargeError: if it has more than `max_pixels` pixels.
        SOTRError: if the file is missing, no image, truncated, or of an unsupported kind.
    """
    source = plain_source(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels, choice)
    name = "<PIL image>" if isinstance(source, Image.Image) else "<bytes>" if isinstance(source, bytes) else str(source)
    with _image(source, name, max_pixels, choice) as image:
        if isinstance(image, Image.Image):
            return _decode(image, name, choice, None if isinstance(source, Image.Image) else source)
        return image.read(0, 0, image.width, image.height)


def load_values(source: str | Path, *, max_pixels: int = MAX_PIXELS, choice: Choice = WHOLE) -> NDArray[Any]:
    """The values of all channels as they are stored, upright; CMYK, palettes and their like as RGB.

    Args:
        source: a file.
        max_pixels: the largest width times height that is accepted.
        choice: its plane; the channel does not count.

    Returns:
        H x W x channels.

    Raises:
        SOTRError: as `load_image`.
    """
    choice = replace(choice, channel=None, intensity=None)
    if (stack := image_stack(Path(source))) is not None and stack.channels > 1:
        parts = []
        for number in range(1, stack.channels + 1):
            with _image(source, str(source), max_pixels, replace(choice, channel=number)) as image:
                assert isinstance(image, TiffImage)
                parts.append(image.values())
        return np.stack(parts, 2)
    with _image(source, str(source), max_pixels, choice) as image:
        values = image.values() if isinstance(image, TiffImage) else _values(image, source)[0]
    return values[..., None] if values.ndim == 2 else values


def image_stack(path: Path) -> Stack | None:
    """What a TIFF file holds; None for other files, and for TIFF files that `sotr.data.tiff` does not read."""
    try:
        return stack_of(path, str(path)) if _begins(path) in MAGICS else None
    except (SOTRError, OSError):
        return None


@contextmanager
def _image(source: Any, name: str, max_pixels: int, choice: Choice) -> Iterator[Image.Image | TiffImage]:
    """An opened image of no more than so many pixels."""
    if isinstance(source, Image.Image):
        _check_pixels(source.width, source.height, name, max_pixels)
        yield source
        return
    refuse_costly(source, name)
    with _opened(source, name, choice) as image:
        _check_pixels(image.width, image.height, name, max_pixels)
        yield image


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as `load_image` would give them, read from the file's header alone.

    Raises:
        SOTRError: the file is missing or no image.
    """
    with _opened(path, str(path)) as image:
        turned = isinstance(image, Image.Image) and _orientation(image) > 4
        return (image.width, image.height) if turned else (image.height, image.width)


picture_size = image_size
"""The old name."""


@contextmanager
def _opened(source: str | Path | bytes, name: str, choice: Choice = WHOLE) -> Iterator[Image.Image | TiffImage]:
    """An image whose header has been read, by tifffile if it is a TIFF file of a kind that `sotr.data.tiff` reads.

    Raises:
        SOTRError: the file is missing or no image.
    """
    try:
        if _begins(source) in MAGICS:
            try:
                with open_tiff(source, name, choice) as tiff:
                    yield tiff
                    return
            except UnsupportedTiffError:
                # Of uncompressed files that it opens itself, Pillow maps the pixels, and maps some wrongly.
                source = source if isinstance(source, bytes) else Path(source).read_bytes()
        with _without_pillow_limit():
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())
    except SOTRError:
        raise
    except FileNotFoundError:
        raise SOTRError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise SOTRError(f"{name}: is a folder, not an image") from None
    except PermissionError:
        if Path(name).is_dir():  # so says Windows
            raise SOTRError(f"{name}: is a folder, not an image") from None
        raise SOTRError(f"{name}: may not be read; check its permissions") from None
    except UnidentifiedImageError:  # its text is the name once more
        empty = source == b"" if isinstance(source, bytes) else Path(source).stat().st_size == 0
        reason = "the file is empty" if empty else "its format is none that is known here"
        if not empty and Path(name).suffix.lower() in MICROSCOPE_SUFFIXES:
            raise SOTRError(f"{name}: is in a microscope's own format; export it as OME-TIFF") from None
        raise SOTRError(f"{name}: is not an image that can be read; {reason}; {_REMEDY}") from None
    except Exception as error:  # a damaged header makes Pillow's parsers raise almost anything
        raise SOTRError(f"{name}: is not an image that can be read; {_reason(error)}") from None
    with image:
        yield image


def _begins(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:4]
    with open(source, "rb") as file:
        return file.read(4)


def _orientation(image: Image.Image) -> int:
    """How the image is to be turned; 1 where the note about it is damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged notes make Pillow raise almost anything; the pixels may be sound
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


@contextmanager
def open_tiled(source: ImageSource, choice: Choice = WHOLE) -> Iterator[TiffImage | None]:
    """A tiled TIFF file, of which rectangles can be read; None for every other image, readable or not."""
    if not isinstance(source, (str, Path, bytes)):
        yield None
        return
    with ExitStack() as stack:
        try:
            tiff = stack.enter_context(
                open_tiff(source, "<bytes>" if isinstance(source, bytes) else str(source), choice)
            )
        except (SOTRError, OSError):
            tiff = None
        yield tiff if tiff is not None and tiff.is_tiled else None


def list_images(inputs: Sequence[str | Path], also: Collection[str] = ()) -> list[Path]:
    """The image files that `inputs` name, in order, each once however often and in whatever way it is named.

    Args:
        inputs: files (taken whatever their ending), folders (searched as `images_below` does), or
            glob patterns (`**` included; sorted, only `IMAGE_SUFFIXES`).
        also: more endings, in lower case, that are taken in folders and by patterns.

    Raises:
        SOTRError: for an input that does not exist or that holds no images.
    """
    if not inputs:
        raise SOTRError("no images given; name files, folders or glob patterns")
    found: dict[str, Path] = {}
    for item in inputs:
        path = Path(item)
        if is_file(path):
            matches = [path]
        elif os.path.isdir(path):
            matches = images_below(path, also)
            if not matches:
                raise SOTRError(f"{path}: the folder holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        elif glob.has_magic(str(item)):
            matches = sorted(Path(name) for name in glob.glob(str(item), recursive=True))
            matches = [file for file in matches if is_image(file, also) and not IGNORED_FOLDERS & set(_folders(file))]
            if not matches:
                raise SOTRError(f"{item}: the pattern matches no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        else:
            raise SOTRError(f"{str(item)[:LONGEST_NAME]}: no such file or folder")
        for match in matches:
            found.setdefault(os.path.abspath(match), match)
    return list(found.values())


def images_below(folder: Path, also: Collection[str] = ()) -> list[Path]:
    """The image files in a folder and the folders in it, sorted; hidden ones and systems' copies are passed over."""
    found: list[Path] = []
    for root, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".") and name.lower() not in IGNORED_FOLDERS]
        found += [path for name in files if is_image(path := Path(root, name), also)]
    return sorted(found)


def _folders(path: Path) -> list[str]:
    return [part.lower() for part in path.parts[:-1]]


def is_image(path: Path, also: Collection[str] = ()) -> bool:
    """Whether a file's name is that of an image, or has one of the other endings, and is not hidden."""
    return (
        (path.suffix.lower() in IMAGE_SUFFIXES or path.suffix.lower() in also)
        and not path.name.startswith(".")
        and is_file(path)
    )


def is_file(path: Path) -> bool:
    """Whether there is such a file; False, too, for names that cannot be."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


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


def _decode(image: Image.Image, name: str, choice: Choice, source: str | Path | bytes | None) -> NDArray[np.uint8]:
    values, declared = _values(image, source, name)
    return _scaled(values, choice, name, declared)


def _values(image: Image.Image, source: str | Path | bytes | None, name: str = "") -> tuple[NDArray[Any], int | None]:
    """Upright gray or RGB values, of 8 bits where they need no more, and the largest that the file allows."""
    name = name or str(source)
    if image.format == "EPS":  # Pillow would hand it to Ghostscript, an interpreter of programs
        raise SOTRError(f"{name}: is PostScript, which is run rather than read; {_REMEDY}")
    try:
        path = Path(source) if isinstance(source, str) else source
        if path is not None and (deep := deep_values(image, path)) is not None:
            return TURNS[_orientation(image)](deep[0]), deep[1]
        image.load()
        turn = TURNS[_orientation(image)]
        if image.mode.startswith("I") or image.mode == "F":
            return turn(np.asarray(image)), None
        if image.mode == "La":  # premultiplied alpha: Pillow has no direct way to RGB
            image = image.convert("LA")
        elif image.mode == "RGBa" or "transparency" in image.info:
            image = image.convert("RGBA")
        if image.mode not in ("L", "RGB"):
            image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
        return turn(np.asarray(image)), None
    except Exception as error:  # damaged data makes Pillow's decoders raise almost anything
        raise SOTRError(f"{name}: is damaged or of an unsupported kind; {_reason(error)}") from None


def _from_array(array: NDArray[Any], max_pixels: int, choice: Choice) -> NDArray[np.uint8]:
    shape = " x ".join(map(str, array.shape))
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        if array.ndim == 3 and array.shape[0] in (1, 3, 4) and 0 not in array.shape:
            raise SOTRError(f"<array>: shape {shape} has its channels first; give array.transpose(1, 2, 0)")
        raise SOTRError(f"<array>: shape {shape} is no image; give H x W, H x W x 3 (RGB) or H x W x 4 (RGBA)")
    if array.dtype not in (np.uint8, np.uint16):
        raise SOTRError(f"<array>: type {array.dtype} has no fixed range; scale it to 0..255 and give uint8")
    _check_pixels(array.shape[1], array.shape[0], "<array>", max_pixels)
    if array.ndim == 3 and array.shape[2] == 4:
        array = array[:, :, :3]
    return _scaled(array, choice, "<array>")


def _scaled(values: NDArray[Any], choice: Choice, name: str, declared: int | None = None) -> NDArray[np.uint8]:
    """The chosen channel of an image that is no TIFF file, or all of it, in 8 bits and RGB."""
    channel, plane, count = choice.channel, choice.plane, 1 if values.ndim == 2 else values.shape[2]
    if channel is not None and (isinstance(channel, str) or channel > count):
        raise SOTRError(f"{name}: has no channel {channel!r}; it has {count}, and the first is 1")
    if isinstance(plane, int) and plane > 1:
        raise SOTRError(f"{name}: holds one image, and no plane {plane}")
    if channel is not None and values.ndim == 3:
        values = values[..., int(channel) - 1]
    if choice.intensity is not None:
        return _stack(choice.intensity.apply(values))
    return _stack(scale_to_8_bit(values, declared=declared))


def _stack(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows x columns x 3, in memory of its own."""
    if values.ndim == 2 or values.shape[2] == 1:
        return np.repeat(values.reshape(*values.shape[:2], 1), 3, axis=2)
    return np.array(values, order="C")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text[:200] or type(error).__name__}; {_REMEDY}"
