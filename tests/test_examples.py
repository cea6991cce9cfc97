"""Every example runs, and does what it says."""

import csv
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

import sotr
from tests.scenes import discs
from tests.test_docs import BLOCKS

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """An image in a folder of its own."""
    path = tmp_path / "pictures" / "cells.png"
    path.parent.mkdir()
    Image.fromarray(discs(256, 320, 12)).save(path)
    return path


def run(name: str, *words: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_count_objects(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("count_objects.py", cells.parent, tmp_path / "counts.csv", monkeypatch=monkeypatch)
    with (tmp_path / "counts.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["picture"] == "cells.png"
    assert int(row["objects"]) == len(sotr.load("nuclei").predict(cells, score=0.3)) > 0


def test_measure_objects(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("measure_objects.py", cells, tmp_path / "measured.csv", tmp_path / "round.png", monkeypatch=monkeypatch)
    with (tmp_path / "measured.csv").open() as file:
        roundness = [float(row["roundness"]) for row in csv.DictReader(file)]
    assert 0.8 < max(roundness) < 1.3  # discs
    assert (tmp_path / "round.png").is_file()


def test_onnx_runtime_alone(
    onnx_path: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("onnx_runtime_alone.py", onnx_path, cells, tmp_path / "masks.png", monkeypatch=monkeypatch)
    said = capsys.readouterr().out.splitlines()
    expected = sotr.load(onnx_path).predict(cells)
    assert len(said) >= len(expected) > 0  # objects without a pixel left are named, too
    assert float(said[0].removeprefix("nucleus ")) == pytest.approx(float(expected.scores_I[0]), abs=0.02)
    drawn = np.array(Image.open(tmp_path / "masks.png"))
    both, either = (drawn > 0) & expected.masks_IHW.any(0), (drawn > 0) | expected.masks_IHW.any(0)
    assert both.sum() > 0.6 * either.sum()  # the example's masks are made of blocks of 4 x 4 pixels


def test_python_of_the_page_about_export(
    onnx_path: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/export.md goes on with the file that its commands have made."""
    shutil.copy(onnx_path, tmp_path / "nuclei.onnx")
    shutil.copy(cells, tmp_path / "cells.png")
    monkeypatch.chdir(tmp_path)
    sources = [block.source for block in BLOCKS if block.page == "export.md" and block.language == "python"]
    assert len(sources) == 2
    names: dict[str, Any] = {}
    for source in sources:
        exec(compile(source, "export.md", "exec"), names)
    assert len(names["objects"]) > 0
    assert names["about"]["class_names"] == ["nucleus"]


def test_own_training_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_training_loop.py", 11, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    first, last = (eval(line.split(" ", 1)[1]) for line in (lines[0], lines[-1]))
    assert last["loss_mask"] < 0.8 * first["loss_mask"]


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_notebook(name: str) -> None:
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without results
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "image/png" in kinds
