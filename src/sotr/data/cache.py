"""What is expensive to find out about a data set, kept in the user's cache folder: flat arrays, no pickle.

A file there is only ever a shortcut: one that is absent, damaged or of another version is made again.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from sotr.files import atomic_write, cache_folder

KEPT = 16
"""Files of a kind that are kept, those last used."""

_TYPES = {"BOOL": np.bool_, "U8": np.uint8, "U64": np.uint64, "I64": np.int64, "F64": np.float64}
_BLOCK = 2**20


def load_arrays(kind: str, key: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]] | None:
    """The arrays and texts that `save_arrays` kept, or None.

    The arrays are read-only and mapped into memory: processes share them, and only what is used is read.
    """
    path = _path(kind, key)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
            texts: dict[str, str] = header.pop("__metadata__")
            checks: dict[str, int] = json.loads(texts.pop("crc32"))
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                check = 0
                for done in range(0, end - begin, _BLOCK):
                    check = zlib.crc32(file.read(min(_BLOCK, end - begin - done)), check)
                if check != checks[name]:
                    return None
        content = np.memmap(path, np.uint8, "r", offset=8 + length)
        arrays = {
            name: content[slice(*entry["data_offsets"])].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in header.items()
        }
        os.utime(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        return None
    return arrays, texts


def save_arrays(kind: str, key: str, arrays: Mapping[str, NDArray[Any]], texts: Mapping[str, str]) -> None:
    """Keep arrays and texts under a key; where the folder cannot be written, nothing is kept and nothing fails."""
    path = _path(kind, key)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    checks = {name: zlib.crc32(array.reshape(-1).view(np.uint8).data) for name, array in whole.items()}
    try:
        with atomic_write(path) as file:
            save_file(whole, file.name, {**texts, "crc32": json.dumps(checks)})
        others = sorted(path.parent.glob("*.safetensors"), key=lambda other: other.stat().st_mtime)
        for old in others[:-KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, SafetensorError):  # the latter hides a full disk
        return


def _path(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{key}.safetensors"
