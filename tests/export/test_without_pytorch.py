"""Exported models are used where PyTorch is not installed."""

import csv
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

from sotr.model.segmenter import Segmenter
from tests.scenes import discs

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDS_PYTORCH = {"torch", "torchvision", "timm", "safetensors", "huggingface_hub", "supervision", "packaging"}
"""The dependencies that an installation for exported models leaves out."""

WITHOUT = f"""
import sys

HIDDEN = {NEEDS_PYTORCH | {"lightning", "onnx", "onnxscript", "matplotlib", "scipy", "pandas"}!r}


class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
"""Hides packages as if they were not installed."""


def run_without_pytorch(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + code, *words],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )


def test_predict_without_pytorch(onnx_path: Path, nuclei: Segmenter, tmp_path: Path) -> None:
    picture = discs(200, 300, 7)
    Image.fromarray(picture).save(tmp_path / "cells.png")
    words = ["predict", str(tmp_path / "cells.png"), "--model", str(onnx_path), "--out", str(tmp_path / "out"), "--csv"]
    ended = run_without_pytorch("from sotr.cli import main; main()", *words, "--masks")
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".sotr-written.jsonl", "cells.overlay.png", "masks", "objects.csv", "predictions.json", "results.json",
    ]  # fmt: skip
    expected = nuclei.predict(picture, score=0.3)
    assert len(expected) > 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert np.allclose([result["score"] for result in results], expected.scores_I, atol=1e-4)
    assert [result["bbox"] for result in results] == [result["bbox"] for result in expected.to_coco(1)]
    with (tmp_path / "out" / "objects.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(expected)


def test_what_needs_pytorch_says_so(tmp_path: Path) -> None:
    Image.fromarray(discs(60, 60, 1)).save(tmp_path / "cells.png")
    code = "from sotr.cli import run; sys.exit(10 * run(sys.argv[1:4]) + run(['info']))"
    ended = run_without_pytorch(code, "predict", str(tmp_path / "cells.png"), f"--out={tmp_path / 'out'}")
    assert ended.returncode == 22
    first, second = ended.stderr.splitlines()
    assert re.search(r"the model nuclei needs the package \w+; .* or use an exported model: --model MODEL\.onnx", first)
    assert re.search(r"sotr info needs the package torch; install it with: pip install sotr$", second)
    assert not (tmp_path / "out").exists()


def test_the_documented_installation_is_all_but_pytorch() -> None:
    """What docs/export.md tells people to install is what the package depends on, but for what needs PyTorch."""
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = (line for line in page.splitlines() if line.startswith("pip install ") and "onnxruntime" in line)
    documented = {re.split(r"[\[<>=]", word.strip('"'))[0] for word in line.split()[2:]}
    declared = {re.split(r"[\[<>=]", need)[0] for need in PROJECT["dependencies"]}
    assert declared >= NEEDS_PYTORCH
    assert documented == (declared - NEEDS_PYTORCH) | {"onnxruntime"}
