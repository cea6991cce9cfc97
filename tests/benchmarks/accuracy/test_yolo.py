"""What is written for ultralytics, and what is said when its Python cannot be run."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.accuracy.yolo import joined, write_split
from faster_coco_eval.core import mask as coco_mask

from benchmarks.accuracy import accuracy
from sotr.curation.formats import yolo as yolo_format
from sotr.data.coco import find_data
from sotr.errors import SOTRError
from sotr.masks.checked import rle_of_segmentation
from sotr.masks.polygons import polygons


def test_the_labels_are_those_of_the_data(coco_folder: Path, tmp_path: Path) -> None:
    data = find_data(coco_folder).train
    assert data is not None
    write_split(data, tmp_path, "train")
    (tmp_path / "data.yaml").write_text(f"path: .\ntrain: images/train\nnames: {list(data.class_names)}\n")
    source = yolo_format.read(tmp_path)
    images = {image.path.stem: image for image in (make() for make in source.images)}
    assert len(images) == len(data)
    for index, image_id in enumerate(data.image_ids.tolist()):
        record = data.record(index)
        masks = data.masks(record)[~record.iscrowd_I]
        objects = images[str(image_id)].objects
        assert len(objects) == len(masks)
        assert images[str(image_id)].broken == []
        for found, mask in zip(objects, masks, strict=True):
            drawn = coco_mask.decode({"size": [record.height, record.width], "counts": found.rle}).astype(bool)
            assert (drawn & mask).sum() / (drawn | mask).sum() > 0.95


def test_parts_are_joined_where_they_are_nearest() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:6, 2:6] = mask[2:6, 9:14] = mask[12:18, 10:14] = True
    whole = joined(polygons(mask))
    rle = rle_of_segmentation([whole.ravel().tolist()], (20, 20))
    assert np.array_equal(coco_mask.decode(rle).astype(bool), mask)


def test_a_python_must_be_named_and_must_run(coco_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SOTRError, match="yolo11n needs --yolo-python"):
        accuracy(str(coco_folder), str(tmp_path / "out"), competitors=["yolo11n"], recipe="finetune")
    with pytest.raises(SOTRError, match="nowhere/python cannot be run"):
        accuracy(
            str(coco_folder),
            str(tmp_path / "out"),
            competitors=["yolo11n"],
            recipe="finetune",
            yolo_python="nowhere/python",
        )
