"""`sotr evaluate` from files on disk to numbers, with a network that is untrained or ruled by hand."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from sotr.cli import run
from sotr.config import SOTRConfig
from sotr.data import batches
from sotr.decoding import DecodeOptions
from sotr.errors import SOTRError
from sotr.evaluation import evaluate
from sotr.evaluation.evaluate import UNKNOWN_CLASS, match_classes
from sotr.model.segmenter import Segmenter
from sotr.network import SOTR, DensePredictions
from tests.support.killed import KILLED

SIDE = 64
CONFIG = SOTRConfig(
    num_classes=2,
    backbone="resnet10t",
    width=32,
    depth=1,
    heads=2,
    mlp_ratio=1.0,
    grids=(8, 6, 4, 3, 2),
    mask_stage_channels=32,
    mask_channels=32,
    image_size=SIDE,
    max_image_size=SIDE,
)


class BrightQuadrants(torch.nn.Module):
    """Stands where the network stands and finds bright quadrants of an image: red ones are class 1, others class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.config = CONFIG

    def forward(self, images_B3HW: torch.Tensor) -> DensePredictions:
        batch, _, height, width = images_B3HW.shape
        h, w = height // 4, width // 4
        logits = torch.full((batch, CONFIG.num_cells, 2), -9.0)
        kernels = torch.zeros(batch, CONFIG.num_cells, CONFIG.kernel_parameters)
        features = torch.zeros(batch, CONFIG.mask_channels, h, w)
        for quadrant, (y, x) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            features[:, quadrant] = -10.0
            features[:, quadrant, y * h // 2 : (y + 1) * h // 2, x * w // 2 : (x + 1) * w // 2] = 10.0
            cell = (4 * y + 1) * 8 + 4 * x + 1
            kernels[:, cell, quadrant] = 1.0
            colour_B3 = images_B3HW[:, :, y * height // 2 + 8, x * width // 2 + 8]
            for picture, (red, green, _) in enumerate(colour_B3.tolist()):
                if red > 0:
                    logits[picture, cell, 0 if green > 0 else 1] = 6.0 - quadrant
        return DensePredictions(logits, kernels, features)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images with white and red quadrants and their true masks; class order and ids differ from the model's."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    half = SIDE // 2
    pictures = [{0: "white", 3: "red"}, {1: "white"}, {}, {0: "red", 1: "red", 2: "white"}]
    ids = {"red": 40, "white": 7}
    images, annotations = [], []
    for number, quadrants in enumerate(pictures):
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        for quadrant, colour in quadrants.items():
            y, x = divmod(quadrant, 2)
            window = (slice(y * half, (y + 1) * half), slice(x * half, (x + 1) * half))
            pixels[window] = (255, 255, 255) if colour == "white" else (255, 0, 0)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[window] = 1
            rle = coco_mask.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + number,
                    "category_id": ids[colour],
                    "segmentation": {"size": [SIDE, SIDE], "counts": rle["counts"].decode()},
                    "area": half * half,
                    "bbox": [x * half, y * half, half, half],
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        images.append({"id": 100 + number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
    write(folder, images, annotations, [{"id": 40, "name": "red"}, {"id": 7, "name": "white"}])
    return folder


def write(folder: Path, images: list, annotations: list, categories: list, name: str = "val.json") -> None:
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / name).write_text(text)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "val.json").read_text())


@pytest.fixture
def random_model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    folder = tmp_path / "model"
    Segmenter(SOTR(CONFIG), ["white", "red"], [1, 2]).save(folder)
    return str(folder)


@pytest.fixture
def good_model() -> Segmenter:
    """A model that is right: a rule in place of the weights, everything around it real."""
    rule: Any = BrightQuadrants()
    segmenter = Segmenter(rule, ["white", "red"], [1, 2], DecodeOptions(cell_threshold=0.5))
    segmenter.forward = rule
    return segmenter


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_model_that_is_right_has_ap_1(data: Path, good_model: Segmenter, batch_size: int) -> None:
    report = evaluate(data, good_model, batch_size=batch_size, device="cpu", quiet=True)
    assert report["AP"] == pytest.approx(1)
    # 32 x 32 pixels are COCO's border: as small as medium.
    assert report["AP_S"] == pytest.approx(1)
    assert (report["AP_L"], report["AR_L"]) == (None, None)
    assert {name: one["objects"] for name, one in report["per_class"].items()} == {"white": 3, "red": 3}
    assert (report["images"], report["objects"], report["detections"]) == (4, 6, 6)


def test_max_objects_limits_what_is_found(data: Path, good_model: Segmenter) -> None:
    report = evaluate(data, good_model, max_objects=1, device="cpu", quiet=True)
    # The best of each image only: quadrant 0 before 1 before 3.
    assert report["detections"] == 3
    assert report["per_class"]["white"]["AP50"] == pytest.approx(67 / 101)  # 2 of 3, on COCO's 101 recalls
    assert report["AR"] == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_classes_that_only_one_side_has(data: Path, good_model: Segmenter, capsys: pytest.CaptureFixture[str]) -> None:
    truth = read(data)
    truth["categories"][0]["name"] = "scarlet"
    write(data, **truth)
    report = evaluate(data, good_model, device="cpu")
    assert report["per_class"]["white"]["AP"] == pytest.approx(1)
    assert report["per_class"]["scarlet"]["AP"] == 0
    assert report["detections"] == 3
    out, err = capsys.readouterr()
    assert "scores 0 on: scarlet" in err
    assert "per class" in out
    truth["categories"][1]["name"] = "pale"
    write(data, **truth)
    with pytest.raises(SOTRError, match="model knows white, red, the data has pale, scarlet"):
        evaluate(data, good_model, device="cpu")


def test_results_have_the_ids_of_the_data(data: Path, good_model: Segmenter, tmp_path: Path) -> None:
    evaluate(data, good_model, device="cpu", quiet=True, results=tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    truth = read(data)
    assert sorted((r["image_id"], r["category_id"]) for r in results) == sorted(
        (a["image_id"], a["category_id"]) for a in truth["annotations"]
    )
    # As COCO's own tools read them; upsampling takes a corner pixel.
    found = [int(coco_mask.area(r["segmentation"])) for r in results]
    assert found == pytest.approx([(SIDE // 2) ** 2] * 6, abs=1)


@pytest.mark.parametrize("place", ["annotations/image_info_test-dev2017.json", "test.json"])
def test_images_without_annotations_give_results_alone(
    data: Path, good_model: Segmenter, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = read(data)
    del truth["annotations"]
    (data / "val.json").unlink()
    (data / place).parent.mkdir(exist_ok=True)
    (data / place).write_text(json.dumps(truth))
    if place.startswith("annotations"):
        (data / "images").rename(data / "test2017")
    report = evaluate(data, good_model, split="test", device="cpu", results=tmp_path / "results.json")
    assert (report["images"], report["detections"]) == (4, 6)
    assert "AP" not in report
    assert len(json.loads((tmp_path / "results.json").read_text())) == 6
    assert "4 images without annotations, 6 detections in" in capsys.readouterr().err
    with pytest.raises(SOTRError, match='has no list "annotations"'):
        evaluate(data, good_model, split="test", device="cpu", quiet=True)


def test_json_is_one_object_on_standard_output(
    data: Path, random_model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(data), "--model", random_model, "--json", "--device", "cpu", "--max-dets", "20"]) == 0
    out, _ = capfd.readouterr()
    report = json.loads(out)
    assert out.count("\n") == 1
    assert {"AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR", "AR_S", "AR_M", "AR_L", "per_class"} <= set(report)
    assert 0 <= report["AP"] <= 1
    assert report["max_dets"] == 20
    assert run(["evaluate", str(data), "--model", random_model, "--quiet", "--device", "cpu"]) == 0
    assert capfd.readouterr() == ("", "")


def test_table_shows_the_numbers(data: Path, good_model: Segmenter, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(data, good_model, device="cpu")
    out, _ = capsys.readouterr()
    assert "4 images, 6 objects" in out
    assert "1.000" in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": "tset"}, "no split 'tset'"),
        ({"split": "test"}, "has no test split; name the file with --val-json"),
        ({"results": "."}, r"\. is a folder; name a file with --results"),
        ({"split": "train"}, "train"),
        ({"max_objects": 0}, "max_objects is 0"),
        ({"max_dets": 0}, "max_objects is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"data": "no-such-folder"}, "no-such-folder"),
    ],
)
def test_bad_input(data: Path, random_model: str, change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"data": data, "model": random_model, "device": "cpu", **change}
    with pytest.raises(SOTRError, match=words):
        evaluate(**arguments)


def test_no_pictures_and_a_picture_of_another_size(data: Path, random_model: str) -> None:
    truth = read(data)
    Image.new("RGB", (SIDE + 2, SIDE)).save(data / "images" / "1.png")
    with pytest.raises(SOTRError, match=r"1\.png"):
        evaluate(data, random_model, device="cpu", quiet=True)
    write(data, [], [], truth["categories"])
    with pytest.raises(SOTRError, match="images"):
        evaluate(data, random_model, device="cpu", quiet=True)


@KILLED
def test_a_loader_process_that_is_killed_is_one_line(
    data: Path, good_model: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "load_picture", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SOTRError, match=r"^a process that loads images died \(.*worker.*\); .*fewer --workers$"):
        evaluate(data, good_model, device="cpu", workers=1, quiet=True)


def test_matching_goes_by_name() -> None:
    assert match_classes(["a", "b", "c"], ["c", "x", "a"], [5, 6, 90]) == (90, UNKNOWN_CLASS, 5)
    # Nothing forbids two categories of one name.
    assert match_classes(["a", "b", "a", "a"], ["a", "a", "b"], [5, 6, 90]) == (5, 90, 6, UNKNOWN_CLASS)
