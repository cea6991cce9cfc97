"""Each kind of error on masks drawn by hand: squares of 20 pixels, and detections beside or on them."""

from typing import Any

import numpy as np
import pytest
from benchmarks.accuracy.tide import KINDS, gains, judge
from pycocotools import mask as coco_masks


def _rle(top: int, left: int, side: int = 20) -> dict[str, Any]:
    mask = np.zeros((100, 100), np.uint8, order="F")
    mask[top : top + side, left : left + side] = 1
    rle = coco_masks.encode(mask)
    return {"size": [100, 100], "counts": rle["counts"].decode()}


def _truth(*objects: tuple[dict[str, Any], int], crowd: bool = False) -> dict[str, Any]:
    annotations = [
        {"id": i, "image_id": 1, "category_id": kind, "segmentation": rle, "iscrowd": int(crowd), "area": 400.0}
        for i, (rle, kind) in enumerate(objects, 1)
    ]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    return {"images": [{"id": 1, "height": 100, "width": 100}], "annotations": annotations, "categories": categories}


def _found(rle: dict[str, Any], kind: int, score: float) -> dict[str, Any]:
    return {"image_id": 1, "category_id": kind, "segmentation": rle, "score": score}


HERE, NEAR, AWAY = _rle(0, 0), _rle(0, 10), _rle(60, 60)
"""A place, one that overlaps it with IoU 1/3, and one far away."""


@pytest.mark.parametrize(
    ("kind", "detections", "missed"),
    [
        ("class", [_found(HERE, 2, 0.9)], False),
        ("localization", [_found(NEAR, 1, 0.9)], False),
        ("both", [_found(NEAR, 2, 0.9)], True),
        ("duplicate", [_found(HERE, 1, 0.9), _found(HERE, 1, 0.8)], False),
        ("background", [_found(AWAY, 1, 0.9)], True),
    ],
)
def test_a_wrong_detection_is_of_one_kind(kind: str, detections: list[dict[str, Any]], missed: bool) -> None:
    verdicts = judge(_truth((HERE, 1)), detections)
    assert list(verdicts.kinds.items()) == [(len(detections) - 1, kind)]
    assert verdicts.missed == ({0} if missed else set())


def test_a_crowd_is_neither_an_error_nor_missed() -> None:
    verdicts = judge(_truth((_rle(0, 0, 60), 1), crowd=True), [_found(HERE, 1, 0.9), _found(HERE, 2, 0.8)])
    assert verdicts.kinds == {1: "background"}
    assert verdicts.missed == set()


def test_without_errors_nothing_is_gained() -> None:
    found = gains(_truth((HERE, 1), (AWAY, 2)), [_found(HERE, 1, 0.9), _found(AWAY, 2, 0.8)])
    assert found == dict.fromkeys(KINDS, 0.0)


@pytest.mark.parametrize(
    ("kind", "better"),
    [("background", _found(AWAY, 1, 0.9)), ("duplicate", _found(HERE, 1, 0.7))],
)
def test_wrong_detections_before_right_ones_cost_half(kind: str, better: dict[str, Any]) -> None:
    """Two objects, and a wrong detection between or before the right ones: repaired, AP50 is 1."""
    truth = _truth((HERE, 1), (_rle(30, 30), 1))
    found = gains(truth, [_found(HERE, 1, 0.8), better, _found(_rle(30, 30), 1, 0.6)])
    before = {"background": 2 / 3, "duplicate": (51 + 50 * 2 / 3) / 101}[kind]
    assert found == {**dict.fromkeys(KINDS, 0.0), kind: pytest.approx(1 - before, abs=1e-6)}


def test_a_repaired_class_counts_for_the_class_it_is() -> None:
    """Class a has its object; class b has none right, and one detection that is of it but is called a."""
    truth = _truth((HERE, 1), (AWAY, 2))
    found = gains(truth, [_found(HERE, 1, 0.9), _found(AWAY, 1, 0.8)])
    assert found["class"] == pytest.approx(0.5)
    assert found["missed"] == 0


def test_a_repaired_place_counts_once_for_an_object() -> None:
    found = gains(_truth((HERE, 1)), [_found(NEAR, 1, 0.9), _found(NEAR, 1, 0.8)])
    assert found == {**dict.fromkeys(KINDS, 0.0), "localization": pytest.approx(1.0)}


def test_missed_objects_are_those_that_nothing_is_about() -> None:
    found = gains(_truth((HERE, 1), (AWAY, 1)), [_found(HERE, 1, 0.9)])
    assert found["missed"] == pytest.approx(1 - 51 / 101)
    assert gains(_truth((HERE, 1)), [])["missed"] == 1
