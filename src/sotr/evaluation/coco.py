"""COCO average precision and recall, with every area taken from a mask."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as mask_api

from sotr.data.coco import CocoDataset
from sotr.errors import SOTRError
from sotr.evaluation.operating import operating_point


@dataclass(frozen=True)
class ClassMetrics:
    """One class's part of `Metrics`: its AP (None without truth), and the number of its true objects, no crowds."""

    AP: float | None
    AP50: float | None
    AP75: float | None
    objects: int


@dataclass(frozen=True)
class Metrics:
    """COCO's summary of a set of detections, all in 0..1; None where nothing in the truth is of that kind.

    `AP` is averaged over IoU 0.50, 0.55 .. 0.95 and the classes; `AP50` and `AP75` hold one IoU; `S`, `M`, `L` are
    objects below 32^2, up to 96^2 and above 96^2 pixels. `AR` is the recall, averaged alike, with at most `max_dets`
    detections per image. `per_class` is in the order of the category ids.
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    AP_S: float | None
    AP_M: float | None
    AP_L: float | None
    AR: float | None
    AR_S: float | None
    AR_M: float | None
    AR_L: float | None
    per_class: dict[str, ClassMetrics]
    max_dets: int
    images: int
    objects: int
    detections: int
    operating_score: float | None = None
    """The score with the best F1 at IoU 0.50, where it was looked for and anything was right; and that F1."""
    f1: float | None = None

    def at_operating_point(self, data: CocoDataset, results: Sequence[Mapping[str, Any]]) -> "Metrics":
        """The same with `operating_score` and `f1` of these results."""
        point = operating_point(data, results)
        return self if point is None else replace(self, operating_score=point.score, f1=point.f1)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, ready for JSON."""
        return asdict(self)


def coco_metrics(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    max_dets: int = 100,
    image_ids: Iterable[int] | None = None,
    iou_type: Literal["segm", "bbox"] = "segm",
) -> Metrics:
    """Measure COCO results against a COCO data set.

    The area of a detection is that of its mask and its box is the one around its mask, whatever `bbox` or `area` the
    results carry: COCO's own tool derives areas from boxes where there are some, so that wrong (for instance all-zero)
    boxes move detections between the size ranges and flatter AP_M and AP_L. The area of a true object is the
    annotated one, as in published COCO numbers, or its mask's where that is absent or zero. Nothing passed in is
    changed.

    Args:
        truth: a COCO data set: `images` (id, height, width), `annotations` (image_id, category_id, segmentation as
            polygons or RLE, optionally area and iscrowd) and `categories` (id, name).
        results: COCO results: image_id, category_id, segmentation (RLE) and score. Detections of a category that the
            truth does not have are left out.
        max_dets: detections counted per image and class, best first; COCO's own is 100.
        image_ids: measure these images only; default all of the truth.
        iou_type: overlap of "segm" (masks) or "bbox" (boxes around the masks).

    Raises:
        SOTRError: `max_dets` below 1, or a detection in an image that the truth does not have.
    """
    found = _accumulated(truth, results, max_dets, image_ids, iou_type)
    evaluation, names, counts = found.evaluation, found.names, found.objects_of
    # (IoU thresholds, recalls, classes, ranges) and (IoU thresholds, classes, ranges); -1 marks "no such truth".
    precision_TRKA = evaluation.eval["precision"][..., -1]
    recall_TKA = evaluation.eval["recall"][..., -1]
    thresholds = np.asarray(evaluation.params.iouThrs)
    at_50 = int(np.argmin(abs(thresholds - 0.5)))
    at_75 = int(np.argmin(abs(thresholds - 0.75)))
    everything, small, medium, large = range(4)

    per_class: dict[str, ClassMetrics] = {}
    for k, category_id in enumerate(evaluation.params.catIds):
        name = names[int(category_id)]
        key = name if name not in per_class else f"{name} (id {category_id})"
        per_class[key] = ClassMetrics(
            AP=_mean(precision_TRKA[:, :, k, everything]),
            AP50=_mean(precision_TRKA[at_50, :, k, everything]),
            AP75=_mean(precision_TRKA[at_75, :, k, everything]),
            objects=counts[int(category_id)],
        )
    return Metrics(
        AP=_mean(precision_TRKA[..., everything]),
        AP50=_mean(precision_TRKA[at_50, ..., everything]),
        AP75=_mean(precision_TRKA[at_75, ..., everything]),
        AP_S=_mean(precision_TRKA[..., small]),
        AP_M=_mean(precision_TRKA[..., medium]),
        AP_L=_mean(precision_TRKA[..., large]),
        AR=_mean(recall_TKA[..., everything]),
        AR_S=_mean(recall_TKA[..., small]),
        AR_M=_mean(recall_TKA[..., medium]),
        AR_L=_mean(recall_TKA[..., large]),
        per_class=per_class,
        max_dets=max_dets,
        images=found.images,
        objects=sum(counts.values()),
        detections=found.detections,
    )


def precision_recall(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, max_dets: int = 100
) -> dict[str, np.ndarray]:
    """Precision at IoU 0.50 of each class that has objects, at the recalls 0, 0.01 .. 1 of COCO's interpolation.

    Arguments and errors are those of `coco_metrics`.
    """
    found = _accumulated(truth, results, max_dets, None, "segm")
    evaluation = found.evaluation
    at_50 = int(np.argmin(abs(np.asarray(evaluation.params.iouThrs) - 0.5)))
    precision_RK = evaluation.eval["precision"][at_50, :, :, 0, -1]
    return {
        found.names[int(category_id)]: precision_RK[:, k]
        for k, category_id in enumerate(evaluation.params.catIds)
        if (precision_RK[:, k] > -1).all()
    }


class _Accumulated(NamedTuple):
    """The tool after its work, and what went into it."""

    evaluation: COCOeval_faster
    names: dict[int, str]
    objects_of: dict[int, int]
    """True objects of each category, no crowds."""
    images: int
    detections: int


def _accumulated(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    max_dets: int,
    image_ids: Iterable[int] | None,
    iou_type: Literal["segm", "bbox"],
) -> _Accumulated:
    if max_dets < 1:
        raise SOTRError(f"max_dets must be at least 1, not {max_dets}")
    sizes = {int(image["id"]): [int(image["height"]), int(image["width"])] for image in truth["images"]}
    known_images = sizes.keys()
    if image_ids is not None:
        wanted = {int(image_id) for image_id in image_ids}
        if missing := sorted(wanted - sizes.keys()):
            raise SOTRError(f"image {missing[0]} to be measured is not in the truth's images")
        sizes = {image_id: size for image_id, size in sizes.items() if image_id in wanted}
    # Lean copies: the evaluation writes into what it is given, and images and categories hold more than it needs.
    images = [{"id": image_id, "height": h, "width": w} for image_id, (h, w) in sizes.items()]
    names = {int(category["id"]): str(category["name"]) for category in truth["categories"]}
    categories = [{"id": category_id, "name": name} for category_id, name in names.items()]
    if not images or not categories:
        raise SOTRError("nothing to measure: the truth has no images or no categories")

    true_objects = _true_objects(truth["annotations"], sizes)
    detections = _detections(results, sizes, known_images, names.keys())
    counts = dict.fromkeys(names, 0)
    for item in true_objects:
        if not item["iscrowd"]:
            counts[item["category_id"]] += 1

    evaluation = COCOeval_faster(
        COCO({"images": images, "annotations": true_objects, "categories": categories}),
        COCO({"images": images, "annotations": detections, "categories": categories}),
        iouType=iou_type,
        print_function=_silent,
    )
    evaluation.params.maxDets = [max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    return _Accumulated(evaluation, names, counts, len(images), len(detections))


def _true_objects(annotations: Iterable[Mapping[str, Any]], sizes: Mapping[int, list[int]]) -> list[dict[str, Any]]:
    """Copies of the annotations of the images measured, with RLE, a mask's box, and ids from 1."""
    objects: list[dict[str, Any]] = []
    for annotation in annotations:
        size = sizes.get(int(annotation["image_id"]))
        if size is None:
            continue
        rle = _to_rle(annotation["segmentation"], size)
        area = float(annotation.get("area") or 0.0)
        objects.append(
            {
                # The tool marks an unmatched object with 0, so that a true id of 0 would be lost: ids are renewed.
                "id": len(objects) + 1,
                "image_id": int(annotation["image_id"]),
                "category_id": int(annotation["category_id"]),
                "segmentation": rle,
                "area": area if area > 0 else float(mask_api.area(rle)),
                "bbox": [float(side) for side in mask_api.toBbox(rle)],
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    return objects


def _detections(
    results: Iterable[Mapping[str, Any]],
    sizes: Mapping[int, list[int]],
    known_images: Set[int],
    category_ids: Set[int],
) -> list[dict[str, Any]]:
    """Copies of the results that count, with area and box from the mask."""
    detections: list[dict[str, Any]] = []
    for result in results:
        image_id, category_id = int(result["image_id"]), int(result["category_id"])
        if image_id not in known_images:
            raise SOTRError(f"a detection belongs to image {image_id}, which is not in the truth's images")
        if image_id not in sizes or category_id not in category_ids:
            continue
        rle = result["segmentation"]
        if list(rle["size"]) != sizes[image_id]:
            raise SOTRError(
                f"a detection's mask in image {image_id} has size {list(rle['size'])}, "
                f"the image {sizes[image_id]} (height, width)"
            )
        detections.append(
            {
                "id": len(detections) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": rle,
                "score": float(result["score"]),
                "area": float(mask_api.area(rle)),
                "bbox": [float(side) for side in mask_api.toBbox(rle)],
                "iscrowd": 0,
            }
        )
    return detections


def _to_rle(segmentation: Any, size: list[int]) -> dict[str, Any]:
    """Compressed RLE of polygons, uncompressed or compressed RLE."""
    if isinstance(segmentation, list):
        merged: dict[str, Any] = mask_api.merge(mask_api.frPyObjects(segmentation, *size))
        return merged
    if isinstance(segmentation["counts"], list):
        compressed: dict[str, Any] = mask_api.frPyObjects(segmentation, *size)
        return compressed
    return dict(segmentation)


def _mean(values: np.ndarray) -> float | None:
    """The mean of what is defined, None where nothing is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _silent(*_: object) -> None:
    """Takes the place of print in the evaluation."""
