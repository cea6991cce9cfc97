"""The default score of a model: the score with the best F1."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from sotr.data.coco import CocoDataset

LEAST_IOU = 0.5
"""Overlap from which a detection is right."""

RANGE = (0.05, 0.95)
"""Lowest and highest score to choose. Scores are rounded to two decimals, so that people can type them."""


class OperatingPoint(NamedTuple):
    """A score, and the F1 of the detections with at least this score."""

    score: float
    f1: float
    """2 TP / (detections + objects), in 0..1."""


def operating_point(data: CocoDataset, results: Sequence[Mapping[str, Any]]) -> OperatingPoint | None:
    """The score with the best F1 over all classes.

    As in COCO's evaluation, the better detection chooses first, and takes the object of its class that it overlaps
    most, from an IoU of 0.50 on. Detections on crowds count for nothing.

    Args:
        data: images and their objects.
        results: COCO results on them, with the data set's category ids.

    Returns:
        None where no detection is right.
    """
    label_of = {category_id: label for label, category_id in enumerate(data.category_ids)}
    results_of: dict[int, list[Mapping[str, Any]]] = {}
    for result in results:
        if result["category_id"] in label_of:
            results_of.setdefault(int(result["image_id"]), []).append(result)
    scores: list[float] = []
    right: list[bool] = []
    for index in range(len(data)):
        record = data.record(index)
        found = sorted(results_of.get(int(record.image_id), []), key=lambda result: -result["score"])
        if not found:
            continue
        crowds = record.iscrowd_I.astype(np.uint8).tolist()
        overlaps_FI = np.zeros((len(found), len(crowds)))
        if crowds:
            overlaps_FI = np.asarray(
                coco_mask.iou([each["segmentation"] for each in found], record.segmentations, crowds)
            )
        of_class_FI = np.array([label_of[each["category_id"]] for each in found])[:, None] == record.labels_I
        free_I = ~record.iscrowd_I
        for f, result in enumerate(found):
            own_I = np.where(of_class_FI[f] & free_I, overlaps_FI[f], 0.0)
            best = int(own_I.argmax()) if len(own_I) else -1
            is_right = best >= 0 and own_I[best] >= LEAST_IOU
            if is_right:
                free_I[best] = False
            elif (overlaps_FI[f][of_class_FI[f] & record.iscrowd_I] >= LEAST_IOU).any():
                continue
            scores.append(float(result["score"]))
            right.append(bool(is_right))
    if not any(right):
        return None
    order = np.argsort(-np.array(scores), kind="stable")
    descending, correct = np.array(scores)[order], np.cumsum(np.array(right)[order])
    f1 = 2 * correct / (np.arange(1, len(order) + 1) + int((~data.iscrowd).sum()))
    # A threshold takes all detections of a score or none; between two scores it lies in the middle.
    last_of_score = np.flatnonzero(np.append(np.diff(descending) < 0, True))
    best = int(last_of_score[f1[last_of_score].argmax()])
    below = descending[best + 1] if best + 1 < len(descending) else 0.0
    score = float(np.clip((descending[best] + below) / 2, *RANGE))
    return OperatingPoint(round(score, 2), float(f1[best]))
