"""Objects as numbers of pixels, and back; objects that share pixels, made to share none."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sotr.errors import SOTRError
from sotr.masks.run_lengths import Runs, encode_counts, mask_runs, moved, runs_to_counts

if TYPE_CHECKING:
    from sotr.results.instances import Instances


def label_image(instances: "Instances") -> NDArray[np.uint16] | NDArray[np.uint32]:
    """See `Instances.label_image`."""
    labels_HW = np.zeros(instances.image_size, np.uint16 if len(instances) < 2**16 else np.uint32)
    for i in reversed(range(len(instances))):  # the best is painted last
        mask_hw, x, y = instances.mask_crop(i)
        labels_HW[y : y + mask_hw.shape[0], x : x + mask_hw.shape[1]][mask_hw] = i + 1
    return labels_HW


def rles_of_labels(labels_HW: NDArray[Any]) -> tuple[list[dict[str, Any]], NDArray[np.int64]]:
    """The RLEs of the objects of a label image, by rising number, and these numbers; 0 is no object.

    Raises:
        SOTRError: it is no array of two axes and whole numbers from 0.
    """
    if labels_HW.ndim != 2 or labels_HW.dtype.kind not in "bui" or labels_HW.min(initial=0) < 0:
        raise SOTRError(
            f"a label image has height x width whole numbers from 0, not {labels_HW.dtype} of shape {labels_HW.shape}"
        )
    height, width = labels_HW.shape
    columns = np.ascontiguousarray(labels_HW.T).ravel()
    edges = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    starts, ends = np.append(0, edges)[: columns.size], np.append(edges, columns.size)[: max(1, columns.size)]
    numbers = columns[starts].astype(np.int64)
    order = np.argsort(numbers, kind="stable")
    order = order[numbers[order] > 0]
    found, counts = np.unique(numbers[order], return_counts=True)
    offsets = np.append(0, np.cumsum(counts))
    runs = Runs(starts[order], ends[order], offsets, np.full(len(found), height, np.int64))
    texts = encode_counts(*runs_to_counts(runs, height * width)) if len(found) else []
    return [{"size": [height, width], "counts": text} for text in texts], found


def rle_without(instances: "Instances", i: int) -> dict[str, Any] | None:
    """The RLE of object i without the pixels of better objects; None where nothing is left.

    Only what is near is decoded, so that the size of the image does not count.
    """
    x0, y0, x1, y1 = (int(value) for value in instances.boxes_I4[i])
    better = instances.boxes_I4[:i]
    near = (better[:, 0] < x1) & (better[:, 2] > x0) & (better[:, 1] < y1) & (better[:, 3] > y0)
    if not near.any():
        return instances.rles[i]
    mask_hw = instances.mask_crop(i)[0].copy()
    for other in np.flatnonzero(near):
        taken_hw, x, y = instances.mask_crop(int(other))
        height, width = taken_hw.shape
        left, top, right, bottom = max(x, x0), max(y, y0), min(x + width, x1), min(y + height, y1)
        mask_hw[top - y0 : bottom - y0, left - x0 : right - x0] &= ~taken_hw[top - y : bottom - y, left - x : right - x]
    if not mask_hw.any():
        return None
    height, width = instances.image_size
    # With a row below, no run goes on from one column to the next.
    runs = mask_runs(np.ascontiguousarray(np.pad(mask_hw, ((0, 1), (0, 0))).T)[None])
    placed = moved(runs, np.array([x0]), np.array([y0]), height)
    return {"size": [height, width], "counts": encode_counts(*runs_to_counts(placed, height * width))[0]}
