"""Competitors learn from the same small data within their budget, and the folder keeps what was found."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.__main__ import main
from benchmarks.accuracy.competitors import entries
from PIL import Image

from benchmarks.accuracy import accuracy
from sotr.data.coco import load_coco
from sotr.errors import SOTRError
from sotr.training.recipe import Recipe

ROOT = Path(__file__).parents[3]

SETTINGS = {"recipe": "finetune", "image_size": 64, "max_dets": 20}


def test_an_unknown_competitor_is_named() -> None:
    with pytest.raises(SOTRError, match="'detr'; choose among sotr, mask-rcnn"):
        accuracy("nowhere", competitors=["detr"])


def test_an_architecture_is_a_competitor(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("depth: 3\nwidth: 64\n")
    other = tmp_path / "other.yml"
    other.write_text("backbone: resnet10t\n")
    recipe = Recipe.load("pretrained")
    deep, named, plain = entries([str(path), f"waves={other}", "sotr"], ["a", "b"], 96, recipe)
    assert (deep.name, named.name, plain.name) == ("deep", "waves", "sotr")
    assert (deep.config.depth, deep.config.width, deep.config.num_classes) == (3, 64, 2)
    assert (deep.config.backbone, named.config.backbone) == ("mobilenetv2_100", "resnet10t")
    assert {entry.config.image_size for entry in (deep, named, plain)} == {96}
    with pytest.raises(SOTRError, match="two competitors are called deep"):
        entries([str(path), f"deep={other}"], ["a"], 96, recipe)


@pytest.mark.parametrize(
    ("lr", "message"), [("fast", "'fast'; give a positive rate"), ("yolo=1e-3", "competitors are sotr")]
)
def test_a_rate_that_cannot_be_is_named(coco_folder: Path, tmp_path: Path, lr: str, message: str) -> None:
    with pytest.raises(SOTRError, match=message):
        accuracy(str(coco_folder), str(tmp_path / "out"), competitors=["sotr"], lr=lr, **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_rows_stay_and_a_report_shows_them(coco_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = accuracy(str(coco_folder), str(out), "1s", seeds=[0, 1], competitors=["sotr"], **SETTINGS)
    rows = accuracy(str(coco_folder), str(out), "1s", seeds=[0, 1], competitors=["sotr", "mask-rcnn"], **SETTINGS)
    assert [(row.competitor, row.seed) for row in rows] == [
        ("sotr", 0), ("mask-rcnn", 0), ("sotr", 1), ("mask-rcnn", 1)
    ]  # fmt: skip
    assert rows[0] == first[0]  # to the last digit of its seconds: it was not trained again
    assert all(row.steps >= 1 and 0 <= row.AP <= row.AP50 <= 1 and row.infer_s > 0 for row in rows)
    assert rows[0].curve[-1]["AP"] == rows[0].AP
    text = (out / "report.md").read_text()
    assert text.count("| sotr |") == text.count("| mask-rcnn |") == 1
    assert "4 validation images" in text
    assert "--competitors '[sotr,mask-rcnn]'" in text
    report = json.loads((out / "report.json").read_text())
    assert len(report["rows"]) == 4
    assert report["table"][0]["AP"].count("±") == 1
    for name in ("curves.png", "errors.png", "overlays.png"):
        assert Image.open(out / name).width > 400
    assert list((out / "checkpoints").glob("*")) == []
    with pytest.raises(SOTRError, match=r"other settings \(image_size, recipe, sotr\)"):
        accuracy(str(coco_folder), str(out), "1s", competitors=["sotr"], image_size=96, max_dets=20, recipe="scratch")


def test_a_search_never_sees_the_validation_images(coco_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (row,) = accuracy(str(coco_folder), str(out), "1s", competitors=["sotr"], search="1s", **SETTINGS)
    usual = Recipe.load("finetune").lr
    tried = json.loads((out / "report.json").read_text())["search"]
    assert sorted(each["lr"] for each in tried) == pytest.approx([usual / 2, usual, 2 * usual])
    assert row.lr == max(tried, key=lambda each: each["AP"])["lr"] or len({each["AP"] for each in tried}) < 3
    whole = load_coco(coco_folder / "train.json", coco_folder / "images")
    parts = [load_coco(out / "search" / f"{name}.json", coco_folder / "images") for name in ("train", "val")]
    assert parts[1].image_ids.tolist() == whole.image_ids[::5].tolist()
    assert sorted([*parts[0].image_ids, *parts[1].image_ids]) == whole.image_ids.tolist()


def test_sigterm_leaves_a_checkpoint(coco_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["accuracy", str(coco_folder), "--out", str(out), "--budget", "1h", "--competitors", "[sotr]"]
    words += ["--recipe", "finetune", "--image-size", "64"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *words], stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("training sotr"):
                process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["sotr-3600s-lr0.0005-seed0"]
    assert not (out / "report.md").exists()


def test_the_command_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy", "nowhere", "--competitors", "[detr]"]) == 2
    assert "detr" in capsys.readouterr().err
