"""The `sotr` lines of README and guides do what they say, one after the other, on small data."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from mahotas import demos
from PIL import Image

from sotr.cli import run
from tests.test_docs import BLOCKS, ROOT, RUN_PAGES, Block, programs

ELSEWHERE = {
    "sotr serve": "tests/serving start it",
    "sotr reproduce": "tests/reproduction run it",
    "sotr convert-released": "tests/released/test_network.py converts them",
    "sotr predict 0": "needs a camera",
    "sotr train --replay": "tests/training makes what it replays",
    "sotr train COCO": "needs a cluster",
}
"""Beginnings of lines that are not run here, and why."""

SMALLER = "--epochs 1 --batch-size 2 --image-size 96 --device cpu --workers 0 --quiet"
"""What is added to lines that begin a training."""


def lines_of(page: str) -> list[str]:
    blocks: list[Block] = [b for b in BLOCKS if b.page == page and b.language == "sh"]
    here = [b for b in blocks if "not run" not in b.remark or "needs a clip" in b.remark]
    lines = [line for block in here for line in block.lines]
    return [line for line in lines if line.startswith("sotr ") and not line.startswith(tuple(ELSEWHERE))]


PAGES = [page for page in dict.fromkeys(block.page for block in BLOCKS) if page not in RUN_PAGES and lines_of(page)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, `my_data`, and a run that learnt a little of it, `runs/first`."""
    folder = tmp_path_factory.mktemp("trained")
    assert run(f"data synthesize {folder / 'my_data'} --train 4 --val 2 --height 96 --width 96".split()) == 0
    words = f"train {folder / 'my_data'} --model sotr-nano --out {folder / 'runs' / 'first'} {SMALLER}"
    assert run(words.split()) == 0
    return folder


def furnish(folder: Path, trained: Path, lines: list[str]) -> None:
    """All that the lines speak of and do not make."""
    shutil.copytree(trained, folder)
    if any("train" in line and "--out runs/first" in line and "--finish" not in line for line in lines):
        shutil.rmtree(folder / "runs")
    shutil.copytree(trained / "my_data", folder / "DATA")
    cells = Image.open(demos.image_path("nuclear.png")).convert("RGB").crop((0, 0, 320, 256))
    names = ("cells.png", "crowd.jpg", "orthophoto.tif", "nuclear.png")
    for name in (*names, "photos/a.png", "more/b.jpg", "pictures/c.png", "new_pictures/d.png", "calibration/e.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        cells.save(folder / name)
    grey = np.asarray(cells.convert("L"))
    (folder / "plate").mkdir()
    metadata = {"axes": "ZCYX", "Channel": {"Name": ["DAPI", "GFP"]}}
    for name in ("stack.ome.tif", "plate/a.ome.tif", "plate/b.ome.tif"):
        stack = np.stack([[grey, 255 - grey]] * 2)
        tifffile.imwrite(folder / name, stack, ome=True, photometric="minisblack", metadata=metadata)
    tifffile.imwrite(folder / "cells.tif", grey.astype(np.uint16) * 16)
    (folder / "list.txt").write_text("cells.png\n")
    (folder / "pictures.txt").write_text("cells.png\npictures/c.png\n")
    clip = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, cells.size)
    for _ in range(3):
        clip.write(np.asarray(cells)[..., ::-1])
    clip.release()
    (folder / "my_labelme_folder").mkdir()
    shape = {"label": "cell", "shape_type": "polygon", "points": [[20, 20], [90, 30], [60, 80]]}
    for number in range(12):
        cells.save(folder / "my_labelme_folder" / f"{number}.png")
        labels = {"imagePath": f"{number}.png", "imageWidth": 320, "imageHeight": 256, "shapes": [shape]}
        (folder / "my_labelme_folder" / f"{number}.json").write_text(json.dumps(labels))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_lines_run(page: str, trained: Path, tmp_path: Path) -> None:
    lines, folder = lines_of(page), tmp_path / "page"
    furnish(folder, trained, lines)
    path = f"{programs(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src")}
    for line in lines:
        if line.startswith("sotr data convert"):
            shutil.rmtree(folder / "my_data")  # which it makes
        begins = line.startswith("sotr train") and "--resume" not in line and "--finish" not in line
        smaller = line.split("#")[0] + (f" {SMALLER} --model sotr-nano" if begins else "")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", smaller],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=folder,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, f"{page}: {smaller}\n{done.stdout}\n{done.stderr}"
