"""The example for Ray, on a Ray of this machine."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sotr

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'sotr[ray]'")


@pytest.mark.slow
def test_pictures_are_segmented_by_workers(tmp_path: Path) -> None:
    place = Path(__file__).parents[2] / "examples" / "ray_predict.py"
    spec = importlib.util.spec_from_file_location("ray_predict", place)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
        Image.fromarray(pixels).resize((80, 64)).save(pictures / f"{seed}.png")
    (pictures / "text.png").write_text("this is no picture")
    (pictures / "notes.txt").write_text("nor has this the name of one")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    try:
        example.main(str(pictures), str(tmp_path / "out"), score=0.05, batch_size=2)
    finally:
        ray.shutdown()

    lines = [json.loads(line) for file in (tmp_path / "out").glob("*.json*") for line in file.read_text().splitlines()]
    rows = {Path(line["file_name"]).name: line for line in lines}
    assert sorted(rows) == ["0.png", "1.png", "2.png", "text.png"]
    assert "is not a picture that can be read" in rows["text.png"]["error"]
    model = sotr.load("nuclei")
    for seed in range(3):
        row = rows[f"{seed}.png"]
        assert (row["height"], row["width"], row["error"]) == (64, 80, "")
        assert json.loads(row["objects"]) == model.predict(pictures / f"{seed}.png", score=0.05).to_json()["objects"]
