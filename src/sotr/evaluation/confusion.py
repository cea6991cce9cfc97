"""Which class is taken for which, and how well each image is segmented: objects matched one to one by their masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from sotr.data.coco import CocoDataset

LEAST_IOU = 0.5
"""Overlap from which a detection is taken for an object."""


@dataclass(frozen=True)
class Confusion:
    """Detections above a score against the true objects of a data set, whatever their classes."""

    counts_TF: NDArray[np.int64]
    """(M + 1, M + 1): objects of true class t found as class f; the last row are detections of nothing, the last column
    objects that were not found."""
    quality_N: NDArray[np.float64]
    """Panoptic quality of each image in 0..1: the sum of the IoUs of objects found with their class, divided by the
    mean number of true and detected objects; 1 where there is nothing to find and nothing found."""
    score: float
    """Detections below this were left out."""


def confusion(data: CocoDataset, results: Sequence[Mapping[str, Any]], score: float = 0.3) -> Confusion:
    """Match detections with true objects, best overlap first, each at most once, from an IoU of 0.50 on.

    Crowds are not to be found; what lies mostly on one is left out.

    Args:
        data: images and their objects.
        results: COCO results on these images, with the data set's category ids.
        score: detections below it are left out.
    """
    classes = len(data.class_names)
    label_of = {category_id: label for label, category_id in enumerate(data.category_ids)}
    results_of: dict[int, list[Mapping[str, Any]]] = {}
    for result in results:
        if result["score"] >= score and result["category_id"] in label_of:
            results_of.setdefault(int(result["image_id"]), []).append(result)
    counts_TF = np.zeros((classes + 1, classes + 1), np.int64)
    quality_N = np.ones(len(data))
    for index in range(len(data)):
        record = data.record(index)
        found = results_of.get(int(record.image_id), [])
        crowd_I = record.iscrowd_I
        overlaps_FI = np.zeros((len(found), len(record.segmentations)))
        if len(found) and len(record.segmentations):
            masks = [result["segmentation"] for result in found]
            overlaps_FI = np.asarray(coco_mask.iou(masks, record.segmentations, crowd_I.astype(np.uint8).tolist()))
        pairs = _best_pairs(overlaps_FI[:, ~crowd_I])
        true_I = record.labels_I[~crowd_I]
        found_F = np.array([label_of[result["category_id"]] for result in found], np.int64)
        on_crowd_F = (overlaps_FI[:, crowd_I] >= LEAST_IOU).any(1)

        quality = 0.0
        missed, spurious = set(range(len(true_I))), set(np.flatnonzero(~on_crowd_F).tolist())
        for f, i, overlap in pairs:
            counts_TF[true_I[i], found_F[f]] += 1
            quality += overlap if true_I[i] == found_F[f] else 0.0
            missed.discard(i)
            spurious.discard(f)
        for i in missed:
            counts_TF[true_I[i], classes] += 1
        for f in spurious:
            counts_TF[classes, found_F[f]] += 1
        objects = len(true_I) + len(pairs) + len(spurious)
        if objects:
            quality_N[index] = quality / (objects / 2)
    return Confusion(counts_TF, quality_N, score)


def _best_pairs(overlaps_FI: NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """One-to-one pairs (f, i, overlap), the best overlap first."""
    pairs = []
    taken_f, taken_i = set(), set()
    order = np.argsort(-overlaps_FI, axis=None, kind="stable")
    for f, i in zip(*np.unravel_index(order, overlaps_FI.shape), strict=True):
        if overlaps_FI[f, i] < LEAST_IOU:
            break
        if f not in taken_f and i not in taken_i:
            pairs.append((int(f), int(i), float(overlaps_FI[f, i])))
            taken_f.add(f)
            taken_i.add(i)
    return pairs
