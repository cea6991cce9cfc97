"""From dense predictions to objects."""

from sotr.decode_options import DecodeOptions
from sotr.decoding.decode import Found, decode, find, finish
from sotr.decoding.matrix_nms import matrix_nms

__all__ = ["DecodeOptions", "Found", "decode", "find", "finish", "matrix_nms"]
