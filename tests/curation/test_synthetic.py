"""Synthetic shapes: a function of seed and number alone, with masks that are exactly what is seen."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sotr.curation.synthetic import MIN_VISIBLE, SHAPES, VAL_START, SyntheticShapes, write_synthetic
from sotr.data.coco import find_data
from sotr.data.images import load_image
from sotr.errors import SOTRError


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), index=st.integers(0, 2**40), objects=st.integers(0, 20))
def test_a_picture_is_a_function_of_seed_and_number(seed: int, index: int, objects: int) -> None:
    first, second = (SyntheticShapes(64, 80, objects, objects, seed=seed)[index] for _ in range(2))
    np.testing.assert_array_equal(first.image_HW3, second.image_HW3)
    np.testing.assert_array_equal(first.objects_HW, second.objects_HW)
    np.testing.assert_array_equal(first.labels_I, second.labels_I)
    other = SyntheticShapes(64, 80, objects, objects, seed=seed)[index + 1]
    assert (first.image_HW3 != other.image_HW3).any()


def test_objects_are_disjoint_seen_and_of_all_classes() -> None:
    shapes = SyntheticShapes(height=96, width=128, min_objects=2, max_objects=9, classes=len(SHAPES))
    labels: list[int] = []
    for index in range(40):
        picture = shapes[index]
        masks = picture.masks_IHW
        assert 1 <= len(masks) <= 9
        assert masks.sum(0).max() <= 1
        assert masks.any((1, 2)).all()
        labels += picture.labels_I.tolist()
    assert set(labels) == set(range(len(SHAPES)))


def test_rings_have_holes_and_hiding_splits_objects() -> None:
    shapes = SyntheticShapes(height=160, width=160, min_objects=8, max_objects=8, classes=len(SHAPES))
    ring = list(SHAPES).index("ring")
    holes = parts = 0
    for index in range(30):
        picture = shapes[index]
        for label, mask in zip(picture.labels_I, picture.masks_IHW, strict=True):
            count, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
            parts += count > 2
            _, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            holes += label == ring and any(parent >= 0 for parent in tree[0][:, 3])
    assert holes > 10
    assert parts > 5


def test_a_shape_in_the_open_has_the_area_of_geometry() -> None:
    expected = {"disc": np.pi, "box": 1.6 * 1.2, "ring": 0.7 * np.pi, "bar": 0.8, "triangle": 27**0.5 / 4}
    rows, columns = (np.mgrid[:400, :400].astype(np.float32) + 0.5) / 200 - 1
    for name, area in expected.items():
        assert SHAPES[name](columns, rows).mean() * 4 == pytest.approx(area, rel=0.01)
    # Five points of the star: 10 triangles between the center, an outer and an inner corner.
    star = 10 * 0.5 * 0.45 * np.sin(np.pi / 5)
    assert SHAPES["star"](columns, rows).mean() * 4 == pytest.approx(star, rel=0.01)


def test_many_objects_find_room() -> None:
    assert len(SyntheticShapes(256, 320, 300, 300)[0].labels_I) > 280
    assert MIN_VISIBLE > 0.1


def test_the_folder_is_a_coco_data_set_equal_to_the_byte(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_synthetic(tmp_path / name, train=3, val=2, height=48, width=64, classes=3, seed=7, quiet=True)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert [path.name for path in files].count("train.json") == 1
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    splits = find_data(tmp_path / "one")
    shapes = SyntheticShapes(48, 64, classes=3, seed=7)
    for data, start in ((splits.train, 0), (splits.val, VAL_START)):
        assert data is not None
        assert data.class_names == ("disc", "box", "star")
        for index in range(len(data)):
            record, picture = data.record(index), shapes[start + index]
            np.testing.assert_array_equal(data.masks(record), picture.masks_IHW)
            np.testing.assert_array_equal(record.labels_I, picture.labels_I)
            difference = load_image(record.path).astype(int) - picture.image_HW3
            assert np.abs(difference).mean() < 12


def test_more_pictures_leave_the_first_ones_alone(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "few", train=1, val=1, height=32, width=32, quiet=True)
    write_synthetic(tmp_path / "more", train=3, val=1, height=32, width=32, quiet=True)
    for name in ("train_000000.jpg", "val_000000.jpg"):
        assert (tmp_path / "few/images" / name).read_bytes() == (tmp_path / "more/images" / name).read_bytes()


def test_a_split_may_be_left_out(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "data", train=2, val=0, height=32, width=32, min_objects=0, max_objects=0, quiet=True)
    assert not (tmp_path / "data" / "val.json").exists()
    assert json.loads((tmp_path / "data" / "train.json").read_text())["annotations"] == []


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"height": 8}, "height is 8"),
        ({"min_objects": 5, "max_objects": 3}, "min_objects is 5"),
        ({"classes": 9}, "there are 1 to 7"),
        ({"seed": -1}, "seed is -1"),
        ({"train": 0, "val": 0}, "both 0"),
        ({"train": -1}, "train is -1"),
    ],
)
def test_bad_settings_leave_nothing(tmp_path: Path, settings_: dict[str, int], message: str) -> None:
    with pytest.raises(SOTRError, match=message):
        write_synthetic(tmp_path / "data", **settings_)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    with pytest.raises(SOTRError, match="is there already"):
        write_synthetic(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
