"""Compressed COCO RLE strings of masks, made by NumPy of the parts of the image where the masks may have pixels."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sotr.masks import run_lengths as rle
from sotr.masks.resize import Size, Windows, to_picture
from sotr.masks.run_lengths import Runs, encode_counts, joined, mask_runs, moved, runs_to_counts
from sotr.masks.windows import windows_of

CACHED_PIXELS = 1_000_000
"""Mask pixels that are upsampled at the same time: what stays in a processor's cache takes half the time."""

RUNS_TOGETHER = 20_000
"""Windows are joined until they hold so many runs."""


class Compressed(NamedTuple):
    """I masks as COCO compresses them.

    Attributes:
        texts: the compressed counts string of each mask.
        boxes_I4: tight boxes, xyxy in pixels, half-open; zeros for a mask without pixels.
    """

    texts: list[str]
    boxes_I4: NDArray[np.int64]


Compress = Callable[[Tensor, float, Size, Size, Size], Compressed]
"""What `compress_on_host` does, anywhere."""


def compress_on_host(
    maps_Ihw: Tensor, level: float, padded_size: Size, image_size: Size, original_size: Size
) -> Compressed:
    """Resize masks as `to_picture` does, and compress what lies above the level.

    Args:
        maps_Ihw: logits or probabilities of at least one mask, float32.
        level: above it a pixel belongs to the mask.
        padded_size: see `to_picture`, and so the other sizes.
    """
    maps_Ihw = maps_Ihw.cpu()
    sizes = padded_size, image_size, original_size
    parts = list(windows_of(maps_Ihw, level, *sizes, pixels=CACHED_PIXELS))
    texts: list[str] = []
    boxes_I4 = []
    for runs in _together(_runs(maps_Ihw, level, *sizes, part) for part in parts):
        texts += encode_counts(*runs_to_counts(runs, original_size[0] * original_size[1]))
        boxes_I4.append(rle.boxes(runs))
    place_I = np.argsort(np.concatenate([part.masks_I for part in parts]))
    return Compressed([texts[i] for i in place_I], np.concatenate(boxes_I4)[place_I])


def _runs(
    maps_Ihw: Tensor, level: float, padded_size: Size, image_size: Size, original_size: Size, windows: Windows
) -> Runs:
    resized_IWH = to_picture(maps_Ihw, padded_size, image_size, original_size, windows)
    # It is quicker to compare in floats first and to make bytes of them then.
    runs = mask_runs(resized_IWH.gt_(level).bool().numpy())
    return moved(runs, windows.lefts_I, windows.tops_I, original_size[0])


def _together(pieces: Iterable[Runs]) -> Iterator[Runs]:
    """Some pieces after others, joined: fewer calls of NumPy, of arrays that a cache still holds."""
    waiting, number = [], 0
    for piece in pieces:
        waiting.append(piece)
        number += len(piece.starts)
        if number >= RUNS_TOGETHER:
            yield joined(waiting)
            waiting, number = [], 0
    if waiting:
        yield joined(waiting)
