"""Data sets as other tools write them: every object arrives with its class and its very mask, or is told of."""

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as reference

from sotr.cli import run
from sotr.curation.convert import Conversion, convert_data
from sotr.data.coco import find_data
from sotr.errors import SOTRError
from tests.curation.written import (
    CLASS_FILE,
    CLASS_NUMBERS,
    CLASSES,
    HEIGHT,
    MASKS,
    NAMES,
    NUMBERS,
    WHOLE,
    WIDTH,
    YAML,
    Write,
    box,
    coco,
    cvat,
    image,
    label_image,
    labelme,
    png,
    text,
    voc,
    yolo,
    yolo_lines,
)


def converted(folder: Path, **options: Any) -> Conversion:
    out = folder.parent / "out"
    return convert_data(str(folder), str(out), val_share=0, quiet=True, **options)


def found_masks(folder: Path) -> tuple[np.ndarray, list[str], tuple[str, ...]]:
    data = find_data(folder.parent / "out").train
    assert data is not None
    assert (folder.parent / "out" / "images").is_dir()
    record = data.record(0)
    assert Image.open(record.path).size == (WIDTH, HEIGHT)
    return data.masks(record), [data.class_names[label] for label in record.labels_I], data.class_names


@pytest.mark.parametrize("write", WHOLE.values(), ids=WHOLE)
def test_every_object_arrives_with_its_class_and_mask(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    write(folder)
    result = converted(folder)
    assert (result.pictures, result.objects, result.failures) == ({"train": 1}, {"train": 4}, [])
    masks, names, classes = found_masks(folder)
    for mask, name in zip(MASKS, NAMES, strict=True):
        (same,) = [i for i, other in enumerate(masks) if np.array_equal(other, mask)]
        assert names[same] == name
    in_order = [name for name in CLASSES if name in classes]
    assert list(classes) == in_order or classes == tuple(sorted(classes))


NUMBERED: dict[str, Write] = {
    "numbers": lambda f: label_image(f / "masks/a.png", NUMBERS),
    "NAME_mask": lambda f: label_image(f / "masks/a_mask.png", NUMBERS),
    "split folders": lambda f: label_image(f / "masks/train/a.png", NUMBERS),
    "float TIFF": lambda f: tiff(f / "masks/a.tif", NUMBERS.astype(np.float32)),
    "white is 0": lambda f: tiff(f / "masks/a.tif", NUMBERS, photometric="miniswhite"),
    "a tag to turn": lambda f: tiff(f / "masks/a.tif", NUMBERS, extratags=[(274, 3, 1, 6, True)]),
    "alpha": lambda f: label_image(f / "masks/a.png", np.dstack([NUMBERS * 0, NUMBERS * 0, NUMBERS * 0, NUMBERS])),
    "Thumbs.db": lambda f: (label_image(f / "masks/a.png", NUMBERS), text(f / "masks/Thumbs.db", "x")),
    "a file for each": lambda f: [label_image(f / f"masks/a/{i}.png", m * np.uint8(255)) for i, m in enumerate(MASKS)],
    "soft edges, a file for each": lambda f: [
        label_image(f / f"masks/a/{i}.png", cv2.blur(m * np.uint8(255), (3, 3))) for i, m in enumerate(MASKS)
    ],
    "JPEG, a file for each": lambda f: [
        label_image(f / f"masks/a/{i}.jpg", m * np.uint8(255)) for i, m in enumerate(MASKS)
    ],
}


def tiff(path: Path, values: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, **options)
    return path


@pytest.mark.parametrize("write", NUMBERED.values(), ids=NUMBERED)
def test_masks_of_all_kinds(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "source"
    write(folder)
    split = "train/" if (folder / "masks/train").is_dir() else ""
    image(folder / f"images/{split}a.jpg")
    result = converted(folder, class_name="cell")
    assert (result.objects, result.failures) == ({"train": 4}, [])
    masks, _, classes = found_masks(folder)
    assert classes == ("cell",)
    exact = not any("soft edges" in note for note in result.notes)
    for mask in MASKS:
        overlaps = (masks & mask).sum((1, 2)) / (masks | mask).sum((1, 2))
        assert overlaps.max() == 1 or (not exact and overlaps.max() > 0.9)


def test_cellpose_writes_masks_beside_the_images(tmp_path: Path) -> None:
    image(tmp_path / "source/a.png")
    tiff(tmp_path / "source/a_cp_masks.tif", NUMBERS.astype(np.uint16))
    image(tmp_path / "source/b.png")
    label_image(tmp_path / "source/b_masks.png", NUMBERS)
    assert converted(tmp_path / "source").objects == {"train": 8}
    np.testing.assert_array_equal(found_masks(tmp_path / "source")[0], MASKS)


def test_numbers_that_are_no_objects_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "jpeg/images/a.png")
    label_image(tmp_path / "jpeg/masks/a.jpg", NUMBERS * 60)
    with pytest.raises(SOTRError, match=r"a\.jpg: is a JPEG, whose compression makes numbers of its own"):
        converted(tmp_path / "jpeg")
    image(tmp_path / "soft/images/a.png")
    label_image(tmp_path / "soft/masks/a.png", cv2.GaussianBlur((NUMBERS > 0) * np.uint8(255), (0, 0), 1.5))
    with pytest.raises(SOTRError, match=r"a\.png: has soft edges, whose \d+ numbers are no objects"):
        converted(tmp_path / "soft")
    small = np.zeros((HEIGHT, WIDTH), np.uint16)
    small[::3, ::3] = np.arange(16 * 22).reshape(16, 22)  # objects of one pixel are no edges
    image(tmp_path / "small/images/a.png")
    label_image(tmp_path / "small/masks/a.png", small)
    assert converted(tmp_path / "small").objects == {"train": 16 * 22 - 1}


def test_what_was_assumed_of_masks_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "source"
    image(folder / "images/a.png")
    label_image(folder / "masks/a.png", (NUMBERS > 0) * np.uint8(255))
    result = converted(folder)
    assert result.objects == {"train": 1}
    assert (
        "note: a number with several separate parts was taken for one object (--numbers parts" in capfd.readouterr().err
    )
    (tmp_path / "out").rename(tmp_path / "one")
    assert converted(folder, numbers="parts").objects == {"train": 4}
    assert sorted(map(int, found_masks(folder)[0].sum((1, 2)))) == sorted(map(int, MASKS.sum((1, 2))))
    (tmp_path / "out").rename(tmp_path / "parts")
    label_image(folder / "masks/a.png", CLASS_NUMBERS)
    assert converted(folder, numbers="classes").objects == {"train": 4}
    assert set(found_masks(folder)[1]) == {"class 1", "class 2"}
    (tmp_path / "out").rename(tmp_path / "classes")
    label_image(folder / "masks/a.png", (NUMBERS == 0) * np.uint8(255))
    assert any("if its objects are 0, invert it" in note for note in converted(folder).notes)


def test_cvat_files_of_splits_are_all_read(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    for split in ("train", "val"):
        image(folder / f"images/{split}/{split}.png")
        cvat(folder, "mask", f"{split}.png", f"{split}.xml")
    result = converted(folder)
    assert (result.pictures, result.objects) == ({"train": 1, "val": 1}, {"train": 4, "val": 4})


def test_voc_numbers_beyond_255_and_unnamed_classes(tmp_path: Path) -> None:
    many = np.zeros((HEIGHT, WIDTH), np.uint16)
    many[::2, ::2] = np.arange(24 * 32).reshape(24, 32)
    folder = tmp_path / "source"
    voc(folder, many, (many > 0).astype(np.uint8), False, CLASS_FILE)
    assert converted(folder).objects == {"train": 24 * 32 - 1}
    assert set(found_masks(folder)[1]) == {"wheel"}
    voc(tmp_path / "unnamed", NUMBERS, CLASS_NUMBERS * 30, True, CLASS_FILE)
    with pytest.raises(SOTRError, match=r"object 1: nothing names its class, 60; add it to labelmap\.txt"):
        convert_data(str(tmp_path / "unnamed"), str(tmp_path / "no"), quiet=True)
    assert not (tmp_path / "no").exists()
    voc(tmp_path / "plain", NUMBERS, CLASS_NUMBERS, True, {})
    result = convert_data(str(tmp_path / "plain"), str(tmp_path / "named"), quiet=True)
    assert any("were taken for VOC 2012's classes" in note for note in result.notes)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb2312", "gb18030", "shift_jis", "euc-kr", "latin-1"])
def test_voc_xml_in_the_encoding_that_it_declares(tmp_path: Path, encoding: str) -> None:
    name = {"latin-1": "Schlüssel", "euc-kr": "자동차", "gb2312": "车"}.get(encoding, "車")
    entries = ""
    for mask in MASKS:
        x0, y0, x1, y1 = box(mask)
        corners = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1 + 1}</xmax><ymax>{y1 + 1}</ymax>"
        entries += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
    folder = tmp_path / "source"
    image(folder / "JPEGImages/a.jpg")
    label_image(folder / "SegmentationObject/a.png", NUMBERS)
    declared = f'<?xml version="1.0" encoding="{encoding}"?><annotation>{entries}</annotation>'
    text(folder / "Annotations/a.xml", declared, encoding)
    assert converted(folder).objects == {"train": 4}
    assert found_masks(folder)[2] == (name,)


def test_yolo_says_what_it_cannot_take(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    yolo(folder, "images/train/a.png", "labels/train/a.txt", YAML + "train: images/train\nval: images/vall")
    with pytest.raises(SOTRError, match="val: images/vall is not there; correct it, or drop the line"):
        converted(folder)
    text(folder / "labels/train/alone.txt", "")
    text(folder / "data.yaml", YAML + "train: images/train\ntest: images/test\nkpt_shape: [3, 2]")
    text(folder / "labels/train/a.txt", "0 0.5 0.5 0.2 0.2 0.4 0.4 0.6 0.6 0.5 0.45\n" + yolo_lines())
    result = converted(folder)
    assert result.objects == {"train": 4}
    assert [line.split(": ")[-1] for line in result.failures] == ["is a pose without a mask"]
    assert any("labels without an image" in note and "alone.txt" in note for note in result.notes)
    assert any("test: images/test is not there" in note for note in result.notes)
    yolo(tmp_path / "nameless", "images/a.png", "labels/a.txt", None)
    with pytest.raises(SOTRError, match=r"nothing names its classes; add a classes\.txt"):
        converted(tmp_path / "nameless")


def test_all_that_is_broken_is_listed_and_may_be_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "source"
    yolo(folder, "images/a.png", "labels/a.txt", YAML + "train: images")
    text(
        folder / "labels/a.txt", yolo_lines() + "\n7 0.1 0.1 0.2 0.1 0.2 0.2\n0 0.1 0.1 0.2\n0 0.1 0.1 nan 0.1 0.2 0.2"
    )
    text(folder / "images/b.png", "no image")
    arguments = ["data", "convert", str(folder), str(tmp_path / "out"), "--val-share", "0"]
    assert run(arguments) == 2
    said = capfd.readouterr().err
    assert said.count("\nbroken: ") + said.startswith("broken: ") == 4
    assert "(and 3 more, listed above); --skip-broken leaves them out" in said
    assert not (tmp_path / "out").exists()
    assert run([*arguments, "--skip-broken"]) == 1
    assert "4 left out (4 broken, 0 without a mask)" in capfd.readouterr().err
    np.testing.assert_array_equal(found_masks(folder)[0], MASKS)


def test_odd_shapes_of_labelme_and_xanylabeling(tmp_path: Path) -> None:
    four = [[10, 5], [40, 5], [40, 25], [10, 25]]
    folder = tmp_path / "source"
    own: list[dict[str, Any]] = [
        {"label": "a", "points": four, "shape_type": "rectangle"},
        {"label": "b", "points": four, "shape_type": "rotation", "direction": 0.3},
        {"label": "c", "points": four[:3], "shape_type": "oriented_rectangle"},
        {"label": "d", "points": [[10, 5], [40, 25]], "shape_type": "rectangle"},
    ]
    overhang = base64.b64encode(png(np.ones((10, 12), np.bool_))).decode()
    own.append({"label": "e", "points": [[-3, 20], [8, 29]], "shape_type": "mask", "mask": overhang})
    image(folder / "a.png")
    labelme(folder, own)
    converted(folder)
    masks, names, _ = found_masks(folder)
    assert dict(zip(names, masks.sum((1, 2)).tolist(), strict=True)) == {
        "a": 600,
        "b": 600,
        "c": 600,
        "d": 600,
        "e": 90,
    }


ODD: dict[str, Any] = {
    "no points": {},
    "points a dict": {"points": {"a": 1}},
    "a point of one": {"points": [[1], [2], [3]]},
    "huge": {"points": [[0, 0], [1e9, 0], [1e9, 1e9]]},
    "beyond floats": {"points": [[0, 0], [10**400, 0], [1, 1]]},
    "infinite mask": {"points": [[0, 0], [float("inf"), 9]], "shape_type": "mask", "mask": ""},
    "mask that is none": {"points": [[0, 0], [3, 3]], "shape_type": "mask", "mask": "AAAA"},
    "mask without a key": {"points": [[0, 0], [3, 3]], "shape_type": "mask"},
    "group a list": {"points": [[0, 0], [1e9, 0], [1e9, 1e9]], "group_id": [1]},
}


@pytest.mark.parametrize("shape", ODD.values(), ids=ODD)
def test_odd_shapes_are_one_line(tmp_path: Path, shape: Any) -> None:
    folder = tmp_path / "source"
    image(folder / "a.png")
    labelme(folder, [{"label": "x", **shape}])
    with pytest.raises(SOTRError, match=r"a\.json (shape|group) ") as caught:
        converted(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_deep_and_endless_files_are_one_line(tmp_path: Path) -> None:
    image(tmp_path / "deep/a.png")
    text(tmp_path / "deep/a.json", '{"shapes": ' + "[" * 100_000 + "]" * 100_000 + "}")
    labelme(tmp_path / "deep", file="b.json")
    with pytest.raises(SOTRError, match="is nested too deeply"):
        converted(tmp_path / "deep")
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    for content, message in ((bomb, "references"), ("names: 2026-99-99\n", "not valid YAML"), ("a: " * 9, "not valid")):
        yolo(tmp_path / "yaml", "images/a.png", "labels/a.txt", content)
        with pytest.raises(SOTRError, match=message):
            converted(tmp_path / "yaml")


def test_crowds_of_coco_stay_crowds(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    image(folder / "images/a.png")
    coco(folder, "result.json", "a.png")
    content = json.loads((folder / "result.json").read_text())
    rle = reference.encode(np.asfortranarray(MASKS[0].astype(np.uint8)))
    content["annotations"][0].update(iscrowd=1, segmentation={**rle, "counts": rle["counts"].decode()})
    text(folder / "result.json", content)
    converted(folder)
    data = find_data(tmp_path / "out").train
    assert data is not None
    assert data.iscrowd.tolist() == [True, False, False, False]
