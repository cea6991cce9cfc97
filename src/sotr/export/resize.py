"""Bilinear resizing with antialiasing, as PyTorch does it for pictures of bytes. NumPy only.

PyTorch, and torchvision with it, rounds the weights of the resampling to 16 bits on processors with AVX2. The same
rounding here makes the same bytes, so that an exported model sees exactly what PyTorch's sees. (Pillow, with weights of
32 bits, differs by a grey level in about a pixel of a thousand, which moves scores by some 0.0005. So does PyTorch on
other processors.)
"""

import numpy as np
from numpy.typing import NDArray

WEIGHT_BITS = 15
"""Weights are below 2 to the power of this."""

MOST_PRECISION = 22
"""Bits behind the binary point of a weight, at most."""


def resize(image_HW3: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """An RGB picture at another size, uint8 height x width x 3."""
    # Rows first become shorter, then fewer; each step rounds to bytes.
    shorter = _resample(image_HW3.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return _resample(shorter, height)


def _resample(lines: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resample along the first axis."""
    length = len(lines)
    if length == size:
        return lines
    first, weights, precision = _taps(length, size)
    total = np.full((size, *lines.shape[1:]), 1 << (precision - 1), np.int32)
    for tap in range(weights.shape[1]):  # two of them to enlarge, some more to shrink
        # Where there are fewer taps than that the weight is zero.
        chosen = lines[np.minimum(first + tap, length - 1)]
        total += chosen * weights[:, tap, None, None]
    return np.clip(total >> precision, 0, 255).astype(np.uint8)


def _taps(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
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
