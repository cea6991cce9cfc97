"""Decoding is chosen by what it gains on the images, not by chance."""

import json
from typing import Any

import pytest
import torch
from PIL import Image

from sotr.config import SOTRConfig
from sotr.data.coco import CocoDataset, load_coco
from sotr.decoding import DecodeOptions
from sotr.evaluation.decoding_choice import CHANGES, choose_decoding
from sotr.model.segmenter import Segmenter
from sotr.network import DensePredictions

CONFIG = SOTRConfig(
    num_classes=1,
    backbone="resnet10t",
    width=32,
    heads=2,
    grids=(8, 6, 4, 3, 2),
    mask_stage_channels=32,
    mask_channels=32,
    image_size=64,
    max_image_size=64,
)

FIRST, SECOND, SHIFTED = (0, 0, 40, 32), (0, 32, 32, 32), (8, 0, 40, 32)
"""x, y, width, height of two objects, and of a detection that overlaps the first with an IoU of 2/3."""


class Detections(torch.nn.Module):
    """Stands where the network stands and finds the same rectangles in every image, with given scores."""

    def __init__(self, *detections: tuple[tuple[int, int, int, int], float]) -> None:
        super().__init__()
        self.config, self.detections = CONFIG, detections

    def forward(self, images_B3HW: torch.Tensor) -> DensePredictions:
        batch, _, height, width = images_B3HW.shape
        logits = torch.full((batch, CONFIG.num_cells, 1), -9.0)
        kernels = torch.zeros(batch, CONFIG.num_cells, CONFIG.kernel_parameters)
        features = torch.full((batch, CONFIG.mask_channels, height // 4, width // 4), -10.0)
        for index, ((x, y, w, h), score) in enumerate(self.detections):
            logits[:, index] = torch.tensor(score).logit()
            kernels[:, index, index] = 1.0
            features[:, index, y // 4 : (y + h) // 4, x // 4 : (x + w) // 4] = 10.0
        return DensePredictions(logits, kernels, features)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    folder = tmp_path_factory.mktemp("data")
    annotations = []
    for image in range(3):
        Image.new("RGB", (64, 64)).save(folder / f"{image}.png")
        for x, y, w, h in (FIRST, SECOND):
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "segmentation": [outline],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    content = {
        "images": [{"id": image, "file_name": f"{image}.png", "width": 64, "height": 64} for image in range(3)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return load_coco(folder / "train.json", folder)


def segmenter(*detections: tuple[tuple[int, int, int, int], float]) -> Segmenter:
    """A model that is told what to say, and everything around it real."""
    rule: Any = Detections(*detections)
    segmenter = Segmenter(rule, ["thing"], [1], DecodeOptions(max_objects=50))
    segmenter.forward = rule
    return segmenter


def test_what_removes_false_duplicates_is_chosen(data: CocoDataset) -> None:
    # Matrix NMS leaves the duplicate exp(-2 * 4 / 9) of its score, more than the second object has; sigma 4 does not.
    seen = []
    choice = choose_decoding(segmenter((FIRST, 0.95), (SHIFTED, 0.9), (SECOND, 0.3)), data, seen.append)
    assert seen == [1, 1, 1]
    assert choice.change == "nms_sigma=4"
    assert choice.options == DecodeOptions(max_objects=50, nms_sigma=4.0)
    assert choice.ap_of["nms_sigma=4"] == choice.ap_of["nms=mask"] == pytest.approx(1.0)
    assert choice.ap_of[""] < 0.9
    assert set(choice.ap_of) == {"", *CHANGES}


def test_without_a_gain_the_settings_stay(data: CocoDataset) -> None:
    choice = choose_decoding(segmenter((FIRST, 0.95), (SECOND, 0.3)), data)
    assert (choice.change, choice.options) == ("", DecodeOptions(max_objects=50))
    assert choice.ap_of[""] == pytest.approx(1.0)


def test_settings_that_lose_objects_lose_ap(data: CocoDataset) -> None:
    # Neighboring cells: points NMS suppresses the worse one.
    choice = choose_decoding(segmenter((FIRST, 0.95), (SECOND, 0.9)), data)
    assert choice.ap_of["points_nms=true"] == pytest.approx(0.5, abs=0.01)
    assert choice.change == ""
