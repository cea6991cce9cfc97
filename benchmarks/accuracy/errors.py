"""What goes wrong apart from the score: objects that nothing covers, and objects with the wrong name."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

from sotr.masks.checked import rle_of_segmentation

SMALL = 32**2
"""Pixels below which COCO calls an object small."""

COVERED = 0.5
"""IoU from which a detection counts as one of an object."""


@dataclass(frozen=True)
class Errors:
    """Shares of the true objects; see `Row`."""

    found: float
    named: float
    found_small: float | None


def errors_of(truth: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> Errors:
    """Compare COCO results with a COCO data set, whatever the classes, and then look at these.

    Args:
        truth: `images`, `annotations`; crowds are left out.
        results: COCO results with RLE masks.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    objects, detections = defaultdict(list), defaultdict(list)
    for annotation in truth["annotations"]:
        if not annotation.get("iscrowd"):
            objects[annotation["image_id"]].append(annotation)
    for result in results:
        detections[result["image_id"]].append(result)
    found, named, small = [], [], []
    for image, own in objects.items():
        masks = [rle_of_segmentation(annotation["segmentation"], sizes[image]) for annotation in own]
        there = sorted(detections[image], key=lambda result: -result["score"])
        overlaps = coco_masks.iou([result["segmentation"] for result in there], masks, [0] * len(masks))
        covers = np.asarray(overlaps).reshape(len(there), len(masks)) >= COVERED
        for index, annotation in enumerate(own):
            best = np.flatnonzero(covers[:, index])[:1]
            found.append(len(best) > 0)
            small.append(coco_masks.area(masks[index]) < SMALL)
            named += [there[place]["category_id"] == annotation["category_id"] for place in best]
    of_small = np.array(found)[np.array(small, bool)]
    return Errors(_share(found) or 0.0, _share(named) or 0.0, _share(of_small))


def _share(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None
