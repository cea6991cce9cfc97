"""Kinds of errors as TIDE (Bolya et al. 2020) tells them apart, for masks: what AP50 gains if a kind is repaired.

Of the kinds the first that fits is taken. Overlaps are IoU with the nearest true object.

- localization: right class, 0.1 <= IoU < 0.5
- class: another class, IoU >= 0.5
- duplicate: right class, IoU >= 0.5 with an object that a detection of a higher score has
- background: IoU < 0.1 with all objects
- both: another class, 0.1 <= IoU < 0.5
- missed: an object that neither a right detection nor an error of class or localization is about

The gains are those of one repair at a time. They do not add up.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

from sotr.evaluation.coco import coco_metrics
from sotr.masks.checked import rle_of_segmentation

KINDS = ("class", "localization", "both", "duplicate", "background", "missed")

FOREGROUND, BACKGROUND = 0.5, 0.1
"""IoU from which a detection is right, and below which it is about nothing."""


@dataclass
class Verdicts:
    """What each detection and each true object is; both are given by their position."""

    kinds: dict[int, str] = field(default_factory=dict)
    """Detection -> kind of its error; right ones, and those on a crowd, are not here."""
    about: dict[int, int] = field(default_factory=dict)
    """Detection with an error of class or localization -> true object."""
    right: set[int] = field(default_factory=set)
    """True objects that a detection has."""
    missed: set[int] = field(default_factory=set)


def judge(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Verdicts:
    """Tell the kinds of errors apart.

    Args:
        truth: a COCO data set.
        results: COCO results with RLE masks.
    """
    verdicts = Verdicts()
    objects, detections = _by_image(truth["annotations"]), _by_image(results)
    for image in truth["images"]:
        size = image["height"], image["width"]
        own, there = objects[image["id"]], sorted(detections[image["id"]], key=lambda i: -results[i]["score"])
        masks = [rle_of_segmentation(truth["annotations"][i]["segmentation"], size) for i in own]
        crowd_G = np.array([bool(truth["annotations"][i].get("iscrowd")) for i in own], bool)
        overlaps = coco_masks.iou([results[i]["segmentation"] for i in there], masks, crowd_G.astype(np.uint8).tolist())
        iou_DG = np.asarray(overlaps, float).reshape(len(there), len(own))
        class_D = np.array([results[i]["category_id"] for i in there])
        class_G = np.array([truth["annotations"][i]["category_id"] for i in own])
        same_DG = class_D[:, None] == class_G[None, :]
        on_crowd_D = ((iou_DG >= FOREGROUND) & same_DG & crowd_G).any(1)
        single = np.flatnonzero(~crowd_G)
        _judge_image(verdicts, there, [own[g] for g in single], iou_DG[:, single], same_DG[:, single], on_crowd_D)
    return verdicts


def _by_image(entries: Sequence[Mapping[str, Any]]) -> dict[int, list[int]]:
    positions: dict[int, list[int]] = defaultdict(list)
    for position, entry in enumerate(entries):
        positions[entry["image_id"]].append(position)
    return positions


def _judge_image(
    verdicts: Verdicts,
    there: Sequence[int],
    own: Sequence[int],
    iou_DG: np.ndarray,
    same_DG: np.ndarray,
    on_crowd_D: np.ndarray,
) -> None:
    """Detections come in the order of their scores; crowds are not among the objects."""
    free_G = np.ones(len(own), bool)
    about: set[int] = set()
    for d, detection in enumerate(there):
        same, other = np.where(same_DG[d], iou_DG[d], 0), np.where(same_DG[d], 0, iou_DG[d])
        candidates = np.where(free_G, same, 0)
        if candidates.max(initial=0) >= FOREGROUND:
            best = int(candidates.argmax())
            free_G[best] = False
            verdicts.right.add(own[best])
            continue
        if on_crowd_D[d]:
            continue
        nearest, nearest_other = same.max(initial=0), other.max(initial=0)
        if BACKGROUND <= nearest < FOREGROUND:
            kind, verdicts.about[detection] = "localization", own[int(same.argmax())]
        elif nearest_other >= FOREGROUND:
            kind, verdicts.about[detection] = "class", own[int(other.argmax())]
        elif nearest >= FOREGROUND:
            kind = "duplicate"
        elif max(nearest, nearest_other) < BACKGROUND:
            kind = "background"
        else:
            kind = "both"
        verdicts.kinds[detection] = kind
        about |= {verdicts.about[detection]} if detection in verdicts.about else set()
    verdicts.missed |= {own[g] for g in np.flatnonzero(free_G)} - about


def gains(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], max_dets: int = 100) -> dict[str, float]:
    """Kind -> AP50 gained if all errors of that kind were repaired.

    An error of class or localization becomes a right detection if its object has none yet, and vanishes otherwise.
    The other wrong detections vanish, and so do the objects that were missed.
    """
    verdicts = judge(truth, results)
    before = _ap50(truth, results, max_dets) or 0.0
    found = {}
    for kind in KINDS:
        if kind == "missed":
            kept = [each for i, each in enumerate(truth["annotations"]) if i not in verdicts.missed]
            # Without any object left nothing is wrong.
            after = _ap50({**truth, "annotations": kept}, results, max_dets)
            found[kind] = (1.0 if after is None else after) - before
        else:
            found[kind] = (_ap50(truth, _repaired(truth, results, verdicts, kind), max_dets) or 0.0) - before
    return found


def _repaired(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], verdicts: Verdicts, kind: str
) -> list[Mapping[str, Any]]:
    kept, taken = [], set(verdicts.right)
    for i in sorted(range(len(results)), key=lambda i: -results[i]["score"]):
        if verdicts.kinds.get(i) != kind:
            kept.append(results[i])
        elif i in verdicts.about and (target := verdicts.about[i]) not in taken:
            taken.add(target)
            annotation = truth["annotations"][target]
            size = results[i]["segmentation"]["size"]
            mask = rle_of_segmentation(annotation["segmentation"], (size[0], size[1]))
            kept.append({**results[i], "category_id": annotation["category_id"], "segmentation": mask})
    return kept


def _ap50(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], max_dets: int) -> float | None:
    return coco_metrics(truth, results, max_dets=max_dets).AP50
