"""Shares of objects that are found and named, on masks drawn by hand."""

import numpy as np
import pytest
from benchmarks.accuracy.errors import errors_of
from pycocotools import mask as coco_masks


def _rle(top: int, left: int, side: int) -> dict:
    mask = np.zeros((100, 100), np.uint8, order="F")
    mask[top : top + side, left : left + side] = 1
    return coco_masks.encode(mask)


def _truth(*objects: tuple[dict, int]) -> dict:
    annotations = [{"image_id": 1, "category_id": kind, "segmentation": rle} for rle, kind in objects]
    return {"images": [{"id": 1, "height": 100, "width": 100}], "annotations": annotations}


def _result(rle: dict, kind: int, score: float) -> dict:
    return {"image_id": 1, "category_id": kind, "segmentation": rle, "score": score}


def test_the_best_detection_names_an_object() -> None:
    large, small = _rle(0, 0, 50), _rle(60, 60, 10)
    truth = _truth((large, 1), (small, 2))
    right, wrong = _result(large, 1, 0.9), _result(large, 2, 0.8)
    errors = errors_of(truth, [wrong, right])
    assert (errors.found, errors.named, errors.found_small) == (0.5, 1.0, 0.0)
    errors = errors_of(truth, [{**wrong, "score": 0.95}, right, _result(_rle(61, 60, 10), 2, 0.1)])
    assert (errors.found, errors.named, errors.found_small) == (1.0, 0.5, 1.0)


def test_too_little_overlap_is_no_find() -> None:
    errors = errors_of(_truth((_rle(0, 0, 40), 1)), [_result(_rle(20, 0, 40), 1, 0.9)])
    assert (errors.found, errors.named, errors.found_small) == (0.0, 0.0, None)


def test_polygons_and_crowds() -> None:
    truth = _truth(({"counts": [], "size": [100, 100]}, 1))
    truth["annotations"][0]["segmentation"] = [[0, 0, 40, 0, 40, 40, 0, 40]]
    crowd = {"image_id": 1, "category_id": 1, "segmentation": _rle(50, 50, 40), "iscrowd": 1}
    truth["annotations"].append(crowd)
    assert errors_of(truth, [_result(_rle(0, 0, 40), 1, 0.5)]).found == pytest.approx(1.0)
