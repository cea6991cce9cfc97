import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sotr.data import CocoDataset, load_coco
from sotr.evaluation.coco import coco_metrics, precision_recall
from sotr.evaluation.confusion import confusion
from sotr.results.instances import encode_masks


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((20, 20), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def result(image_id: int, category_id: int, mask: np.ndarray, score: float = 0.9) -> dict:
    return {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": encode_masks(mask[None])[0],
        "score": score,
    }


@pytest.fixture
def data(tmp_path: Path) -> CocoDataset:
    """Three images: two objects and a crowd, one object, none."""
    objects = [
        (1, 5, box(0, 0, 8, 8), 0),
        (1, 9, box(10, 0, 18, 8), 0),
        (1, 5, box(0, 10, 20, 20), 1),
        (2, 9, box(4, 4, 12, 12), 0),
    ]
    annotations = [
        {
            "id": i + 1,
            "image_id": image,
            "category_id": c,
            "iscrowd": crowd,
            "segmentation": encode_masks(mask[None])[0],
        }
        for i, (image, c, mask, crowd) in enumerate(objects)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 20} for i in (1, 2, 3)]
    categories = [{"id": 5, "name": "disc"}, {"id": 9, "name": "box"}]
    (tmp_path / "val.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    for i in (1, 2, 3):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{i}.png")
    return load_coco(tmp_path / "val.json", tmp_path)


def test_objects_are_matched_once_whatever_their_class(data: CocoDataset) -> None:
    found = confusion(
        data,
        [
            result(1, 5, box(0, 0, 8, 6)),  # 0.75 of the disc
            result(1, 5, box(0, 0, 8, 8), 0.4),  # all of it: this one is taken
            result(1, 5, box(10, 0, 18, 8)),  # a box taken for a disc
            result(1, 9, box(2, 12, 8, 18)),  # in the crowd: neither right nor wrong
            result(2, 9, box(4, 4, 12, 12), 0.2),  # below the score
            result(3, 5, box(0, 0, 3, 3)),  # nothing there
        ],
    )
    #  found as disc, box, not found
    assert found.counts_TF.tolist() == [[1, 0, 0], [1, 0, 1], [2, 0, 0]]
    # Image 1: one object of IoU 1 with its class, of 2 true and 3 detected ones.
    assert found.quality_N.tolist() == pytest.approx([1 / 2.5, 0, 0])


def test_a_perfect_model_is_on_the_diagonal(data: CocoDataset) -> None:
    results = [
        result(data.image_ids[i], data.category_ids[label], mask)
        for i in range(len(data))
        for record in [data.record(i)]
        for label, mask, crowd in zip(record.labels_I, data.masks(record), record.iscrowd_I, strict=True)
        if not crowd
    ]
    found = confusion(data, results)
    assert found.counts_TF.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert found.quality_N.tolist() == [1, 1, 1]
    curves = precision_recall(data.truth(), results)
    assert curves.keys() == {"disc", "box"}
    assert all((curve == 1).all() for curve in curves.values())


def test_precision_recall_averages_to_ap50(data: CocoDataset) -> None:
    results = [
        result(1, 9, box(0, 0, 3, 3), 0.95),
        result(1, 9, box(10, 0, 18, 8), 0.9),
        result(2, 9, box(0, 0, 3, 3), 0.8),
        result(2, 9, box(4, 4, 12, 11), 0.7),
    ]
    curves = precision_recall(data.truth(), results)
    metrics = coco_metrics(data.truth(), results)
    assert 0 < metrics.per_class["box"].AP50 < 1
    assert curves["box"].mean() == pytest.approx(metrics.per_class["box"].AP50)
    assert curves["disc"].max() == 0
