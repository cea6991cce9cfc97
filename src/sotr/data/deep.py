"""Color of more than 8 bits in PNG, PNM and JPEG 2000 files, which Pillow would cut to its upper 8 bits."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile


def deep_values(image: Image.Image, source: Path | bytes) -> tuple[NDArray[Any], int] | None:
    """The values as stored, rows x columns, or rows x columns x 3, without alpha, and the largest that the file allows;
    None where Pillow keeps all of them.

    Args:
        image: the file, opened but not loaded.
        source: the file.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return None
    if image.format == "PPM":
        return _pnm(image, source)
    if image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA") and str(image.tile[0][3]).endswith("16B"):
        import imagecodecs  # only where it is needed

        return _colors(imagecodecs.png_decode(_bytes(source))), 2**16 - 1
    if image.format == "JPEG2000" and image.mode in ("I;16", "I", "RGB", "RGBA", "LA"):
        content = _bytes(source)
        start = content.find(b"\xff\x4f\xff\x51")  # the codestream's first two markers
        bits = (content[start + 42] & 0x7F) + 1 if 0 <= start < len(content) - 42 else 0
        if bits > 8:
            import imagecodecs

            return _colors(imagecodecs.jpeg2k_decode(content)), 2**bits - 1
    return None


def _colors(values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim == 2:
        return values
    return values[..., :3] if values.shape[2] > 2 else values[..., 0]


def _pnm(image: ImageFile.ImageFile, source: Path | bytes) -> tuple[NDArray[Any], int] | None:
    """PGM and PPM whose largest value is to be more than 255."""
    codec, _, offset, arguments = image.tile[0]
    most = arguments[1] if isinstance(arguments, tuple) else 0
    content = _bytes(source)
    if image.mode not in ("I", "RGB") or content[:2] not in (b"P2", b"P3", b"P5", b"P6"):
        return None
    if codec == "raw":  # Pillow keeps gray of 16 bits as it is
        return None
    if not isinstance(most, int) or most <= 255:
        return None
    shape = (image.height, image.width) if image.mode == "I" else (image.height, image.width, 3)
    count = int(np.prod(shape))
    if content[:2] in (b"P5", b"P6"):
        return np.frombuffer(content, ">u2", count, offset).astype(np.uint16).reshape(shape), most
    words = re.sub(rb"#[^\n]*", b"", content[offset:]).split(maxsplit=count)[:count]
    values = np.array(words, np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("it has values outside of 0..65535")
    return values.astype(np.uint16).reshape(shape), most


def _bytes(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()
