"""Label images, measurements and the way back from other programs' labels."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sotr.errors import SOTRError
from sotr.results.instances import Instances
from sotr.results.measure import SHAPE_COLUMNS

HEIGHT, WIDTH = 60, 70


def blobs(count: int = 40) -> NDArray[np.bool_]:
    """Masks of all shapes, of one part or several, that overlap."""
    rng = np.random.default_rng(0)
    masks = []
    for _ in range(count):
        field = cv2.GaussianBlur(rng.random((HEIGHT, WIDTH)).astype(np.float32), (0, 0), rng.uniform(1, 6))
        mask = field > np.quantile(field, rng.uniform(0.8, 0.97))
        masks.append(cv2.connectedComponents(mask.astype(np.uint8))[1] == 1 if rng.random() < 0.7 else mask)
    return np.array(masks)


def instances_of(masks: NDArray[np.bool_]) -> Instances:
    labels = np.arange(len(masks)) % 2
    return Instances.from_masks(np.linspace(1, 0.1, len(masks)), labels, masks, ["a", "b"], [3, 7])


def test_the_best_is_on_top() -> None:
    masks = blobs()
    labels_HW = instances_of(masks).label_image()
    assert labels_HW.dtype == np.uint16
    expected = np.where(masks.any(0), masks.argmax(0) + 1, 0)  # masks are sorted by score
    np.testing.assert_array_equal(labels_HW, expected)


def test_more_objects_than_16_bits_can_count() -> None:
    found = instances_of(np.ones((1, 1, 1), bool))
    many = found[np.zeros(2**16, np.int64)]
    assert many.label_image().dtype == np.uint32
    assert many[: 2**16 - 1].label_image().dtype == np.uint16


def test_labels_come_back_as_objects() -> None:
    labels_HW = instances_of(blobs()).label_image()
    numbers = np.unique(labels_HW[labels_HW > 0])
    for kind in (np.uint16, np.int64, np.uint8):
        back = Instances.from_labels(labels_HW.astype(kind))
        assert len(back) == len(numbers)
        for mask_HW, number in zip(back.masks_IHW, numbers, strict=True):
            np.testing.assert_array_equal(mask_HW, labels_HW == number)
    # Classes and scores are by rising number; the best comes first.
    back = Instances.from_labels(np.array([[9, 0], [4, 4]]), [1, 0], ["a", "b"], [3, 7], [0.2, 0.6])
    assert (back.labels_I.tolist(), back.areas_I.tolist()) == ([0, 1], [1, 2])
    assert len(Instances.from_labels(np.zeros((5, 6), np.uint8))) == 0
    assert Instances.from_labels(np.ones((5, 6), np.uint8)).areas_I.tolist() == [30]


@pytest.mark.parametrize("array", [np.zeros((2, 3, 4), int), np.zeros((2, 3)), np.full((2, 3), -1)])
def test_what_is_no_label_image_is_refused(array: NDArray[np.generic]) -> None:
    with pytest.raises(SOTRError, match="a label image has height x width whole numbers"):
        Instances.from_labels(array)


def test_without_overlap_each_pixel_is_the_best_ones() -> None:
    masks = blobs()
    covered = np.zeros((1, HEIGHT, WIDTH), bool)
    covered[0, 20:40, 20:40] = masks[:, 20:40, 20:40].any(0)
    found = instances_of(np.concatenate([masks, masks[:1], covered]))  # both have nothing of their own
    apart, labels_HW = found.without_overlap(), found.label_image()
    shown = np.unique(labels_HW[labels_HW > 0])
    assert len(shown) < len(found)
    assert apart.scores_I.tolist() == found.scores_I[shown - 1].tolist()
    assert apart.labels_I.tolist() == found.labels_I[shown - 1].tolist()
    for own, mask_HW, number in zip(apart, apart.masks_IHW, shown, strict=True):
        np.testing.assert_array_equal(mask_HW, labels_HW == number)
        y, x = np.nonzero(mask_HW)
        assert own.boxes_I4[0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    again = apart.without_overlap()
    assert again.rles == apart.rles


def test_coco_gives_the_objects_back(tmp_path: Path) -> None:
    found = instances_of(blobs())
    data = {
        "images": [{"id": 5, "file_name": "x.png", "height": HEIGHT, "width": WIDTH}, {"id": 6, "file_name": "y.png"}],
        "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}],
        "annotations": [{"id": i, **result} for i, result in enumerate(found.to_coco(5))],
    }
    (tmp_path / "coco.json").write_text(json.dumps(data))
    for coco in (data, tmp_path / "coco.json", str(tmp_path / "coco.json")):
        for image in (5, "x.png"):
            back = Instances.from_coco(coco, image)
            assert back.rles == found.rles
            assert (back.class_names, back.category_ids) == (found.class_names, found.category_ids)
            np.testing.assert_array_equal(back.labels_I, found.labels_I)
    square = {"image_id": 5, "category_id": 3, "segmentation": [[10, 10, 20, 10, 20, 30, 10, 30]]}
    assert Instances.from_coco(data | {"annotations": [square]}, 5).areas_I.tolist() == [200]
    for image, message in ((9, "no images have the id 9"), ("z.png", "no images have the file_name 'z.png'")):
        with pytest.raises(SOTRError, match=message):
            Instances.from_coco(data, image)
    with pytest.raises(SOTRError, match="is no sound COCO data set"):
        Instances.from_coco({"images": data["images"]}, 5)


def test_a_rectangle_measures_what_it_should() -> None:
    mask = np.zeros((1, 20, 30), bool)
    mask[0, 4:8, 5:15] = True
    image = np.arange(600, dtype=np.uint16).reshape(20, 30)
    (row,) = instances_of(mask).measure(np.dstack([image, image * 2]), (0.5, 0.5))
    assert list(row)[len(Instances.ROW_COLUMNS) :][: len(SHAPE_COLUMNS)] == list(SHAPE_COLUMNS)
    assert (row["label"], row["area"], row["area_um2"], row["solidity"]) == (1, 40, 10.0, 1.0)
    assert row["equivalent_diameter_px"] == pytest.approx(2 * np.sqrt(40 / np.pi), abs=1e-4)
    assert row["equivalent_diameter_um"] == pytest.approx(np.sqrt(40 / np.pi), abs=1e-4)
    assert row["perimeter_px"] == 24  # from the middle of a pixel to that of the next
    assert row["orientation_deg"] == 0
    assert (row["x_center"], row["x_center_um"], row["y_center_um"]) == (10, 5, 3)
    inside = image[4:8, 5:15]
    assert (row["c1_mean"], row["c1_min"], row["c1_max"]) == (inside.mean(), inside.min(), inside.max())
    assert row["c2_sum"] == 2 * int(inside.sum())
    upright = instances_of(mask.transpose(0, 2, 1)).measure()[0]
    assert (upright["orientation_deg"], upright["area_um2"], "c1_mean" in upright) == (90, None, False)


def test_orientation_turns_counterclockwise() -> None:
    image = np.zeros((60, 60), np.uint8)
    cv2.ellipse(image, (30, 30), (25, 8), -30, 0, 360, 1, -1)  # OpenCV turns clockwise
    assert instances_of(image[None] > 0).measure()[0]["orientation_deg"] == pytest.approx(30, abs=1)


def test_pixels_that_are_no_squares_have_areas_but_no_lengths() -> None:
    (row,) = instances_of(np.ones((1, 4, 5), bool)).measure(None, (0.5, 2.0))
    assert (row["area_um2"], row["x_center_um"], row["y_center_um"], row["perimeter_um"]) == (20, 1.25, 4, None)


def test_an_empty_mask_and_an_image_of_another_size() -> None:
    found = instances_of(np.zeros((1, 4, 5), bool))
    (row,) = found.measure(np.ones((4, 5)), (1, 1))
    assert (row["area"], row["perimeter_px"], row["perimeter_um"], row["c1_mean"]) == (0, None, None, None)
    with pytest.raises(SOTRError, match=r"an image of \(5, 4\) does not fit masks of \(4, 5\)"):
        found.measure(np.ones((5, 4)))


def test_shapes_are_those_of_scikit_image() -> None:
    regionprops = pytest.importorskip("skimage.measure").regionprops
    masks = blobs()
    values = np.random.default_rng(0).integers(0, 65535, (HEIGHT, WIDTH, 2)).astype(np.uint16)
    for row, mask in zip(instances_of(masks).measure(values), masks, strict=True):
        (region,) = regionprops(mask.astype(int), values)
        expected = {
            "equivalent_diameter_px": region.equivalent_diameter_area,
            "perimeter_px": region.perimeter,
            "eccentricity": region.eccentricity,
            "major_axis_px": region.axis_major_length,
            "minor_axis_px": region.axis_minor_length,
            "c1_mean": region.intensity_mean[0],
            "c2_max": region.intensity_max[1],
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-3)
        if region.area > 100:  # the hull is that of pixels' corners here, of the middles of their edges there
            assert row["solidity"] == pytest.approx(region.solidity, abs=0.04)
        turned = float(row["orientation_deg"]) - (np.degrees(region.orientation) + 90)
        assert region.eccentricity < 0.1 or abs((turned + 90) % 180 - 90) < 0.01
