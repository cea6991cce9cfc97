"""Both competitors learn from the same small data within their budget and are measured."""

import json
from pathlib import Path

import pytest
from benchmarks.__main__ import main
from benchmarks.accuracy.run import schedule

from benchmarks.accuracy import accuracy
from sotr.errors import SOTRError


def test_the_rate_rises_and_comes_down_in_the_budget() -> None:
    assert schedule(0.0) == pytest.approx(0.01)
    assert schedule(0.1) == pytest.approx(1.0)
    assert schedule(1.0) == pytest.approx(0.01)
    rates = [schedule(0.1 + 0.09 * step) for step in range(11)]
    assert rates == sorted(rates, reverse=True)


def test_an_unknown_competitor_is_named() -> None:
    with pytest.raises(SOTRError, match="yolo"):
        accuracy("nowhere", competitors=["yolo"])


@pytest.mark.parametrize("competitor", ["sotr", "mask-rcnn"])
def test_a_competitor_learns_and_is_measured(coco_folder: Path, tmp_path: Path, competitor: str) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = {"recipe": "finetune", "image_size": 64, "out": str(out)}
    (row,) = accuracy(str(coco_folder), "5s", [competitor], **arguments)
    assert row.competitor == competitor
    assert row.steps >= 2
    assert 0 <= row.AP <= row.AP50 <= 1
    assert 0 < row.infer_s < 60
    assert json.loads(out.read_text())["steps"] == row.steps


def test_the_command_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy", "nowhere", "--competitors", "[yolo]"]) == 2
    assert "yolo" in capsys.readouterr().err
