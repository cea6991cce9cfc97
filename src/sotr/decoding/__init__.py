"""From dense predictions to objects. The options need no PyTorch."""

from typing import TYPE_CHECKING

from sotr.lazy import lazy_names

if TYPE_CHECKING:
    from sotr.decoding.decode import Found, decode, find, finish
    from sotr.decoding.matrix_nms import matrix_nms
    from sotr.decoding.options import DecodeOptions

__all__ = ["DecodeOptions", "Found", "decode", "find", "finish", "matrix_nms"]

_HOMES = {
    "DecodeOptions": "sotr.decoding.options",
    "Found": "sotr.decoding.decode",
    "decode": "sotr.decoding.decode",
    "find": "sotr.decoding.decode",
    "finish": "sotr.decoding.decode",
    "matrix_nms": "sotr.decoding.matrix_nms",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
