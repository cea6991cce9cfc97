"""COCO files: masks in every encoding, gapped ids, layouts, and one clear line for each thing that can be wrong."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO

from sotr.data.coco import find_data, load_coco
from sotr.errors import SOTRError
from sotr.masks import run_lengths as rle

Content = dict[str, Any]
SQUARE = [2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]


def content() -> Content:
    """A sound file: one 20 x 16 image with a square and an image without objects."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 16, "width": 20},
            {"id": 4, "file_name": "sub/b.png", "height": 16, "width": 20},
        ],
        "annotations": [{"id": 5, "image_id": 7, "category_id": 17, "segmentation": [SQUARE], "iscrowd": 0}],
        "categories": [{"id": 90, "name": "bar"}, {"id": 17, "name": "box"}],
    }


def write(folder: Path, data: object, name: str = "train.json") -> Path:
    images = folder / "images"
    (images / "sub").mkdir(parents=True, exist_ok=True)
    for file in ("a.png", "sub/b.png"):
        Image.new("RGB", (20, 16)).save(images / file)
    (folder / name).write_text(data if isinstance(data, str) else json.dumps(data))
    return folder / name


def load(folder: Path, data: object) -> Any:
    return load_coco(write(folder, data), folder / "images")


def test_every_encoding_gives_the_masks_of_pycocotools(coco_folder: Path) -> None:
    for split in ("train", "val"):
        ours = load_coco(coco_folder / f"{split}.json", coco_folder / "images")
        theirs = COCO(str(coco_folder / f"{split}.json"))
        seen = 0
        for index in range(len(ours)):
            record = ours.record(index)
            masks = ours.masks(record)
            assert masks.shape == (len(record.labels_I), record.height, record.width)
            for i, annotation_id in enumerate(record.annotation_ids_I.tolist()):
                annotation = theirs.anns[annotation_id]
                expected = theirs.annToMask(annotation).astype(bool)
                np.testing.assert_array_equal(masks[i], expected)
                assert ours.category_ids[record.labels_I[i]] == annotation["category_id"]
                assert annotation["image_id"] == record.image_id
                assert record.areas_I[i] == annotation["area"]
                x, y, width, height = annotation["bbox"]
                assert record.boxes_I4[i].tolist() == [x, y, x + width, y + height]
                seen += 1
        assert seen == len(theirs.anns) > 5


def test_gapped_categories_are_sorted_and_named(coco_folder: Path) -> None:
    data = load_coco(coco_folder / "train.json", coco_folder / "images")
    assert data.category_ids == (3, 17, 90)
    assert data.class_names == ("disc", "box", "bar")
    assert set(data.labels.tolist()) == {0, 1, 2}


def test_pictures_without_objects_stay_and_crowds_are_marked(coco_folder: Path) -> None:
    data = load_coco(coco_folder / "train.json", coco_folder / "images")
    assert len(data) == 8
    assert len(data.record(0).labels_I) == 0
    assert data.masks(data.record(0)).shape == (0, *data.sizes_N2[0])
    assert data.iscrowd.sum() == 1
    assert data.record(1).iscrowd_I[0]


def test_truth_is_a_coco_file_that_pycocotools_reads_alike(coco_folder: Path, tmp_path: Path) -> None:
    data = load_coco(coco_folder / "train.json", coco_folder / "images")
    (tmp_path / "truth.json").write_text(json.dumps(data.truth()))
    ours, theirs = COCO(str(tmp_path / "truth.json")), COCO(str(coco_folder / "train.json"))
    assert ours.getImgIds() == theirs.getImgIds()
    assert ours.getCatIds() == sorted(theirs.getCatIds())
    assert set(ours.anns) == set(theirs.anns)
    for annotation_id, annotation in ours.anns.items():
        original = theirs.anns[annotation_id]
        for key in ("image_id", "category_id", "area", "iscrowd", "bbox"):
            assert annotation[key] == original[key]
        np.testing.assert_array_equal(ours.annToMask(annotation), theirs.annToMask(original))


def test_truth_never_uses_annotation_id_0(tmp_path: Path) -> None:
    data = content()
    data["annotations"].append({**data["annotations"][0], "id": 0})
    assert sorted(a["id"] for a in load(tmp_path, data).truth()["annotations"]) == [1, 2]


def test_area_of_the_file_is_kept_and_computed_where_absent(tmp_path: Path) -> None:
    assert load(tmp_path, content()).areas.tolist() == [36]
    data = content()
    data["annotations"][0]["area"] = 35.5
    assert load(tmp_path, data).areas.tolist() == [35.5]
    data["annotations"][0]["area"] = float("nan")
    assert load(tmp_path, data).areas.tolist() == [36]


def test_annotations_are_grouped_by_picture_in_the_order_of_the_file(tmp_path: Path) -> None:
    data = content()
    for annotation_id, image_id in ((9, 4), (2, 7), (1, 4)):
        data["annotations"].append({**data["annotations"][0], "id": annotation_id, "image_id": image_id})
    loaded = load(tmp_path, data)
    assert loaded.record(0).annotation_ids_I.tolist() == [5, 2]
    assert loaded.record(1).annotation_ids_I.tolist() == [9, 1]
    assert loaded.record(1).path == tmp_path / "images" / "sub" / "b.png"


def test_objects_without_pixels_are_counted_not_refused(tmp_path: Path) -> None:
    data = content()
    data["annotations"][0]["segmentation"] = [[1.0, 1.0] * 3]
    loaded = load(tmp_path, data)
    assert loaded.skipped == (5,)
    assert loaded.boxes.tolist() == [[0, 0, 0, 0]]


def test_no_annotations_at_all(tmp_path: Path) -> None:
    data = content()
    data["annotations"] = []
    loaded = load(tmp_path, data)
    assert len(loaded) == 2
    assert loaded.truth()["annotations"] == []


def annotation(**changes: Any) -> Callable[[Content], None]:
    return lambda data: data["annotations"][0].update(changes)


def picture(**changes: Any) -> Callable[[Content], None]:
    return lambda data: data["images"][0].update(changes)


def drop(kind: str, key: str) -> Callable[[Content], None]:
    return lambda data: data[kind][0].pop(key)


def again(kind: str) -> Callable[[Content], None]:
    return lambda data: data[kind].append(dict(data[kind][0]))


def runs(*counts: Any) -> dict[str, Any]:
    return {"size": [16, 20], "counts": list(counts)}


BROKEN: list[tuple[str, Callable[[Content], Any], str]] = [
    ("polygon of 2 points", annotation(segmentation=[SQUARE[:4]]), "annotation 5 .*fewer than 3 points"),
    ("one part too short", annotation(segmentation=[SQUARE, SQUARE[:4]]), "annotation 5 .*fewer than 3 points"),
    ("odd coordinates", annotation(segmentation=[SQUARE[:7]]), "annotation 5 .*7 coordinates.*pairs"),
    ("NaN", annotation(segmentation=[[*SQUARE[:7], float("nan")]]), "annotation 5 .*not a finite number"),
    ("infinity", annotation(segmentation=[[*SQUARE[:7], float("inf")]]), "annotation 5 .*not a finite number"),
    ("text", annotation(segmentation=[[*SQUARE[:7], "3"]]), "annotation 5 .*not a finite number"),
    ("far outside", annotation(segmentation=[[*SQUARE[:7], 1e12]]), "annotation 5 .*far outside of its 20 x 16"),
    ("flat polygon", annotation(segmentation=SQUARE), "annotation 5: .*list of polygons"),
    ("empty", annotation(segmentation=[]), r"annotation 5 has no mask \(segmentation \[\]\)"),
    ("empty part", annotation(segmentation=[[]]), "annotation 5 .*fewer than 3 points"),
    ("box only", drop("annotations", "segmentation"), "annotation 5 has no mask.*add polygons"),
    (
        "RLE size",
        annotation(segmentation={"size": [20, 16], "counts": [320]}),
        r"annotation 5 .*\[20, 16\].*\[16, 20\]",
    ),
    ("RLE without size", annotation(segmentation={"counts": [320]}), "annotation 5 .*size null"),
    ("runs too few", annotation(segmentation=runs(100, 100)), "annotation 5 .*sum up to 16 x 20"),
    ("negative run", annotation(segmentation=runs(330, -10)), "annotation 5 .*counts are not run lengths"),
    ("fractional run", annotation(segmentation=runs(319.5, 0.5)), "annotation 5 .*counts are not run lengths"),
    ("text garbage", annotation(segmentation={"size": [16, 20], "counts": "zz%"}), "annotation 5 .*do not decode"),
    ("text cut", annotation(segmentation={"size": [16, 20], "counts": "P"}), "annotation 5 .*do not decode"),
    ("text empty", annotation(segmentation={"size": [16, 20], "counts": ""}), "annotation 5 .*do not decode"),
    ("text not ASCII", annotation(segmentation={"size": [16, 20], "counts": "ü"}), "annotation 5 .*do not decode"),
    ("text too short", annotation(segmentation={"size": [16, 20], "counts": "4"}), "annotation 5 .*16 x 20 pixels"),
    ("unknown image", annotation(image_id=8), "annotation 5 belongs to image 8"),
    ("unknown category", annotation(category_id=1), "annotation 5 has category 1"),
    ("no category", drop("annotations", "category_id"), 'annotation 5 has no "category_id"'),
    ("no annotation id", drop("annotations", "id"), 'annotation number 1 has no "id"'),
    ("duplicate annotation", again("annotations"), "annotation 5 occurs twice"),
    ("crowd 2", annotation(iscrowd=2), "annotation 5 has iscrowd 2"),
    ("annotation a list", lambda d: d["annotations"].append([]), r"annotation number 2 is \[\]"),
    ("duplicate image", again("images"), "image id 7 occurs twice"),
    ("duplicate file", picture(file_name="sub/b.png"), "file_name 'sub/b.png' occurs twice"),
    ("missing file", picture(file_name="c.png"), "image 7: .*c.png is missing"),
    ("absolute path", picture(file_name="/etc/passwd"), "image 7: .*images/etc/passwd is missing"),
    ("escape", picture(file_name="sub/../../train.json"), "image 7: .*images/train.json is missing"),
    ("no file name", drop("images", "file_name"), 'image 7 has "file_name" null'),
    ("no height", drop("images", "height"), 'image 7 has no "height"'),
    ("height 0", picture(height=0), "image 7 has size 20 x 0"),
    ("text id", picture(id="7"), 'image number 1 has "id" "7"; it must be a whole number'),
    ("no images", lambda d: d.update(images=[]), "list of images is empty"),
    ("no image list", lambda d: d.pop("images"), 'has no list "images"'),
    ("annotations a dict", lambda d: d.update(annotations={}), 'has no list "annotations"'),
    ("no categories", lambda d: d.update(categories=[]), "list of categories is empty"),
    ("category without name", drop("categories", "name"), 'category .*a string "name"'),
    ("no name that can be", picture(file_name="a\0.png"), "which no file can have"),
    ("name too long", picture(file_name="a" * 300), "which no file can have"),
    ("category a list", annotation(category_id=[1]), r'"category_id" \[1\]; it must be a whole number'),
    ("duplicate category", again("categories"), "category id 90 occurs twice"),
]


@pytest.mark.parametrize(("breakage", "message"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_bad_entries_are_named_in_one_line(tmp_path: Path, breakage: Callable[[Content], Any], message: str) -> None:
    data = content()
    breakage(data)
    with pytest.raises(SOTRError, match=message) as caught:
        load(tmp_path, data)
    assert str(tmp_path / "train.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_broken_mask_among_many_is_the_one_named(tmp_path: Path) -> None:
    data = content()
    good = data["annotations"][0]
    data["annotations"] = [{**good, "id": 100 + i} for i in range(30)]
    data["annotations"][17]["segmentation"] = {"size": [16, 20], "counts": "04"}
    with pytest.raises(SOTRError, match=r"annotation 117 "):
        load(tmp_path, data)


def test_malformed_json_is_located(tmp_path: Path) -> None:
    with pytest.raises(SOTRError, match=r"train.json: is no valid JSON at line 2, column 1:"):
        load(tmp_path, '{"images": [],\n"categorie: []}')
    with pytest.raises(SOTRError, match=r"train.json: is \[\]"):
        load(tmp_path, "[]")
    (tmp_path / "train.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SOTRError, match=r"train.json: cannot be read"):
        load_coco(tmp_path / "train.json", tmp_path / "images")
    with pytest.raises(SOTRError, match=r"absent.json: no such file"):
        load_coco(tmp_path / "absent.json", tmp_path / "images")


def test_the_three_layouts(tmp_path: Path) -> None:
    plain, coco, roboflow = tmp_path / "plain", tmp_path / "coco", tmp_path / "roboflow"
    write(plain, content())
    write(plain, content(), "val.json")
    for split in ("train2017", "val2017"):
        file = write(coco / "work", content())
        (coco / "annotations").mkdir(exist_ok=True)
        file.rename(coco / "annotations" / f"instances_{split}.json")
        (coco / "work" / "images").rename(coco / split)
    for split in ("train", "valid"):
        file = write(roboflow / "work", content())
        (roboflow / "work" / "images").rename(roboflow / split)
        file.rename(roboflow / split / "_annotations.coco.json")
    for folder, images in ((plain, "images"), (coco, "val2017"), (roboflow, "valid")):
        splits = find_data(folder)
        assert splits.train is not None
        assert splits.val is not None
        assert len(splits.train) == len(splits.val) == 2
        assert splits.val.path(0) == folder / images / "a.png"


LAYOUTS = {  # annotation file, image, its name in the file
    "CVAT": ("annotations/instances_default.json", "images/default/a.png", "a.png"),
    "CVAT, a subset": ("annotations/instances_Train.json", "images/Train/a.png", "a.png"),
    "CVAT, no folder": ("annotations/instances_default.json", "images/a.png", "a.png"),
    "LVIS": ("lvis_v1_train.json", "train2017/a.png", "http://images.cocodataset.org/train2017/a.png"),
    "Roboflow, flat": ("_annotations.coco.json", "a.png", "a.png"),
    "FiftyOne": ("labels.json", "data/a.png", "a.png"),
    "FiftyOne, splits": ("train/labels.json", "train/data/a.png", "a.png"),
    "Label Studio": ("result.json", "images/a.png", "images/a.png"),
    "Label Studio, upload": ("result.json", "images/0123abcd-a.png", "../../data/media/upload/1/0123abcd-a.png"),
    "Label Studio, Windows": ("result.json", "images/a.png", "images\\a.png"),
    "Label Studio, local files": ("result.json", "images/a b.png", "/data/local-files/?d=some/a%20b.png"),
    "Label Studio, prefix": ("result.json", "images/a.png", "images/0123abcd-a.png"),
    "an address": ("annotations.json", "images/a.png", "s3://bucket/folder/a.png"),
    "an absolute name": ("train.json", "images/sub/a.png", "/home/bob/data/images/sub/a.png"),
    "a drive": ("train.json", "images/sub/a.png", "D:\\data\\images\\sub\\a.png"),
    "backslashes": ("train.json", "images/sub/a.png", "sub\\a.png"),
    "upwards": ("train.json", "images/a.png", "sub/../a.png"),
    "lone": ("my export.json", "a.png", "a.png"),
    "in annotations": ("annotations/annotations.json", "images/a.png", "a.png"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_names_of_other_tools(tmp_path: Path, layout: str, encoding: str) -> None:
    file, image, name = LAYOUTS[layout]
    for path in (file, image):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16)).save(tmp_path / image)
    data = content()
    data["images"][1:] = []
    data["images"][0]["coco_url" if layout == "LVIS" else "file_name"] = name
    if layout == "LVIS":
        del data["images"][0]["file_name"]
    (tmp_path / file).write_bytes(json.dumps(data, ensure_ascii=False).encode(encoding))
    for options in ({}, {"train_json": file}, {"train_json": file, "images": tmp_path}):
        train, val = find_data(tmp_path, **options)
        assert val is None
        assert train is not None
        assert train.path(0).samefile(tmp_path / image)
        assert train.masks(train.record(0)).sum() == 36


def test_a_name_that_could_mean_several_files_is_missing(tmp_path: Path) -> None:
    data = content()
    data["images"][0]["file_name"] = "/elsewhere/c.png"
    path = write(tmp_path, data)
    for place in ("images/one", "images/two"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (20, 16)).save(tmp_path / place / "c.png")
    with pytest.raises(SOTRError, match=r"image 7: .*c\.png is missing"):
        load_coco(path, tmp_path / "images")
    data["images"][0]["file_name"], data["images"][1]["file_name"] = "/x/sub/b.png", "/y/sub/b.png"
    path.write_text(json.dumps(data))
    with pytest.raises(SOTRError, match=r"image 7: .*b\.png is missing"):
        load_coco(path, tmp_path / "images")


def test_what_tools_write_for_no_crowd_and_for_sizes(tmp_path: Path) -> None:
    data = content()
    data["annotations"][0].update(iscrowd=None, segmentation={"size": [16.0, 20.0], "counts": [100, 20, 200]})
    loaded = load(tmp_path, data)
    assert loaded.iscrowd.tolist() == [False]
    assert loaded.areas.tolist() == [20]


def test_one_split_is_enough(tmp_path: Path) -> None:
    write(tmp_path, content())
    splits = find_data(tmp_path)
    assert splits.train is not None
    assert splits.val is None
    assert find_data(tmp_path, only="train").val is None
    with pytest.raises(SOTRError, match=r"has no val split, only .*train.json; name one with --val-json"):
        find_data(tmp_path, only="val")


def test_only_does_not_read_the_other_split(tmp_path: Path) -> None:
    write(tmp_path, content())
    write(tmp_path, "broken", "val.json")
    assert find_data(tmp_path, only="train").train is not None
    with pytest.raises(SOTRError, match=r"val.json: is no valid JSON"):
        find_data(tmp_path)


def test_named_files_win_and_are_found_relative_to_the_folder(tmp_path: Path) -> None:
    write(tmp_path, content(), "fold_3.json")
    (tmp_path / "images").rename(tmp_path / "pictures")
    splits = find_data(tmp_path, val_json="fold_3.json", images="pictures")
    assert splits.train is None
    assert splits.val is not None
    assert splits.val.json_path == tmp_path / "fold_3.json"
    with pytest.raises(SOTRError, match=r"nowhere.json: no such file.*--train-json"):
        find_data(tmp_path, train_json="nowhere.json")
    with pytest.raises(SOTRError, match=r"nothing: no such file or folder.*--images"):
        find_data(tmp_path, val_json="fold_3.json", images="nothing")


def test_folders_without_data_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SOTRError, match=r"instances_train\*.json.*_annotations.coco.json.*train.json.*--train-json"):
        find_data(tmp_path)
    with pytest.raises(SOTRError, match=r"absent: no such folder"):
        find_data(tmp_path / "absent")
    (tmp_path / "annotations").mkdir()
    for year in (2014, 2017):
        (tmp_path / "annotations" / f"instances_train{year}.json").touch()
    with pytest.raises(SOTRError, match=r"instances_train2014.json and instances_train2017.json.*--train-json"):
        find_data(tmp_path)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"data.yaml": "names:\n  0: cat\n"}, "YOLO"),
        ({"labels/train/a.txt": "0 0 0 1 1 1 0"}, "YOLO"),
        ({"train/labels/a.txt": "0 0 0 1 1 1 0"}, "YOLO"),
        ({"Annotations/a.xml": "<annotation/>", "JPEGImages/a.jpg": ""}, "Pascal VOC"),
        ({"a.json": '{"version": "5.0", "shapes": []}'}, "labelme"),
        ({"recipe.yaml": "lr: 0.1\n", "a.json": "{}"}, None),
    ],
)
def test_other_formats_are_named_with_the_command_that_converts(
    tmp_path: Path, files: dict[str, str], kind: str | None
) -> None:
    folder = tmp_path / "my set"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    command = rf"my set: this is {kind}, not COCO; convert it with sotr data convert '.*my set' 'my set-coco'"
    with pytest.raises(SOTRError, match=command if kind else "holds no data set"):
        find_data(folder)
    if "data.yaml" in files:
        with pytest.raises(SOTRError, match=command):
            find_data(folder / "data.yaml")


def test_splits_must_have_the_same_categories(tmp_path: Path) -> None:
    write(tmp_path, content())
    other = copy.deepcopy(content())
    other["categories"][0]["name"] = "rod"
    write(tmp_path, other, "val.json")
    with pytest.raises(SOTRError, match=r"different categories .*90: 'bar'"):
        find_data(tmp_path)


masks = stn.arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)), elements=st.integers(0, 1)
)


@settings(max_examples=150, deadline=None)
@given(masks, st.data())
def test_runs_agree_with_dense_masks(masks_HWI: np.ndarray, data: st.DataObject) -> None:
    height, width, count = masks_HWI.shape
    encoded = reference.encode(np.asfortranarray(masks_HWI))
    runs = rle.runs_of([item["counts"] for item in encoded], height)
    assert rle.areas(runs).tolist() == masks_HWI.sum((0, 1)).tolist()
    boxes = reference.toBbox(encoded).astype(int)
    boxes[:, 2:] += boxes[:, :2]
    assert rle.boxes(runs).tolist() == boxes.tolist()
    x = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    y = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    parts = np.tile(np.array([x[0], y[0], x[1], y[1]]), (count, 1))
    # A budget below one mask makes every mask a chunk of its own.
    for budget in (2**24, 1):
        for index, patch in enumerate(rle.patches(runs, parts, budget)):
            np.testing.assert_array_equal(patch, masks_HWI[y[0] : y[1], x[0] : x[1], index])
        assert index == count - 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=12), min_size=1, max_size=4))
def test_any_bytes_decode_to_something_without_failing(strings: list[bytes]) -> None:
    lengths = np.array([len(s) for s in strings])
    counts, offsets = rle.decode_counts(np.frombuffer(b"".join(strings), np.uint8), lengths)
    assert len(offsets) == len(strings) + 1
    assert offsets[-1] == len(counts)
    for i, string in enumerate(strings):
        unsound = any(not 48 <= byte <= 111 for byte in string) or (string and (string[-1] - 48) & 32)
        assert (counts[offsets[i] : offsets[i + 1]].tolist() == [-1]) or not unsound


def test_runs_of_large_masks() -> None:
    # Differences of more than two digits, both signs.
    mask = np.zeros((3000, 700, 1), np.uint8)
    mask[:, 100:400], mask[5, 500], mask[:, 600:] = 1, 1, 1
    encoded = reference.encode(np.asfortranarray(mask))
    runs = rle.runs_of([encoded[0]["counts"]], 3000)
    assert rle.areas(runs).tolist() == [int(mask.sum())]
    (patch,) = rle.patches(runs, np.array([[90, 0, 690, 20]]))
    np.testing.assert_array_equal(patch, mask[:20, 90:690, 0])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["coco", "nuclei", "carparts", "virus", "balloon"])
def test_real_data_sets_load_whole(shared_dir: Path, name: str) -> None:
    splits = find_data(shared_dir / "data" / name)
    for split in ("train", "val"):
        data = getattr(splits, split)
        raw = json.loads((shared_dir / "data" / name / f"{split}.json").read_text())
        assert len(data) == len(raw["images"])
        assert len(data.labels) == len(raw["annotations"])
        assert data.iscrowd.sum() == sum(bool(a["iscrowd"]) for a in raw["annotations"])
        assert data.category_ids == tuple(sorted(c["id"] for c in raw["categories"]))
        assert data.skipped == ()
        images = {image["id"]: image for image in raw["images"]}
        truth = {a["id"]: a for a in data.truth()["annotations"]}
        for entry in raw["annotations"][::17]:
            segmentation = entry["segmentation"]
            height, width = (images[entry["image_id"]][side] for side in ("height", "width"))
            if isinstance(segmentation, list):
                expected = reference.merge(reference.frPyObjects(segmentation, height, width))
            elif isinstance(segmentation["counts"], list):
                expected = reference.frPyObjects(segmentation, height, width)
            else:
                expected = segmentation
            ours = truth[entry["id"]]
            assert reference.iou([ours["segmentation"]], [expected], [0])[0][0] == 1
            assert ours["area"] == entry["area"]
            assert ours["category_id"] == entry["category_id"]
