"""Other formats become COCO, and every mask survives: holes, parts and all, as far as the format can hold them."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from PIL import Image

from sotr.curation.convert import convert_data
from sotr.data.coco import CocoDataset, find_data
from sotr.errors import SOTRError

HEIGHT, WIDTH = 12, 17
NUMBERS = stn.arrays(np.uint8, (HEIGHT, WIDTH), elements=st.integers(0, 3))
"""Objects 1 to 3 as numbers: of many parts and with many holes."""
RELAXED = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lambda: tmp_path_factory.mktemp("source")


def save_picture(path: Path, height: int = HEIGHT, width: int = WIDTH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 120, 60)).save(path)


def save_labels(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def converted(source: Path, **options: Any) -> CocoDataset:
    out = source.parent / f"{source.name}-out"
    convert_data(str(source), str(out), val_share=0, quiet=True, **options)
    data = find_data(out).train
    assert data is not None
    return data


def masks_of(data: CocoDataset, index: int = 0) -> np.ndarray:
    return data.masks(data.record(index))


def objects_in(numbers_HW: np.ndarray) -> np.ndarray:
    values = [value for value in np.unique(numbers_HW) if value]
    return np.stack([numbers_HW == v for v in values]) if values else np.zeros((0, HEIGHT, WIDTH), np.bool_)


@RELAXED
@given(numbers_HW=NUMBERS, kind=st.sampled_from(["grey", "grey16", "palette", "colour"]))
def test_numbered_masks(new_folder: Any, numbers_HW: np.ndarray, kind: str) -> None:
    source = new_folder()
    numbers_HW[0, 0] = 1
    save_picture(source / "images" / "a b[1].jpg")
    path = source / "masks" / "a b[1].png"
    if kind == "palette":
        path.parent.mkdir()
        picture = Image.fromarray(numbers_HW, "P")
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
        picture.save(path)
    elif kind == "colour":
        save_labels(path, np.stack([numbers_HW * 60, numbers_HW, numbers_HW * 0], -1))
    else:
        save_labels(path, numbers_HW.astype(np.uint16) * 300 if kind == "grey16" else numbers_HW)
    data = converted(source, class_name="cell")
    assert data.class_names == ("cell",)
    np.testing.assert_array_equal(masks_of(data), objects_in(numbers_HW))


@RELAXED
@given(numbers_HW=NUMBERS, nested=st.booleans())
def test_a_mask_picture_per_object(new_folder: Any, numbers_HW: np.ndarray, nested: bool) -> None:
    source = new_folder()
    numbers_HW[0, 0] = 1
    images, masks = (source / "p1/images", source / "p1/masks") if nested else (source / "images", source / "masks/p1")
    save_picture(images / "p1.png")
    for i, mask in enumerate(objects_in(numbers_HW)):
        save_labels(masks / f"{i}.png", mask.astype(np.uint8) * 255)
    np.testing.assert_array_equal(masks_of(converted(source)), objects_in(numbers_HW))


def test_folders_of_masks_name_classes_and_splits(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("valid", "b")):
        save_picture(tmp_path / "s" / split / "images" / f"{name}.png")
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for class_name in ("cat", "dog"):
            mask[3:6] += 100
            save_labels(tmp_path / "s" / split / "masks" / name / class_name / "0.png", mask)
    save_labels(tmp_path / "s/train/masks/a/dog/1.png", mask * 0)
    result = convert_data(str(tmp_path / "s"), str(tmp_path / "out"), quiet=True)
    assert (result.pictures, result.objects) == ({"train": 1, "val": 1}, {"train": 2, "val": 2})
    assert len(result.failures) == 1  # the mask without pixels
    data = find_data(tmp_path / "out")
    assert data.val is not None
    assert data.val.class_names == ("cat", "dog")


@RELAXED
@given(numbers_HW=NUMBERS, by=st.sampled_from(["classes", "boxes"]))
def test_voc(new_folder: Any, numbers_HW: np.ndarray, by: str) -> None:
    source = new_folder()
    numbers_HW[0, 0], numbers_HW[-1, -1] = 1, 255
    save_picture(source / "JPEGImages" / "2007_1.jpg")
    save_labels(source / "SegmentationObject" / "2007_1.png", numbers_HW)
    objects_HW = np.where(numbers_HW == 255, 0, numbers_HW)
    names = {1: "cat", 2: "dog", 3: "cat"}
    if by == "classes":
        save_labels(source / "SegmentationClass" / "2007_1.png", np.array([0, 8, 12, 8], np.uint8)[objects_HW])
    else:
        entries = []
        for value in np.unique(objects_HW[objects_HW > 0]):
            rows, columns = np.nonzero(objects_HW == value)
            box = {"xmin": columns.min() + 1, "ymin": rows.min() + 1, "xmax": columns.max() + 1, "ymax": rows.max() + 1}
            corners = "".join(f"<{key}>{number}</{key}>" for key, number in box.items())
            entries.append(f"<object><name>thing</name><bndbox>{corners}</bndbox></object>")
        (source / "Annotations").mkdir()
        (source / "Annotations" / "2007_1.xml").write_text(f"<annotation>{''.join(entries)}</annotation>")
        names = dict.fromkeys(names, "thing")
    data = converted(source)
    np.testing.assert_array_equal(masks_of(data), objects_in(objects_HW))
    expected = [names[value] for value in np.unique(objects_HW) if value]
    assert [data.class_names[label] for label in data.labels] == expected


def test_voc_splits_and_boxes_alone(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for stem, split in (("a", "train"), ("b", "val")):
        save_picture(root / "JPEGImages" / f"{stem}.jpg")
        save_labels(root / "SegmentationObject" / f"{stem}.png", np.ones((HEIGHT, WIDTH), np.uint8))
        save_labels(root / "SegmentationClass" / f"{stem}.png", np.full((HEIGHT, WIDTH), 15, np.uint8))
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{stem}\n")
    assert convert_data(str(tmp_path), str(tmp_path / "out"), quiet=True).pictures == {"train": 1, "val": 1}
    (tmp_path / "boxes" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "boxes" / "Annotations").mkdir()
    with pytest.raises(SOTRError, match="has boxes only; masks are needed"):
        convert_data(str(tmp_path / "boxes"), str(tmp_path / "out2"))


POLYGON = st.lists(st.tuples(st.integers(0, WIDTH), st.integers(0, HEIGHT)), min_size=3, max_size=9).map(
    lambda points: [float(value) for point in points for value in point]
)


@RELAXED
@given(polygons=st.lists(POLYGON, min_size=1, max_size=4))
def test_yolo(new_folder: Any, polygons: list[list[float]]) -> None:
    source = new_folder()
    (source / "data.yaml").write_text("path: /elsewhere\ntrain: ../train/images\nnames: [cat, dog]\n")
    save_picture(source / "train/images/x.png")
    lines = [
        f"{i % 2} " + " ".join(f"{value / (WIDTH, HEIGHT)[k % 2]:.9f}" for k, value in enumerate(polygon))
        for i, polygon in enumerate(polygons)
    ]
    (source / "train/labels").mkdir()
    (source / "train/labels/x.txt").write_text("\n".join(lines) + "\n")
    convert_data(str(source), str(source) + "-out", val_share=0, quiet=True)
    written = json.loads((Path(f"{source}-out") / "train.json").read_text())
    for annotation, polygon in zip(written["annotations"], polygons, strict=True):
        assert annotation["segmentation"][0] == pytest.approx(polygon, abs=1e-6)
    assert [a["category_id"] for a in written["annotations"]] == [1 + i % 2 for i in range(len(polygons))]
    assert [category["name"] for category in written["categories"]] == ["cat", "dog"]


@RELAXED
@given(polygons=st.lists(POLYGON, min_size=2, max_size=4), numbers_HW=NUMBERS, grouped=st.booleans())
def test_labelme(new_folder: Any, polygons: list[list[float]], numbers_HW: np.ndarray, grouped: bool) -> None:
    source = new_folder()
    save_picture(source / "x.png")
    shapes: list[dict[str, Any]] = [
        {
            "label": "cat",
            "points": np.reshape(polygon, (-1, 2)).tolist(),
            "group_id": 7 if grouped else None,
            "shape_type": "polygon",
        }
        for polygon in polygons
    ]
    numbers_HW[2, 3] = 1
    mask_HW = numbers_HW == 1
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    part = mask_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    buffer = io.BytesIO()
    Image.fromarray(part).save(buffer, "png")
    corners = [[int(columns[0]), int(rows[0])], [int(columns[-1]), int(rows[-1])]]
    encoded = base64.b64encode(buffer.getvalue()).decode()
    shapes.append({"label": "dog", "points": corners, "group_id": None, "shape_type": "mask", "mask": encoded})
    shapes.append({"label": "cat", "points": [[1, 1]], "group_id": None, "shape_type": "point"})
    content = {"imagePath": "x.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
    (source / "x.json").write_text(json.dumps(content))
    out = Path(f"{source}-out")
    result = convert_data(str(source), str(out), val_share=0, quiet=True)
    assert len(result.failures) == 1
    written = json.loads((out / "train.json").read_text())["annotations"]
    cats = [a["segmentation"] for a in written if a["category_id"] == 1]
    assert cats == ([polygons] if grouped else [[polygon] for polygon in polygons])
    data = find_data(out).train
    assert data is not None
    (dog,) = np.flatnonzero(data.labels == 1)
    np.testing.assert_array_equal(masks_of(data)[dog], mask_HW)


def test_labelme_rectangles_and_circles(tmp_path: Path) -> None:
    save_picture(tmp_path / "s" / "x.png", 40, 40)
    shapes = [
        {"label": "a", "points": [[2, 3], [10, 13]], "shape_type": "rectangle"},
        {"label": "b", "points": [[20, 20], [30, 20]], "shape_type": "circle"},
    ]
    (tmp_path / "s" / "x.json").write_text(json.dumps({"imagePath": "x.png", "shapes": shapes}))
    data = converted(tmp_path / "s")
    assert masks_of(data)[0].sum() == 80
    assert masks_of(data)[1].sum() == pytest.approx(np.pi * 100, rel=0.03)


def test_val_share_depends_on_names_alone(tmp_path: Path) -> None:
    for i in range(40):
        save_picture(tmp_path / "s" / "images" / f"{i}.png")
        save_labels(tmp_path / "s" / "masks" / f"{i}.png", np.ones((HEIGHT, WIDTH), np.uint8))
    names = []
    for out in ("one", "two"):
        convert_data(str(tmp_path / "s"), str(tmp_path / out), val_share=0.3, quiet=True)
        names.append([i["file_name"] for i in json.loads((tmp_path / out / "val.json").read_text())["images"]])
    assert names[0] == names[1]
    assert 4 <= len(names[0]) <= 20


def write_yolo(folder: Path, line: str) -> None:
    (folder / "data.yaml").write_text("train: images\nnames: {0: cat}\n")
    save_picture(folder / "images" / "x.png")
    (folder / "labels").mkdir()
    (folder / "labels" / "x.txt").write_text(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.1 0.1 0.5", r"x.txt line 1: a polygon has 3 numbers"),
        ("1 0.1 0.1 0.5 0.5 0.1 0.9", r"x.txt line 1: there is no class 1; the classes are 0"),
        ("0 0.1 0.1 0.5 0.5 0.1 9", r"x.txt line 1: coordinates must lie in 0..1"),
        ("0 0.1 0.1 0.5 0.5 0.1 nan", r"x.txt line 1"),
        ("cat 0.1", r"x.txt line 1: 'cat 0.1' is not a class number"),
        ("0 0.5 0.5 0.2 0.2", r"has no object with a mask"),
    ],
)
def test_bad_labels_name_file_and_line_and_leave_nothing(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "s").mkdir()
    write_yolo(tmp_path / "s", line)
    with pytest.raises(SOTRError, match=message):
        convert_data(str(tmp_path / "s"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_picture_of_two_splits_that_are_one_folder_is_converted_once(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    write_yolo(tmp_path / "s", "0 0.1 0.1 0.5 0.5 0.1 0.9")
    (tmp_path / "s" / "data.yaml").write_text("train: images\nval: images\ntest: images\nnames: {0: cat}\n")
    assert convert_data(str(tmp_path / "s"), str(tmp_path / "out"), quiet=True).pictures == {"train": 1, "val": 1}


def test_labels_in_another_encoding_are_named(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    write_yolo(tmp_path / "s", "0 0.1 0.1 0.5 0.5 0.1 0.9")
    label = tmp_path / "s" / "labels" / "x.txt"
    label.write_bytes(b"\xef\xbb\xbf" + label.read_bytes())  # UTF-8 as Windows has it
    assert convert_data(str(tmp_path / "s"), str(tmp_path / "utf-8"), quiet=True).objects == {"train": 1}
    label.write_bytes("0 0.1 ä".encode("latin-1"))
    with pytest.raises(SOTRError, match=r"x\.txt: is no text in UTF-8; save it as such"):
        convert_data(str(tmp_path / "s"), str(tmp_path / "out"))
    save_labels(tmp_path / "voc" / "SegmentationObject" / "a.png", np.ones((HEIGHT, WIDTH), np.uint8))
    save_picture(tmp_path / "voc" / "JPEGImages" / "a.jpg")
    listed = tmp_path / "voc" / "ImageSets" / "Segmentation" / "train.txt"
    listed.parent.mkdir(parents=True)
    listed.write_bytes("ä".encode("latin-1"))
    with pytest.raises(SOTRError, match=r"train\.txt: is no text in UTF-8; save it as such"):
        convert_data(str(tmp_path / "voc"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_unknown_and_ambiguous_folders(tmp_path: Path) -> None:
    with pytest.raises(SOTRError, match=r"in none of the known formats \(yolo, voc, labelme, masks, coco, "):
        convert_data(str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(SOTRError, match="no such folder"):
        convert_data(str(tmp_path / "nothing"), str(tmp_path / "out"))
    with pytest.raises(SOTRError, match="there is no format 'dota'"):
        convert_data(str(tmp_path), str(tmp_path / "out"), format="dota")
    write_yolo(tmp_path, "0 0.1 0.1 0.5 0.5 0.1 0.9")
    (tmp_path / "masks").mkdir()
    with pytest.raises(SOTRError, match=r"could be in several formats \(yolo, masks\)"):
        convert_data(str(tmp_path), str(tmp_path / "out"))
    assert convert_data(str(tmp_path), str(tmp_path / "out"), format="yolo", quiet=True).failures == []


def test_a_mask_of_another_size_or_without_a_picture(tmp_path: Path) -> None:
    save_picture(tmp_path / "images" / "a.png")
    save_labels(tmp_path / "masks" / "a.png", np.ones((5, 5), np.uint8))
    with pytest.raises(SOTRError, match=r"a.png: is 5 x 5, its image 17 x 12"):
        convert_data(str(tmp_path), str(tmp_path / "out"))
    save_labels(tmp_path / "masks" / "b.png", np.ones((5, 5), np.uint8))
    with pytest.raises(SOTRError, match=r"b.png: has no image b"):
        convert_data(str(tmp_path), str(tmp_path / "out"))
