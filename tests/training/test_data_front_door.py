"""Training looks its data over before it starts, and adapts a preset to them unless it is told otherwise."""

import inspect
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sotr.config import SOTRConfig
from sotr.curation.synthetic import write_synthetic
from sotr.data.coco import load_coco
from sotr.errors import SOTRError
from sotr.model.segmenter import load
from sotr.training import settings, train
from sotr.training.arguments import Means, RunArguments, usual_values
from sotr.training.devices import Devices
from sotr.training.recipe import RECIPES
from sotr.training.work import Work


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images so full of small shapes that a preset's input would be too small for them."""
    folder = tmp_path_factory.mktemp("crowded") / "data"
    return write_synthetic(folder, 3, 1, height=512, width=512, min_objects=200, max_objects=200, quiet=True)


def new_run(data: Path, **changes: Any) -> dict[str, Any]:
    arguments = RunArguments(**{"model": "sotr-nano", "recipe": "scratch", **changes})
    coco = load_coco(data / "train.json", data / "images")
    return settings.new_run(data / "run", str(data), arguments, Means(), coco, None, Devices(torch.device("cpu")))


def test_a_preset_follows_the_data_and_says_why(crowded: Path) -> None:
    preset = SOTRConfig.preset("sotr-nano")
    run = new_run(crowded)
    assert run["config"]["image_size"] > preset.image_size
    assert run["advice"][0].startswith(f"image size {run['config']['image_size']} instead of {preset.image_size}: ")
    assert "--no-suggest" not in run["command"]


def test_what_is_chosen_by_hand_stays(crowded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = SOTRConfig.preset("sotr-nano", 5).to_dict()
    run = new_run(crowded, suggest=False)
    assert (run["config"], run["advice"]) == (preset, [])
    assert run["command"].endswith("--no-suggest") or "--no-suggest " in run["command"]
    assert new_run(crowded, image_size=320)["config"]["image_size"] == 320
    monkeypatch.setattr("sotr.curation.advice.free_memory", lambda device: 2**20)
    assert new_run(crowded)["recipe"]["batch_size"] == 1
    assert new_run(crowded, batch_size=3)["recipe"]["batch_size"] == 3
    assert new_run(crowded, recipe="paper")["recipe"]["batch_size"] == 8


def test_classes_with_sides_are_not_mirrored(tmp_path: Path) -> None:
    data = write_synthetic(tmp_path / "data", 2, 1, height=64, width=64, quiet=True)
    content = json.loads((data / "train.json").read_text())
    for category, name in zip(content["categories"], ("left hand", "right hand"), strict=False):
        category["name"] = name
    (data / "train.json").write_text(json.dumps(content))
    run = new_run(data)
    assert not run["recipe"]["augmentation"]["horizontal_flip"]
    assert "left hand would look like right hand" in run["advice"][-1]
    assert new_run(data, suggest=False)["recipe"]["augmentation"]["horizontal_flip"]
    own = tmp_path / "own.yaml"
    own.write_text("epochs: 1\naugmentation:\n  horizontal_flip: true\n")
    assert new_run(data, recipe=str(own))["recipe"]["augmentation"]["horizontal_flip"]


@pytest.mark.parametrize(
    ("model", "weights", "recipe"),
    [
        ("sotr-nano", None, "scratch"),
        ("sotr-nano", "none", "scratch"),
        ("sotr-nano", "imagenet", "pretrained"),
        ("nuclei", None, "finetune"),
    ],
)
def test_the_recipe_suits_the_first_weights(model: str, weights: str | None, recipe: str) -> None:
    assert settings.default_recipe(model, weights) == recipe
    assert recipe in RECIPES


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_cut_off_picture_stops_training_before_it_starts(crowded: Path, tmp_path: Path, split: str) -> None:
    data = Path(shutil.copytree(crowded, tmp_path / "data"))
    picture = data / "images" / f"{split}_000000.jpg"
    picture.write_bytes(picture.read_bytes()[:-900])
    with pytest.raises(SOTRError, match=rf"{split}_000000\.jpg: is damaged .*save it again"):
        train(str(data), model="sotr-nano", out=str(tmp_path / "run"), device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def test_harmless_findings_are_counted(
    crowded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(crowded, tmp_path / "data"))
    shutil.copyfile(data / "images" / "train_000000.jpg", data / "images" / "val_000000.jpg")

    def stop(*_: Any) -> None:
        raise SOTRError("far enough")

    monkeypatch.setattr(Work, "fit", stop)
    with pytest.raises(SOTRError, match="far enough"):
        train(str(data), model="sotr-nano", suggest=False, out=str(tmp_path / "run"), device="cpu")
    said = " ".join(capsys.readouterr().err.split())
    assert "data: objects whose cells all go to smaller ones" in said
    assert "data: validation images that are in training, too: 1 (val: val_000000.jpg); AP will be" in said


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recipe": "no-such.yaml"}, "no-such"),
        ({"logger": "comet"}, "no logger 'comet'"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"recipe": "scratch", "backbone_weights": "no-such.pth"}, r"no-such\.pth"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_wrong_arguments_are_refused_before_pictures_are_opened(
    crowded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], message: str
) -> None:
    def opened(*_: Any) -> None:
        pytest.fail("images were opened")

    monkeypatch.setattr(sys.modules["sotr.training.train"], "verify", opened)
    with pytest.raises(SOTRError, match=message):
        train(str(crowded), **{"model": "sotr-nano", "out": str(tmp_path / "run"), "device": "cpu", **wrong})
    assert not (tmp_path / "run").exists()


def test_a_run_records_its_whole_command(crowded: Path) -> None:
    coco = load_coco(crowded / "train.json", crowded / "images")
    means = Means(device="cpu", workers=0, compile=True, logger="wandb")
    arguments = RunArguments(model="sotr-nano", recipe="scratch", lr=0.01)
    run = settings.new_run(Path("run"), "DATA", arguments, means, coco, None, Devices(torch.device("cpu")))
    assert run["command"] == (
        "sotr train DATA --model sotr-nano --recipe scratch --lr 0.01 --out run --device cpu --compile --logger wandb "
        "--workers 0"
    )


def test_a_trained_model_gets_a_batch_that_fits(crowded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sotr.curation.advice.free_memory", lambda device: 2**20)
    run = new_run(crowded, model="nuclei", recipe="finetune")
    assert run["recipe"]["batch_size"] == 1
    assert run["advice"][0].startswith("batch size 1 instead of 4: ")
    assert run["config"]["grids"] == list(load("nuclei").config.grids)


def test_both_groups_have_the_defaults_of_train() -> None:
    usual = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    usual["max_dets"] = usual.pop("max_objects")  # runs keep the name that it had
    assert usual_values() == {name: usual[name] for name in usual_values()}
    one_time = {"data", "offline", "out", "resume", "finish", "replay", "quiet"}
    assert set(usual) == set(usual_values()) | one_time
