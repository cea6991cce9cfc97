"""Instances: RLE, boxes, conversions and the overlay."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as reference_mask

from sotr.errors import SOTRError
from sotr.results.drawing import COLORS, SMALL_PICTURE
from sotr.results.instances import Instances, encode_masks

NAMES, IDS = ("cat", "dog", "bird"), (3, 17, 90)


def box_masks(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


@pytest.fixture
def three() -> Instances:
    """Scores are given out of order; the second object is inside the first."""
    masks = box_masks(40, 60, (2, 3, 30, 20), (5, 6, 9, 16), (40, 30, 60, 40))
    return Instances.from_masks([0.5, 0.25, 0.75], [0, 2, 1], masks, NAMES, IDS)


masks_strategy = st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


@settings(deadline=None)
@given(masks_strategy)
def test_masks_survive_encoding_and_boxes_are_tight(masks_IHW: np.ndarray) -> None:
    count = len(masks_IHW)
    instances = Instances.from_masks(np.full(count, 0.5), np.zeros(count), masks_IHW, ["x"], [1])
    assert np.array_equal(instances.masks_IHW, masks_IHW)
    assert instances.areas_I.tolist() == masks_IHW.sum((1, 2)).tolist()
    for i, mask_HW in enumerate(masks_IHW):
        rows, columns = np.nonzero(mask_HW)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        assert instances.boxes_I4[i].tolist() == tight
        assert np.array_equal(reference_mask.decode(instances.rles[i]).astype(bool), mask_HW)
        crop_hw, x, y = instances.mask_crop(i)
        assert np.array_equal(crop_hw, mask_HW[tight[1] : tight[3], tight[0] : tight[2]])
        assert (x, y) == (tight[0], tight[1])


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_uncompressed_rles_with_empty_runs(height: int, width: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, height * width), max_size=8)))
    counts = np.diff([0, *cuts, height * width]).tolist()
    columns_first = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    expected_HW = columns_first.reshape(width, height).T
    rle = {"size": [height, width], "counts": counts}
    instances = Instances.from_rles([1], [0], [rle], ["x"], [1], (height, width))
    assert np.array_equal(instances.masks_IHW[0], expected_HW)
    crop_hw, x, y = instances.mask_crop(0)
    assert np.array_equal(crop_hw, expected_HW[y : y + crop_hw.shape[0], x : x + crop_hw.shape[1]])
    assert crop_hw.sum() == expected_HW.sum()


def test_sorted_by_score(three: Instances) -> None:
    assert three.scores_I.tolist() == [0.75, 0.5, 0.25]
    assert three.labels_I.tolist() == [1, 0, 2]
    assert three.boxes_I4.tolist() == [[40, 30, 60, 40], [2, 3, 30, 20], [5, 6, 9, 16]]
    assert three.areas_I.tolist() == [200, 476, 40]
    assert (three.scores_I.dtype, three.labels_I.dtype) == (np.float32, np.int64)
    assert (three.boxes_I4.dtype, three.masks_IHW.dtype) == (np.float32, bool)


def test_equal_scores_keep_their_order() -> None:
    masks = box_masks(4, 4, (0, 0, 1, 1), (1, 0, 2, 1), (2, 0, 3, 1))
    instances = Instances.from_masks([0.5, 0.5, 0.5], [0, 1, 2], masks, NAMES, IDS)
    assert instances.labels_I.tolist() == [0, 1, 2]


def test_choosing_objects(three: Instances) -> None:
    assert three[0].labels_I.tolist() == [1]
    assert three[-1].labels_I.tolist() == [2]
    assert three[1:].labels_I.tolist() == [0, 2]
    assert three[[2, 0]].areas_I.tolist() == [40, 200]
    assert three[three.labels_I == 0].boxes_I4.tolist() == [[2, 3, 30, 20]]
    assert len(three[[]]) == 0
    assert [len(one) for one in three] == [1, 1, 1]
    assert three.filter(0.5).scores_I.tolist() == [0.75, 0.5]
    assert np.array_equal(three[1].masks_IHW[0], three.masks_IHW[1])
    with pytest.raises(IndexError):
        three[3]


def test_no_objects_work_everywhere() -> None:
    none = Instances.empty(NAMES, IDS, (30, 40))
    assert len(none) == 0
    assert none.boxes_I4.shape == (0, 4)
    assert none.masks_IHW.shape == (0, 30, 40)
    assert none.areas_I.shape == (0,)
    assert none.to_coco(1) == none.to_rows() == list(none) == []
    assert none.to_json()["objects"] == []
    assert none.counts() == {}
    assert len(none.to_supervision()) == 0
    assert len(none.filter(0.5)) == 0
    picture = np.full((30, 40, 3), 90, np.uint8)
    assert np.array_equal(none.draw(picture, scale=1), picture)
    assert len(Instances.from_masks([], [], np.zeros((0, 30, 40), bool), NAMES, IDS)) == 0


def test_coco_results_are_read_by_pycocotools(three: Instances) -> None:
    results = json.loads(json.dumps(three.to_coco(image_id=12)))
    assert [result["category_id"] for result in results] == [17, 3, 90]
    assert all(result["image_id"] == 12 for result in results)
    assert results[0]["bbox"] == [40, 30, 20, 10]
    assert results[0]["score"] == 0.75
    assert set(results[0]) == {"image_id", "category_id", "bbox", "segmentation", "score"}
    for result, mask_HW in zip(results, three.masks_IHW, strict=True):
        assert np.array_equal(reference_mask.decode(result["segmentation"]).astype(bool), mask_HW)


def test_json_and_rows(three: Instances) -> None:
    plain = json.loads(json.dumps(three.to_json()))
    assert (plain["height"], plain["width"]) == (40, 60)
    assert plain["classes"][1] == {"id": 17, "name": "dog"}
    assert plain["objects"][1]["box"] == [2, 3, 30, 20]
    row = three.to_rows()[0]
    assert tuple(row) == Instances.ROW_COLUMNS
    assert row == {
        "object": 0, "class": "dog", "category_id": 17, "score": 0.75, "area": 200,
        "x_min": 40, "y_min": 30, "x_max": 60, "y_max": 40, "x_center": 50.0, "y_center": 35.0,
    }  # fmt: skip
    assert three.counts() == {"cat": 1, "dog": 1, "bird": 1}


def test_supervision(three: Instances) -> None:
    detections = three.to_supervision()
    assert detections.class_id is not None
    assert detections.class_id.tolist() == [1, 0, 2]
    assert detections.data["class_name"].tolist() == ["dog", "cat", "bird"]
    assert np.array_equal(detections.mask, three.masks_IHW)
    assert detections.area.tolist() == three.areas_I.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 3]}, "labels run from 0 to 3, but there are 3 classes"),
        ({"labels": [-1, 0]}, "labels run from -1"),
        ({"scores": [0.5]}, "as many scores as labels"),
        ({"scores": [0.5, float("nan")]}, "not a finite number"),
        ({"category_ids": [1]}, "3 class names do not match 1 category ids"),
        ({"image_size": (4, 6)}, "a mask of 4 x 5 .* does not fit an image of 4 x 6"),
        ({"rles": [{"size": [4, 5], "counts": "zzzz"}] * 2}, "a mask's RLE is damaged"),
        ({"rles": [{"size": [4, 5], "counts": "\u4e2d"}] * 2}, "a mask's RLE is damaged"),
        ({"rles": [{"size": [4, 5], "counts": "23"}] * 2}, "add up to 5, not to 4 x 5"),
        ({"rles": [{"size": [4, 5], "counts": None}] * 2}, "a mask's RLE is damaged"),
        ({"rles": [{"size": [4, 5], "counts": [9, -3, 14]}] * 2}, "run lengths must be whole numbers"),
        ({"rles": [{"size": [4, 5], "counts": [2.5, 17.5]}] * 2}, "run lengths must be whole numbers"),
        ({"rles": [{"size": [4, 5], "counts": [3, 4]}] * 2}, "add up to 7, not to 4 x 5"),
        ({"rles": [{"counts": "0"}] * 2}, "must be a COCO RLE"),
    ],
)
def test_bad_input_is_one_clear_line(change: dict, message: str) -> None:
    arguments = {
        "scores": [0.5, 0.6],
        "labels": [0, 1],
        "rles": encode_masks(box_masks(4, 5, (0, 0, 2, 2), (1, 1, 3, 3))),
        "class_names": NAMES,
        "category_ids": IDS,
        "image_size": (4, 5),
    }
    with pytest.raises(SOTRError, match=message) as caught:
        Instances.from_rles(**(arguments | change))
    assert "\n" not in str(caught.value)


def test_needs_no_torch() -> None:
    code = "import sys, sotr, sotr.results.instances; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The overlay.


def test_overlay_enlarges_small_pictures_only(three: Instances) -> None:
    picture = np.full((40, 60, 3), 128, np.uint8)
    assert three.draw(picture).shape == (240, 360, 3)  # the cap of 6
    assert three.draw(picture, scale=2).shape == (80, 120, 3)
    large = Instances.empty(NAMES, IDS, (SMALL_PICTURE, 900))
    assert large.draw(np.zeros((SMALL_PICTURE, 900, 3), np.uint8)).shape == (SMALL_PICTURE, 900, 3)
    smaller = Instances.empty(NAMES, IDS, (SMALL_PICTURE - 1, 900))
    assert smaller.draw(np.zeros((SMALL_PICTURE - 1, 900, 3), np.uint8)).shape == (2 * (SMALL_PICTURE - 1), 1800, 3)


@pytest.mark.parametrize("scale", [1, 3])
def test_overlay_colours_the_objects_and_leaves_the_rest(scale: int) -> None:
    instances = Instances.from_masks([1.0], [0], box_masks(60, 80, (20, 10, 60, 50)), ["x"], [1])
    picture = np.full((60, 80, 3), 128, np.uint8)
    overlay = instances.draw(picture, scale)
    assert overlay.dtype == np.uint8
    changed = (overlay != 128).any(2)
    margin = 3  # outline and its rim
    outside = np.ones_like(changed)
    outside[10 * scale - margin : 50 * scale + margin, 20 * scale - margin : 60 * scale + margin] = False
    # The label stands above the object.
    outside[: 10 * scale] = False
    assert not changed[outside].any()
    inside = overlay[12 * scale : 48 * scale, 22 * scale : 58 * scale].reshape(-1, 3)
    tint = np.median(inside, axis=0)
    expected = 128 + 0.35 * (np.array(COLORS[0]) - 128)
    assert np.abs(tint - expected).max() <= 2
    assert (picture == 128).all()  # the input is not painted on


def test_overlay_tells_touching_objects_of_one_class_apart() -> None:
    boxes = [(x, y, x + 20, y + 20) for y in range(0, 100, 20) for x in range(0, 100, 20)]
    instances = Instances.from_masks(np.linspace(0.9, 0.3, 25), np.zeros(25), box_masks(100, 100, *boxes), ["x"], [1])
    overlay = instances.draw(np.full((100, 100, 3), 128, np.uint8), scale=1).astype(int)
    middle = overlay[10::20, 10::20]
    assert np.abs(np.diff(middle, axis=0)).max(2).min() > 5
    assert np.abs(np.diff(middle, axis=1)).max(2).min() > 5


def test_overlay_gives_a_class_one_colour() -> None:
    masks = box_masks(60, 90, (2, 2, 28, 58), (32, 2, 58, 58), (62, 2, 88, 58))
    instances = Instances.from_masks([0.9, 0.8, 0.7], [1, 1, 0], masks, NAMES, IDS)
    overlay = instances.draw(np.full((60, 90, 3), 128, np.uint8), scale=1)
    # Labels are wider than these objects and so stand at their upper or lower edges.
    first, second, third = (overlay[30, x].tolist() for x in (15, 45, 75))
    assert first == second != third


def test_overlay_of_a_crowd_has_no_labels() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:1024, :1024]
    masks = np.zeros((300, 1024, 1024), bool)
    for mask, (cy, cx) in zip(masks, rng.uniform(20, 1004, (300, 2)), strict=True):
        top, left = int(cy) - 15, int(cx) - 15
        patch = np.s_[top : top + 31, left : left + 31]
        mask[patch] = (x[patch] - cx) ** 2 + (y[patch] - cy) ** 2 < 12**2
    instances = Instances.from_masks(rng.uniform(0, 1, 300), np.zeros(300), masks, ["nucleus"], [1])
    picture = np.full((1024, 1024, 3), 60, np.uint8)
    overlay = instances.draw(picture)
    near = cv2.dilate(masks.any(0).view(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert (overlay[~near] == 60).all()


def test_overlay_handles_specks_borders_and_holes() -> None:
    masks = np.zeros((5, 30, 30), bool)
    masks[0, 0, 0] = masks[1, 29, 29] = True  # single pixels in corners
    masks[2] = True
    masks[3, 5:25, 5:25] = True
    masks[3, 10:20, 10:20] = False  # a hole
    # The last mask is empty.
    instances = Instances.from_masks(np.linspace(1, 0, 5), [0, 1, 2, 0, 1], masks, NAMES, IDS)
    for scale in (1, 4):
        overlay = instances.draw(np.full((30, 30, 3), 200, np.uint8), scale)
        assert overlay.shape == (30 * scale, 30 * scale, 3)
        assert (overlay[0, 0] != 200).any()
        assert (overlay[-1, -1] != 200).any()


def test_overlay_reads_files_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(np.full((20, 50, 3), 128, np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: 50 high, 20 wide
    picture.save(tmp_path / "turned.png", exif=exif)
    instances = Instances.empty(NAMES, IDS, (50, 20))
    assert instances.draw(tmp_path / "turned.png", scale=1).shape == (50, 20, 3)
    assert instances.draw(Image.open(tmp_path / "turned.png"), scale=1).shape == (50, 20, 3)


def test_overlay_refuses_another_picture(three: Instances, tmp_path: Path) -> None:
    with pytest.raises(SOTRError, match=r"60 x 40 .* found in one of 40 x 60"):
        three.draw(np.zeros((60, 40, 3), np.uint8))
    with pytest.raises(SOTRError, match="scale is 0"):
        three.draw(np.zeros((40, 60, 3), np.uint8), scale=0)
    with pytest.raises(SOTRError, match="no such file"):
        three.draw(tmp_path / "absent.png")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.integers(1, 4), st.integers(0, 10_000))
def test_overlay_never_fails(count: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 90, 2)
    masks = rng.random((count, height, width)) < rng.random((count, 1, 1)) ** 3
    names = [f"class number {i}" for i in range(classes)]
    instances = Instances.from_masks(
        rng.random(count), rng.integers(0, classes, count), masks, names, list(range(classes))
    )
    picture = rng.integers(0, 256, (height, width, 3), np.uint8)
    assert instances.draw(picture, scale=int(rng.integers(1, 4))).dtype == np.uint8
