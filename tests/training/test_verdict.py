from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sotr.config import SOTRConfig
from sotr.data import load_coco
from sotr.data.coco import CocoDataset
from sotr.errors import SOTRError
from sotr.training import settings
from sotr.training.arguments import RunArguments
from sotr.training.verdict import looks_like_microscopy, object_sides, verdict


@pytest.fixture
def data(coco_folder: Path) -> CocoDataset:
    return load_coco(coco_folder / "train.json", coco_folder / "images")


def a_run(data: CocoDataset, **changes: Any) -> dict[str, Any]:
    return {
        "weights": "random weights",
        "config": SOTRConfig.preset("sotr-nano", len(data.class_names)).to_dict(),
        "recipe": {"batch_size": 4},
        "arguments": {"model": "sotr-nano"},
        "data": {"folder": "my photos", "train_pictures": len(data)},
    } | changes


def test_a_run_that_learned_something_is_told_nothing(data: CocoDataset) -> None:
    assert verdict({"AP": 0.2}, a_run(data), data, 100) == []
    assert verdict(None, a_run(data), data, 100) == []


def test_three_causes_each_with_a_command(data: CocoDataset) -> None:
    first, *causes = verdict({"AP": 0.0}, a_run(data), data, 100)
    assert first.startswith("AP 0.000: this run has learned next to nothing")
    assert len(causes) == 3
    assert "random weights; 8 images are few" in causes[0]
    assert "sotr train 'my photos' --model sotr-nano --backbone-weights imagenet" in causes[0]
    assert "100 steps are few. Try: sotr train 'my photos' --model sotr-nano --epochs 1000" in causes[1]
    assert "sotr data check 'my photos'" in causes[2]


def test_causes_that_do_not_apply_are_left_out(data: CocoDataset) -> None:
    run = a_run(data, weights="random weights, the backbone's are timm's weights of resnet10t")
    _, *causes = verdict({"AP": 0.01}, run, data, 10_000)
    assert [cause[:12] for cause in causes] == ["- the labels"]


def test_small_objects_want_larger_images(data: CocoDataset) -> None:
    tiny = SOTRConfig.from_dict(a_run(data)["config"] | {"image_size": 32, "max_image_size": 64})
    assert object_sides(data, tiny).max() < object_sides(data, SOTRConfig.preset("sotr-nano", 3)).max() / 8
    _, *causes = verdict({"AP": 0.0}, a_run(data, config=tiny.to_dict(), weights="some"), data, 10_000)
    assert "smaller than 12 pixels" in causes[0]
    assert "--image-size 64" in causes[0]
    assert not looks_like_microscopy(data)  # three classes


def arguments(**changes: Any) -> RunArguments:
    return RunArguments(**{"model": "sotr-nano", **changes})


def test_the_start_is_imagenet_where_it_can_be_had(data: CocoDataset, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        settings, "backbone_weights", lambda config, source: ({}, f"timm's weights of {config.backbone}")
    )
    chosen = settings.with_start(arguments(), data, False, Console())
    assert (chosen.backbone_weights, chosen.recipe) == ("imagenet", "pretrained")
    assert "the backbone starts from ImageNet: timm's weights of resnet10t" in capsys.readouterr().out


@pytest.mark.parametrize("offline", [False, True])
def test_without_network_the_start_is_random_and_said(data: CocoDataset, capsys, offline: bool) -> None:
    chosen = settings.with_start(arguments(), data, offline, Console(width=1000))
    assert (chosen.backbone_weights, chosen.recipe) == ("none", "scratch")
    told = capsys.readouterr().out
    assert (
        "starts from random weights, the worst start there is: the ImageNet weights of resnet10t could not be" in told
    )
    assert "From 8 images such a network" in told


@pytest.mark.parametrize(
    ("changes", "weights", "recipe"),
    [
        ({"backbone_weights": "none"}, "none", "scratch"),
        ({"backbone_weights": "mine.pth"}, "mine.pth", "pretrained"),
        ({"recipe": "paper"}, None, "paper"),
        ({"model": "nuclei"}, None, "finetune"),
    ],
)
def test_what_the_user_chose_stays(data: CocoDataset, monkeypatch, changes, weights, recipe) -> None:
    def never(config: SOTRConfig, source: str) -> None:
        raise SOTRError("nobody asked for it")

    monkeypatch.setattr(settings, "backbone_weights", never)
    chosen = settings.with_start(arguments(**changes), data, False, Console())
    assert (chosen.backbone_weights, chosen.recipe) == (weights, recipe)
