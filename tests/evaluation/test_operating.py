import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from sotr.data.coco import CocoDataset, load_coco
from sotr.evaluation.operating import operating_point


def rle(x: int, width: int = 8) -> dict:
    mask = np.zeros((16, 64), np.uint8)
    mask[4:12, x : x + width] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [16, 64], "counts": encoded["counts"].decode()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """One image with three objects of class 5, one of class 9 and a crowd of class 5."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.png").touch()
    objects = [(0, 5, 0), (10, 5, 0), (20, 5, 0), (30, 9, 0), (40, 5, 1)]
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": c, "segmentation": rle(x), "area": 64, "iscrowd": crowd}
        for i, (x, c, crowd) in enumerate(objects)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 16, "width": 64}],
        "annotations": annotations,
        "categories": [{"id": 5, "name": "a"}, {"id": 9, "name": "b"}],
    }
    (folder / "val.json").write_text(json.dumps(content))
    return load_coco(folder / "val.json", folder)


def result(x: int, score: float, category: int = 5) -> dict:
    return {"image_id": 1, "category_id": category, "segmentation": rle(x), "score": score}


def test_the_best_score_lies_between_right_and_wrong(data: CocoDataset) -> None:
    right = [result(0, 0.9), result(10, 0.8), result(20, 0.7), result(30, 0.6, 9)]
    wrong = [result(56, 0.4), result(0, 0.35), result(30, 0.3, 5)]  # nothing, a duplicate, another class
    found = operating_point(data, [*wrong, *right])
    assert found is not None
    assert (found.score, found.f1) == (0.5, 1.0)


def test_crowds_count_for_nothing(data: CocoDataset) -> None:
    found = operating_point(data, [result(0, 0.9), result(40, 0.95), result(41, 0.94)])
    assert found is not None
    assert found.f1 == pytest.approx(2 * 1 / (1 + 4))


def test_nothing_right_is_no_score(data: CocoDataset) -> None:
    assert operating_point(data, []) is None
    assert operating_point(data, [result(56, 0.9)]) is None


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 2, 10, 20, 30, 56]), st.integers(1, 99), st.sampled_from([5, 9])), max_size=8
    )
)
def test_no_other_score_is_better(data: CocoDataset, drawn: list[tuple[int, int, int]]) -> None:
    results = [result(x, score / 100, category) for x, score, category in drawn]
    found = operating_point(data, results)
    for threshold in sorted({r["score"] for r in results}):
        other = operating_point(data, [r for r in results if r["score"] >= threshold])
        assert other is None or (found is not None and other.f1 <= found.f1 + 1e-9)
