"""From dense predictions to objects."""

from sotr.decoding.decode import DecodeOptions, decode
from sotr.decoding.matrix_nms import matrix_nms

__all__ = ["DecodeOptions", "decode", "matrix_nms"]
