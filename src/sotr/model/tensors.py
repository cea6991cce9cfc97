"""State dicts of other people's files: safetensors, PyTorch's format, pickles of NumPy arrays. Nothing is executed."""

import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sotr.errors import SOTRError, first_line

NESTED = ("state_dict", "model")
"""Keys under which tools keep a state dict, outermost first."""

_NUMPY = {
    (module, name)
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar", "ndarray", "dtype")
}
_PLAIN = _NUMPY | {("collections", "OrderedDict"), ("_codecs", "encode")}
"""What a pickle of arrays may name: none of these runs code."""


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint.

    Read are .safetensors, .pkl of NumPy arrays as detectron2 writes them, and anything else as PyTorch's format with
    `weights_only`. A state dict may lie under "state_dict" or "model", and names may begin with "module.". NumPy arrays
    and scalars become tensors; other entries beside them are left out.

    Raises:
        SOTRError: the file is absent or damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise SOTRError(f"{path}: no such file")
    try:
        content = _content(path)
    except Exception as error:  # the bytes of a damaged file lead anywhere
        reason = first_line(error).split(". ")[0][:200]  # PyTorch explains at length; the first sentence says it
        raise SOTRError(
            f"{path} cannot be read as plain tensors, and nothing else is read, for a pickle can run any code "
            f"({reason}); save its state dict anew with torch.save or safetensors where you trust it"
        ) from None
    for key in NESTED * 2:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {name: _tensor(value) for name, value in content.items()} if isinstance(content, dict) else {}
    found = {str(name).removeprefix("module."): value for name, value in tensors.items() if value is not None}
    if not found:
        raise SOTRError(f"{path} does not hold a state dict, names with tensors, at its top or under 'model'")
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"no sound safetensors file: {error}") from None
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            return _Plain(file, encoding="latin1").load()
    with torch.serialization.safe_globals(_numpy_types()):
        return torch.load(path, map_location="cpu", weights_only=True)


def _numpy_types() -> list[Any]:
    """What PyTorch's reader must be told is harmless."""
    multiarray = import_module("numpy._core.multiarray")
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8")]
    return [np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar, *kinds]


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiu":
        return torch.from_numpy(np.ascontiguousarray(value).copy())
    return None
