"""Bilinear resizing with antialiasing, as PyTorch does it for images of bytes. NumPy only."""

import numpy as np
from numpy.typing import NDArray

from sotr.data.byte_taps import byte_taps


def resize(image_HW3: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """An RGB image at another size, uint8 height x width x 3."""
    # Rows first become shorter, then fewer; each step rounds to bytes.
    shorter = _resample(image_HW3.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return _resample(shorter, height)


def _resample(lines: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resample along the first axis."""
    length = len(lines)
    if length == size:
        return lines
    first, weights, precision = byte_taps(length, size)
    total = np.full((size, *lines.shape[1:]), 1 << (precision - 1), np.int32)
    for tap in range(weights.shape[1]):  # two of them to enlarge, some more to shrink
        # Where there are fewer taps than that the weight is zero.
        chosen = lines[np.minimum(first + tap, length - 1)]
        total += chosen * weights[:, tap, None, None]
    return np.clip(total >> precision, 0, 255).astype(np.uint8)
