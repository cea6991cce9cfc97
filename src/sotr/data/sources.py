"""What an image may be given as besides a file or an array: an open file, a tensor, a URL. PyTorch is not needed."""

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeGuard
from urllib.error import URLError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    UnknownHandler,
)

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sotr.errors import SOTRError, first_line

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor
else:
    Tensor = Any

ImageSource = str | Path | bytes | Image.Image | NDArray[Any] | IO[bytes] | Tensor
"""One image: see `load_image`."""

KINDS = "a file name, bytes, an open file, a PIL image, an array or a tensor"

URL_BYTES = 256 * 2**20
"""Bytes that a URL may give at most."""

URL_SECONDS = 30.0
"""Seconds that a URL may take."""


def is_one_image(source: Any) -> TypeGuard[ImageSource]:
    """Whether this is one image, rather than several or none."""
    plain = (str, Path, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    return isinstance(source, plain) or hasattr(source, "read") or _is_tensor(source)


def several_images(source: Any) -> Iterable[Any]:
    """The images of a list, a generator or the like.

    Raises:
        SOTRError: it is nothing of the kind.
    """
    if isinstance(source, Iterable) and not isinstance(source, Mapping):
        return source
    raise SOTRError(f"{type(source).__name__} is no image; give {KINDS}, or a list or generator of these")


def is_url(source: Any) -> bool:
    """Whether this is the address of something on the web."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def plain_source(source: Any) -> str | Path | bytes | Image.Image | NDArray[Any]:
    """An image as `load_image` decodes it: file objects are read from where they stand, tensors become arrays.

    A tensor is 3 x H x W, 1 x H x W, H x W x 3 or H x W; where both fit, channels come first. It holds uint8, or
    floating point in 0..1.

    Raises:
        SOTRError: it is no image, a URL, or a tensor of another kind.
    """
    if is_url(source):
        raise SOTRError(f"{source} is a URL; download it, or call model.predict(..., allow_url=True)")
    if isinstance(source, (str, Path, bytes, Image.Image, np.ndarray)):
        return source
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if _is_tensor(source):
        return _array_of(source)
    if hasattr(source, "read"):
        content = source.read()
        if not isinstance(content, bytes):
            raise SOTRError(f"{getattr(source, 'name', 'the open file')} is open as text; open it with mode 'rb'")
        if not content and not getattr(source, "name", None):
            raise SOTRError("the open file is empty or has been read; rewind it with seek(0)")
        return content
    raise SOTRError(f"{type(source).__name__} is no image; give {KINDS}")


def http_opener() -> OpenerDirector:
    """An opener for http and https only. That of urllib also follows redirects to FTP."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler,
        UnknownHandler,
        HTTPHandler,
        HTTPSHandler,
        HTTPRedirectHandler,
        HTTPDefaultErrorHandler,
        HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def fetched(url: str) -> bytes:
    """What is at an http or https address: at most `URL_BYTES`, within `URL_SECONDS`.

    Raises:
        SOTRError: it cannot be had, is too large, or takes too long.
    """
    opener = http_opener()
    opener.addheaders = [("User-Agent", "sotr")]
    end, content = time.monotonic() + URL_SECONDS, bytearray()
    try:
        with opener.open(url, timeout=URL_SECONDS) as answer:
            while part := answer.read1(2**20):
                content += part
                if len(content) > URL_BYTES:
                    raise SOTRError(f"{url}: exceeds {URL_BYTES / 2**20:.0f} MiB; download it, and give the file")
                if time.monotonic() > end:
                    raise TimeoutError(f"took more than {URL_SECONDS:.0f} s")
    except (OSError, ValueError, URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise SOTRError(f"{url}: cannot be fetched: {first_line(Exception(reason))}") from None
    return bytes(content)


def _is_tensor(source: Any) -> TypeGuard[Tensor]:
    # Who has a tensor has imported PyTorch.
    return "torch" in sys.modules and isinstance(source, sys.modules["torch"].Tensor)


def _array_of(tensor: Tensor) -> NDArray[Any]:
    """H x W or H x W x channels, of a tensor on any device."""
    shape = " x ".join(map(str, tensor.shape))
    if tensor.ndim == 4:
        raise SOTRError(f"<tensor>: shape {shape} is a batch; give a list of images, such as list(tensor)")
    array: NDArray[Any] = (tensor.detach().float() if tensor.is_floating_point() else tensor.detach()).cpu().numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)) or not array.size:
        raise SOTRError(f"<tensor>: shape {shape} is no image; give 3 x H x W, 1 x H x W, H x W x 3 or H x W")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise SOTRError(f"<tensor>: values of type {array.dtype}; give uint8, or floating point in 0..1")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise SOTRError(f"<tensor>: values from {low:g} to {high:g}; floating point must lie in 0..1, or give uint8")
    return np.rint(array * 255).astype(np.uint8)
