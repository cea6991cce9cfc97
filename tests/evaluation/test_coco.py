"""Our metrics against COCO's own tool, and against its weak spot."""

import contextlib
import copy
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sotr.errors import SOTRError
from sotr.evaluation import Metrics, coco_metrics

NAMES = ["AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR", "AR_S", "AR_M", "AR_L"]


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def rectangle(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def dataset(images: list[dict], annotations: list[dict], names: list[str]) -> dict[str, Any]:
    categories = [{"id": 3 * k + 2, "name": name} for k, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def random_case(seed: int, *, pictures: int = 5, classes: int = 3, per_picture: int = 6, side: int = 160) -> tuple:
    """A data set with crowds, empty images, three forms of mask, one class without truth; and plausible results."""
    rng = np.random.default_rng(seed)
    images = [{"id": 7 * i + 1, "height": side, "width": side + 20} for i in range(pictures)]
    annotations: list[dict] = []
    results: list[dict] = []
    for index, image in enumerate(images):
        height, width = image["height"], image["width"]
        for _ in range(int(rng.integers(0, per_picture + 1)) if index else 0):
            size = int(rng.choice([6, 20, 40, 90, 140]))
            top, left = int(rng.integers(0, height - 5)), int(rng.integers(0, width - 5))
            bottom, right = min(top + size, height), min(left + size + 3, width)
            mask = rectangle(height, width, top, left, bottom, right)
            category_id = 3 * int(rng.integers(0, max(classes - 1, 1))) + 2
            crowd = bool(rng.random() < 0.15)
            form = int(rng.integers(0, 3))
            segmentation: Any
            if form == 0 and not crowd:
                segmentation = [[left, top, right, top, right, bottom, left, bottom]]
            elif form == 1:
                flat = mask.flatten(order="F").astype(int)
                edges = np.flatnonzero(np.diff(flat)) + 1
                runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
                segmentation = {"size": [height, width], "counts": ([0] if flat[0] else []) + runs}
            else:
                segmentation = rle(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category_id,
                    "segmentation": segmentation,
                    "area": float(mask.sum()),
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": int(crowd),
                }
            )
            for _ in range(int(rng.integers(0, 3))):
                jitter = rng.integers(-5, 6, 4)
                found = rectangle(
                    height,
                    width,
                    max(top + int(jitter[0]), 0),
                    max(left + int(jitter[1]), 0),
                    max(bottom + int(jitter[2]), 1),
                    max(right + int(jitter[3]), 1),
                )
                if found.any():
                    wrong = rng.random() < 0.2
                    results.append(
                        {
                            "image_id": image["id"],
                            "category_id": 3 * int(rng.integers(0, classes)) + 2 if wrong else category_id,
                            "segmentation": rle(found),
                            # Few distinct scores, so that ties are met.
                            "score": round(float(rng.random()), 1),
                        }
                    )
        if rng.random() < 0.5:
            stray = rectangle(height, width, 1, 1, int(rng.integers(3, 60)), int(rng.integers(3, 60)))
            results.append({"image_id": image["id"], "category_id": 2, "segmentation": rle(stray), "score": 0.35})
    return dataset(images, annotations, [f"class {k}" for k in range(classes)]), results


def reference(truth: dict, results: list[dict], max_dets: int = 100, iou_type: str = "segm") -> dict[str, float | None]:
    """The same numbers by pycocotools, read from its precision and recall tables at the last of maxDets."""
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO()
        true.dataset = copy.deepcopy(truth)
        true.createIndex()
        if results:
            found = true.loadRes(copy.deepcopy(results))
        else:
            found = COCO()
            found.dataset = {**copy.deepcopy(truth), "annotations": []}
            found.createIndex()
        evaluation = COCOeval(true, found, iou_type)
        evaluation.params.maxDets = [1, 10, max_dets] if max_dets > 10 else [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]

    def mean(values: np.ndarray) -> float | None:
        values = values[values > -1]
        return float(values.mean()) if values.size else None

    numbers = {"AP": mean(precision[..., 0]), "AP50": mean(precision[0, ..., 0]), "AP75": mean(precision[5, ..., 0])}
    numbers |= {f"AP_{size}": mean(precision[..., k]) for k, size in enumerate("SML", 1)}
    numbers |= {"AR": mean(recall[..., 0])}
    numbers |= {f"AR_{size}": mean(recall[..., k]) for k, size in enumerate("SML", 1)}
    for k, category in enumerate(truth["categories"]):
        numbers[f"{category['name']}/AP"] = mean(precision[:, :, k, 0])
        numbers[f"{category['name']}/AP50"] = mean(precision[0, :, k, 0])
    return numbers


def flat(metrics: Metrics) -> dict[str, float | None]:
    numbers = {name: getattr(metrics, name) for name in NAMES}
    for name, one in metrics.per_class.items():
        numbers |= {f"{name}/AP": one.AP, f"{name}/AP50": one.AP50}
    return numbers


def assert_same(ours: dict[str, float | None], theirs: dict[str, float | None]) -> None:
    assert ours.keys() == theirs.keys()
    for name, number in theirs.items():
        if number is None:
            assert ours[name] is None, name
        else:
            assert ours[name] == pytest.approx(number, abs=1e-6), name


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), max_dets=st.sampled_from([1, 3, 100, 500]), classes=st.integers(1, 4))
def test_equal_to_pycocotools(seed: int, max_dets: int, classes: int) -> None:
    truth, results = random_case(seed, classes=classes)
    assert_same(flat(coco_metrics(truth, results, max_dets=max_dets)), reference(truth, results, max_dets))


def test_equal_to_pycocotools_with_boxes_around_the_masks() -> None:
    truth, results = random_case(11, pictures=12)
    ours = flat(coco_metrics(truth, results, iou_type="bbox"))
    assert_same(ours, reference(truth, results, iou_type="bbox"))
    assert ours["AP"] != pytest.approx(0.0)


def test_more_than_a_hundred_objects_need_more_max_dets() -> None:
    image = {"id": 1, "height": 200, "width": 200}
    masks = [rectangle(200, 200, 10 * r, 10 * c, 10 * r + 8, 10 * c + 8) for r in range(20) for c in range(20)]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 2, "segmentation": rle(m), "area": 64, "iscrowd": 0}
        for i, m in enumerate(masks)
    ]
    results = [
        {"image_id": 1, "category_id": 2, "segmentation": rle(m), "score": 1 - i / 1000} for i, m in enumerate(masks)
    ]
    truth = dataset([image], annotations, ["cell"])
    assert coco_metrics(truth, results).AR == pytest.approx(0.25)
    whole = coco_metrics(truth, results, max_dets=500)
    # Also proves that an annotation id of 0 is no handicap: COCO's tool would lose that object.
    assert (whole.AP, whole.AR, whole.AP_S) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert (whole.AP_M, whole.AP_L) == (None, None)
    assert (whole.objects, whole.detections, whole.images, whole.max_dets) == (400, 400, 1, 500)


def test_no_detections_is_zero_and_no_truth_is_undefined() -> None:
    truth, _ = random_case(3)
    nothing = coco_metrics(truth, [])
    assert (nothing.AP, nothing.AP50, nothing.AR) == (0.0, 0.0, 0.0)
    assert_same(flat(nothing), reference(truth, []))
    empty = {**truth, "annotations": []}
    assert all(getattr(coco_metrics(empty, []), name) is None for name in NAMES)


def test_class_without_truth_is_undefined_and_not_averaged() -> None:
    image = {"id": 1, "height": 50, "width": 50}
    mask = rle(rectangle(50, 50, 5, 5, 25, 25))
    truth = dataset([image], [{"id": 5, "image_id": 1, "category_id": 2, "segmentation": mask}], ["here", "absent"])
    results = [
        {"image_id": 1, "category_id": 2, "segmentation": mask, "score": 0.9},
        {"image_id": 1, "category_id": 5, "segmentation": mask, "score": 0.9},
    ]
    metrics = coco_metrics(truth, results)
    assert metrics.AP == pytest.approx(1)
    assert metrics.per_class["absent"].AP is None
    assert metrics.per_class["here"].objects == 1
    # Area and iscrowd were absent: 20 x 20 pixels are small.
    assert metrics.AP_S == pytest.approx(1)
    assert json.loads(json.dumps(metrics.to_dict()))["per_class"]["here"] == {
        "AP": metrics.AP,
        "AP50": metrics.AP50,
        "AP75": pytest.approx(1),
        "objects": 1,
    }


def test_detections_inside_a_crowd_do_not_count() -> None:
    image = {"id": 1, "height": 100, "width": 100}
    truth = dataset(
        [image],
        [
            {"id": 1, "image_id": 1, "category_id": 2, "segmentation": rle(rectangle(100, 100, 0, 0, 40, 40))},
            {
                "id": 2,
                "image_id": 1,
                "category_id": 2,
                "segmentation": rle(rectangle(100, 100, 50, 50, 100, 100)),
                "iscrowd": 1,
            },
        ],
        ["sheep"],
    )
    inside = [(50, 50, 60, 60), (60, 60, 80, 80), (70, 50, 90, 99)]
    results = [
        {"image_id": 1, "category_id": 2, "segmentation": rle(rectangle(100, 100, *box)), "score": 0.9}
        for box in inside
    ]
    results += [
        {"image_id": 1, "category_id": 2, "segmentation": truth["annotations"][0]["segmentation"], "score": 0.5}
    ]
    assert coco_metrics(truth, results).AP == pytest.approx(1)
    assert coco_metrics(truth, results).objects == 1
    truth["annotations"][1]["iscrowd"] = 0
    assert coco_metrics(truth, results).AP < 0.5


def test_zero_boxes_flatter_coco_tool_but_not_us() -> None:
    """The published AP_S/M/L = 10.3/59.0/73.0 beside AP 40.2 look like this artefact: all-zero boxes.

    COCO's tool takes a detection's area from its box where it has one. With an area of 0 no unmatched detection counts
    as medium or large any more: false positives vanish there, AP_M and AP_L rise, and AP_S falls.
    """
    truth, results = random_case(5, pictures=25, classes=2)
    # False positives of every size, as every real detector has them.
    for image in truth["images"]:
        for side, score in ((20, 0.85), (60, 0.75), (130, 0.65)):
            stray = rectangle(image["height"], image["width"], 0, 0, side, side)
            results.append({"image_id": image["id"], "category_id": 2, "segmentation": rle(stray), "score": score})
    zero = [{**result, "bbox": [0, 0, 0, 0]} for result in results]
    honest, flattered = reference(truth, results), reference(truth, zero)
    assert flattered["AP"] == pytest.approx(honest["AP"], abs=1e-9)
    assert flattered["AP_M"] > honest["AP_M"] + 0.02
    assert flattered["AP_L"] > honest["AP_L"] + 0.02
    assert flattered["AP_S"] < 0.8 * honest["AP_S"]
    lying_area = [{**result, "area": 0} for result in zero]
    for variant in (results, zero, lying_area):
        assert_same(flat(coco_metrics(truth, variant)), honest)


def test_a_part_of_the_pictures_and_unknown_ids() -> None:
    truth, results = random_case(8, pictures=6)
    some = [image["id"] for image in truth["images"][2:5]]
    smaller = {
        **truth,
        "images": [image for image in truth["images"] if image["id"] in some],
        "annotations": [item for item in truth["annotations"] if item["image_id"] in some],
    }
    fewer = [result for result in results if result["image_id"] in some]
    assert flat(coco_metrics(truth, results, image_ids=some)) == flat(coco_metrics(smaller, fewer))
    stranger = {**results[0], "category_id": 999}
    assert flat(coco_metrics(truth, [*results, stranger])) == flat(coco_metrics(truth, results))
    with pytest.raises(SOTRError, match="image 12345"):
        coco_metrics(truth, [{**results[0], "image_id": 12345}])
    with pytest.raises(SOTRError, match="image 999"):
        coco_metrics(truth, results, image_ids=[999])
    with pytest.raises(SOTRError, match=r"size \[3, 4\]"):
        coco_metrics(truth, [{**results[0], "segmentation": {"size": [3, 4], "counts": "<"}}])
    with pytest.raises(SOTRError, match="max_dets"):
        coco_metrics(truth, results, max_dets=0)
    with pytest.raises(SOTRError, match="nothing to measure"):
        coco_metrics({"images": [], "annotations": [], "categories": []}, [])


def test_silent_and_leaves_its_input_alone(capfd: pytest.CaptureFixture[str]) -> None:
    truth, results = random_case(2)
    before = copy.deepcopy((truth, results))
    coco_metrics(truth, results)
    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")
