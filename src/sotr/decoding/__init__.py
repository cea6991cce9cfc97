"""From dense predictions to objects."""

from sotr.decode_options import DecodeOptions
from sotr.decoding.decode import decode
from sotr.decoding.matrix_nms import matrix_nms

__all__ = ["DecodeOptions", "decode", "matrix_nms"]
