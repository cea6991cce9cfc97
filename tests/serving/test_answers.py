"""Masks in each of their forms hold the same pixels."""

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from sotr.results.instances import Instances
from sotr.serving.answers import Prediction, to_json
from sotr.serving.sample import draw_sample

some_masks = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


def instances_of(masks_IHW: np.ndarray) -> Instances:
    return Instances.from_masks(np.full(len(masks_IHW), 0.5), np.zeros(len(masks_IHW)), masks_IHW, ["x"], [7])


@settings(deadline=None)
@given(some_masks)
def test_polygons_rasterise_to_the_mask(masks_IHW: np.ndarray) -> None:
    height, width = masks_IHW.shape[1:]
    answer = json.loads(to_json(instances_of(masks_IHW), {"model": "m"}, "polygons"))
    Prediction.model_validate(answer)
    for found, mask_HW in zip(answer["objects"], masks_IHW, strict=True):
        if not mask_HW.any():
            assert found["segmentation"] == []
            continue
        parts = coco_mask.frPyObjects(found["segmentation"], height, width)
        assert np.array_equal(coco_mask.decode(coco_mask.merge(parts)).astype(bool), mask_HW)


@settings(deadline=None)
@given(some_masks)
def test_png_masks_are_the_box_of_the_mask(masks_IHW: np.ndarray) -> None:
    masks_IHW[:, 0, 0] = True  # an empty image is no PNG
    answer = json.loads(to_json(instances_of(masks_IHW), {"model": "m"}, "png"))
    Prediction.model_validate(answer)
    for found, mask_HW in zip(answer["objects"], masks_IHW, strict=True):
        part = found["segmentation"]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(part["png"]))))
        whole = np.zeros_like(mask_HW, np.uint8)
        whole[part["y"] : part["y"] + pixels.shape[0], part["x"] : part["x"] + pixels.shape[1]] = pixels
        assert np.array_equal(whole, mask_HW * np.uint8(255))


@pytest.mark.parametrize("masks", ["rle", "polygons", "png"])
def test_no_objects(masks: str) -> None:
    answer = json.loads(to_json(Instances.empty(["x"], [7], (3, 4)), {"model": "m"}, masks))  # type: ignore[arg-type]
    assert answer == {
        "model": "m",
        "height": 3,
        "width": 4,
        "classes": [{"id": 7, "name": "x"}],
        "objects": [],
        "notes": [],
    }


def test_the_sample_is_always_the_same_picture() -> None:
    picture = draw_sample()
    assert picture.shape == (384, 512, 3)
    assert np.array_equal(picture, draw_sample())
    assert np.median(picture) < 30
    assert 0.05 < (picture > 60).mean() < 0.5
