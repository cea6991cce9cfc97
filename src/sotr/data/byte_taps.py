"""The weights with which PyTorch resizes images of bytes, bilinear with antialiasing. NumPy only.

PyTorch, and torchvision with it, rounds the weights of the resampling to 16 bits on processors with AVX2. The same
rounding elsewhere makes the same bytes, so that an exported model, and one on a GPU, sees exactly what PyTorch's sees.
(Pillow, with weights of 32 bits, differs by a gray level in about a pixel of a thousand, which moves scores by some
0.0005. So does PyTorch on other processors.)
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WEIGHT_BITS = 15
"""Weights are below 2 to the power of this."""

MOST_PRECISION = 22
"""Bits behind the binary point of a weight, at most."""


@lru_cache(maxsize=64)
def byte_taps(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """For each new place the first old one that counts, weights (size, taps), and the bits behind their points."""
    scale = length / size
    support = max(scale, 1.0)
    center = scale * (np.arange(size) + 0.5)
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    stop = np.minimum((center + support + 0.5).astype(np.int64), length)
    place = first[:, None] + np.arange(int((stop - first).max()))
    weights = np.maximum(0.0, 1 - np.abs((place - center[:, None] + 0.5) / support))
    weights[place >= stop[:, None]] = 0
    weights /= weights.sum(1, keepdims=True)
    largest = weights.max()
    precision = 0
    while precision < MOST_PRECISION and int(0.5 + largest * (1 << (precision + 1))) < 1 << WEIGHT_BITS:
        precision += 1
    return first, (0.5 + weights * (1 << precision)).astype(np.int32), precision
