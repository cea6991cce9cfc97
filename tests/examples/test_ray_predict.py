"""The example for Ray, on a Ray of this machine."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sotr

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'sotr[ray]'")


def load_example() -> ModuleType:
    place = Path(__file__).parents[2] / "examples" / "ray_predict.py"
    spec = importlib.util.spec_from_file_location("ray_predict", place)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def save_pictures(folder: Path) -> Path:
    """Three images, and a file that only has the name of one."""
    folder.mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
        Image.fromarray(pixels).resize((80, 64)).save(folder / f"{seed}.png")
    (folder / "text.png").write_text("this is no image")
    return folder


def assert_rows(rows: dict[str, dict[str, Any]], pictures: Path) -> None:
    assert sorted(rows) == ["0.png", "1.png", "2.png", "text.png"]
    assert "is not an image that can be read" in rows["text.png"]["error"]
    model = sotr.load("nuclei")
    for seed in range(3):
        row = rows[f"{seed}.png"]
        assert (row["height"], row["width"], row["error"]) == (64, 80, "")
        assert json.loads(row["objects"]) == model.predict(pictures / f"{seed}.png", score=0.05).to_json()["objects"]


def test_one_worker(tmp_path: Path) -> None:
    pictures = save_pictures(tmp_path / "pictures")
    paths = sorted(pictures.iterdir())
    batch = {
        "path": np.array([str(path) for path in paths]),
        "bytes": np.array([path.read_bytes() for path in paths], object),
    }
    columns = load_example().Predictor("nuclei", 0.05)(batch)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert_rows({Path(row["file_name"]).name: row for row in rows}, pictures)


@pytest.mark.slow
def test_a_ray_of_this_machine(tmp_path: Path) -> None:
    pictures = save_pictures(tmp_path / "pictures")
    (pictures / "notes.txt").write_text("this does not have the name of an image")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    try:
        load_example().main(str(pictures), str(tmp_path / "out"), score=0.05, batch_size=2)
    finally:
        ray.shutdown()
    lines = [json.loads(line) for file in (tmp_path / "out").glob("*.json*") for line in file.read_text().splitlines()]
    assert_rows({Path(line["file_name"]).name: line for line in lines}, pictures)
