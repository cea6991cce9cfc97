"""Curves and cards of a run."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from sotr.training.report import draw_curves, model_card, read_log


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the axes that were drawn last."""
    found: list[str] = []
    original = Figure.savefig

    def savefig(figure: Figure, *arguments: Any, **options: Any) -> None:
        found[:] = [axes.get_title() for axes in figure.axes]
        original(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def step(number: int) -> dict[str, float]:
    return {"step": number, "epoch": 1, "loss": 3.0, "loss_class": 1.0, "loss_mask": 2.0, "lr": 0.1}


def test_curves_name_the_epoch_that_the_run_keeps(titles: list[str], tmp_path: Path) -> None:
    rows = [step(1), {"step": 1, "epoch": 1, "AP": 0.0}, step(2), {"step": 2, "epoch": 2, "AP": 0.0}]
    draw_curves(rows, tmp_path / "curves.png")
    assert "best 0.000 in epoch 2" in titles[1]


def test_curves_without_validation_say_so(titles: list[str], tmp_path: Path) -> None:
    draw_curves([step(1), step(2)], tmp_path / "curves.png")
    assert titles[1] == "no validation with objects"


def test_a_card_without_validation_says_so() -> None:
    run = {
        "name": "first",
        "command": "sotr train data",
        "arguments": {"recipe": "scratch"},
        "config": {"backbone": "resnet10t", "depth": 2, "image_size": 64},
        "recipe": {"optimizer": "adamw", "lr": 0.1, "batch_size": 2, "epochs": 1},
        "seed": 0,
        "weights": "random weights",
        "data": {"name": "data", "class_names": ["disc"], "train_pictures": 3, "train_objects": 4, "val_pictures": 0},
        "device": "cpu",
        "precision": "32-true",
        "versions": {"sotr": "0.1.0"},
    }
    card = model_card(run, None, 3723.4, 1)
    assert "there were no validation images" in card
    assert "1:02:03 (h:mm:ss)" in card


@pytest.mark.parametrize("cut", [1, 3, 9])
def test_a_row_that_was_begun_is_left_out(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "version_0" / "metrics.csv"
    file.parent.mkdir()
    text = "epoch,loss,step\n1,0.5,4\n1,0.25,123\n"
    file.write_text(text[:-cut])
    assert read_log(tmp_path) == [{"epoch": 1.0, "loss": 0.5, "step": 4.0}]
    file.write_text(text)
    assert len(read_log(tmp_path)) == 2


@pytest.mark.parametrize("rest", [b"\0" * 30 + b"\n", b"1,x,5\n", b"1,1,1,1\n", b"1,0.5\n", b"\xff\xfe\n"])
def test_a_row_that_is_damaged_is_left_out(tmp_path: Path, rest: bytes) -> None:
    file = tmp_path / "version_0" / "metrics.csv"
    file.parent.mkdir()
    file.write_bytes(b"epoch,loss,step\n1,0.5,4\n" + rest)
    assert read_log(tmp_path) == [{"epoch": 1.0, "loss": 0.5, "step": 4.0}]
