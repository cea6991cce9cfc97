"""What objects know of the image they came from."""

import weakref
from pathlib import Path
from typing import Any


class SourceImage:
    """The image that objects came from: a file by its path, anything else by a weak reference.

    It keeps no image in memory. A copy, or one that was pickled, knows files only.
    """

    def __init__(self, image: Any) -> None:
        """Refer to a file name, an array, a PIL image or a tensor; bytes and file objects are not kept."""
        self._path = Path(image).absolute() if isinstance(image, (str, Path)) else None
        gone = self._path is not None or image is None or isinstance(image, (bytes, bytearray, memoryview))
        self._weak = None if gone or hasattr(image, "read") else weakref.ref(image)

    def image(self) -> Any:
        """The path, or the object if it is still there; else None."""
        return self._path if self._weak is None else self._weak()

    def __reduce__(self) -> tuple[Any, ...]:
        return SourceImage, (self._path,)
