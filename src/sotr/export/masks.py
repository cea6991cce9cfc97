"""What is left to do with an exported model's masks: bring them to the image's own size. NumPy only.

The same arithmetic as `sotr.decoding` does with PyTorch: bilinear to the padded input, cut to the image, bilinear to
its original size. Both steps are linear along each axis, so that they are one small matrix per axis; and where a mask
is far below its threshold nothing is computed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sotr.decode_options import DecodeOptions


def full_size_rles(
    logits_Ihw: NDArray[np.float32],
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    original_size: tuple[int, int],
    options: DecodeOptions,
) -> list[dict[str, Any] | None]:
    """COCO RLEs, as lists of run lengths, of mask logits; None where no pixel is left.

    Args:
        padded_size: (H, W) of the network's input.
        image_size: (h, w) of the part of it that is image.
        original_size: (H, W) of the image itself, the size of the results.
    """
    level = options.threshold_logit
    if options.upsample == "probabilities":
        # In two steps, for exp of a large number overflows.
        logits_Ihw = np.float32(1) / (np.float32(1) + np.exp(-np.clip(logits_Ihw, -80, 80)))
        level = options.mask_threshold
    axes = [_Axis(*sizes) for sizes in zip(logits_Ihw.shape[1:], padded_size, image_size, original_size, strict=True)]
    return [_rle(map_hw, level, *axes) for map_hw in logits_Ihw]


class _Axis:
    """Resampling along one axis as a matrix (new, old), and which old places each new one draws from."""

    def __init__(self, old: int, padded: int, kept: int, new: int) -> None:
        matrix = _interpolation(old, padded)[:kept]
        if kept != new:
            matrix = _interpolation(kept, new) @ matrix
        self.matrix = matrix.astype(np.float32)
        used = self.matrix > 0
        self.first, self.stop = used.argmax(1), old - used[:, ::-1].argmax(1)

    def drawing_from(self, start: int, stop: int) -> tuple[slice, slice]:
        """The new places that draw from the old ones `start` up to `stop`, and all old ones that they draw from."""
        new = slice(
            int(np.searchsorted(self.stop, start, side="right")), int(np.searchsorted(self.first, stop, side="left"))
        )
        if new.start >= new.stop:
            return slice(0, 0), slice(0, 0)
        return new, slice(int(self.first[new.start]), int(self.stop[new.stop - 1]))


def _interpolation(old: int, new: int) -> NDArray[np.float64]:
    """The matrix (new, old) of linear interpolation between the centers of pixels."""
    place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, None)
    low = np.minimum(place.astype(np.int64), old - 1)
    high = np.minimum(low + 1, old - 1)
    share = place - low
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new), low), 1 - share)
    np.add.at(matrix, (np.arange(new), high), share)
    return matrix


def _rle(map_hw: NDArray[np.float32], level: float, rows: _Axis, columns: _Axis) -> dict[str, Any] | None:
    inside = map_hw > level
    filled_h, filled_w = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(filled_h):  # interpolation makes nothing larger than what it lies between
        return None
    new_rows, old_rows = rows.drawing_from(filled_h[0], filled_h[-1] + 1)
    new_columns, old_columns = columns.drawing_from(filled_w[0], filled_w[-1] + 1)
    part = rows.matrix[new_rows, old_rows] @ map_hw[old_rows, old_columns] @ columns.matrix[new_columns, old_columns].T
    height, width = len(rows.matrix), len(columns.matrix)
    # Runs go down the columns, so only the columns that the mask touches are laid out.
    strip = np.zeros((part.shape[1], height), np.int8)
    strip[:, new_rows] = part.T > level
    changes = np.flatnonzero(np.diff(strip.ravel(), prepend=np.int8(0), append=np.int8(0)))
    if not len(changes):
        return None
    counts = np.diff(changes + new_columns.start * height, prepend=0, append=height * width)
    # Nothing comes after a mask that holds the last pixel.
    return {"size": [height, width], "counts": counts[: None if counts[-1] else -1].tolist()}
