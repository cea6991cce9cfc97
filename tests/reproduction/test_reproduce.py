"""The command on a scale so small that nothing is learnt: what it writes, and what it does again."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import yaml

from sotr.config import SOTRConfig
from sotr.errors import SOTRError
from sotr.reproduction import reproduce, tables
from sotr.training import recipe as recipes
from tests.training.conftest import CONFIG, RECIPE, draw_nothing


@pytest.fixture
def small_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale "tiny" with the network and the recipe of the training room's tests."""
    torch.set_num_threads(1)
    draw_nothing(monkeypatch)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "epochs": 1, "batch_size": 4}))
    scale = replace(
        tables.SCALES["tiny"],
        baseline=SOTRConfig.from_dict(CONFIG),
        recipe=str(recipe),
        recipe_with_weights=str(recipe),
    )
    monkeypatch.setitem(tables.SCALES, "tiny", scale)


def test_a_table_is_written_and_finished_rows_are_kept(small_scale: None, coco_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = reproduce(["1"], data=str(coco_folder), seeds=1, out=str(out), device="cpu", quiet=True)
    assert summary.reports == [out / "table-1.md"]
    text = summary.reports[0].read_text()
    assert "Unfinished" not in text
    rows = ("baseline", "weaker-backbone")
    assert text.count("model.yaml) | 0 | ") == len(rows)  # one run of each, of seed 0
    costs = {}
    for row in rows:
        result = json.loads((out / "rows" / row / "seed-0.json").read_text())
        assert result["metrics"]["images"] == 4
        model = yaml.safe_load((out / "rows" / row / "model.yaml").read_text())
        assert SOTRConfig.from_dict(model) == tables.SCALES["tiny"].config(row)
        trained = json.loads((out / "rows" / row / "seed-0" / "run.json").read_text())
        assert {**trained["config"], "num_classes": 80} == model
        costs[row] = json.loads((out / "rows" / row / "costs.json").read_text())
        # Parameters and gradients in float32 are a part of the memory.
        assert costs[row]["memory"] > 8e-6 * costs[row]["parameters"]
        assert costs[row]["ms"] > 0
    assert costs["baseline"]["parameters"] > costs["weaker-backbone"]["parameters"]
    assert costs["baseline"]["macs"] > costs["weaker-backbone"]["macs"]

    before = {path: path.stat().st_mtime_ns for path in out.rglob("seed-0*") if path.is_file()}
    again = reproduce(["1"], data=str(coco_folder), seeds=1, out=str(out), device="cpu", quiet=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.reports[0].read_text() == text

    # Trained, but interrupted before it was measured: measured now, and not trained anew.
    result_file = out / "rows" / "baseline" / "seed-0.json"
    result = json.loads(result_file.read_text())
    result_file.unlink()
    (out / "rows" / "weaker-backbone" / "costs.json").unlink()
    reproduce(["1"], data=str(coco_folder), seeds=1, out=str(out), device="cpu", quiet=True)
    repeated = json.loads(result_file.read_text())
    for each in (result, repeated):
        del each["metrics"]["seconds"]
    assert repeated == result
    measured = json.loads((out / "rows" / "weaker-backbone" / "costs.json").read_text())
    assert {**measured, "ms": 0} == {**costs["weaker-backbone"], "ms": 0}
    assert len(list((out / "rows" / "baseline" / "seed-0" / "logs" / "csv").iterdir())) == 1

    with pytest.raises(SOTRError, match=r"another data; give another folder"):
        reproduce(["1"], data=str(tmp_path), seeds=1, out=str(out), quiet=True)


@pytest.mark.slow
def test_chosen_rows_on_two_devices(small_scale: None, coco_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    weights = tmp_path / "weights.safetensors"
    state = timm.create_model("lcnet_035", pretrained=False).state_dict()
    safetensors.torch.save_file(state, weights)
    given = {"data": str(coco_folder), "seeds": 1, "out": str(out), "device": "cpu", "devices": 2, "quiet": True}
    reproduce(["6", "7"], rows=["real-time"], backbone_weights=str(weights), **given)
    commands = (out / "commands.sh").read_text().splitlines()
    assert len(commands) == 1
    assert shlex.split(commands[0])[:2] == ["sotr", "train"]
    assert "--devices 2" in commands[0]
    assert [path.name for path in (out / "rows").iterdir()] == ["real-time"]
    run = json.loads((out / "rows" / "real-time" / "seed-0" / "run.json").read_text())
    assert str(weights) in run["weights"]
    assert json.loads((out / "rows" / "real-time" / "seed-0.json").read_text())["metrics"]["images"] == 4
    table = (out / "table-6.md").read_text()
    assert "Unfinished: 1 of 2 runs" in table
    assert "| 39.7 |" in table  # 25.2 frames a second
    with pytest.raises(SOTRError, match="another backbone weights"):
        reproduce(["6"], rows=["real-time"], **given)

    # Several machines train by their launcher; the command measures what it finds.
    given |= {"backbone_weights": str(weights), "rows": ["real-time"], "nodes": 2, "out": str(tmp_path / "cluster")}
    with pytest.raises(SOTRError, match=r"real-time, seed 0 is not trained yet: .*commands\.sh on each of the 2"):
        reproduce(["6"], **given)
    assert "--devices 2 --nodes 2" in (tmp_path / "cluster" / "commands.sh").read_text()
    shutil.copytree(out / "rows" / "real-time" / "seed-0", tmp_path / "cluster" / "rows" / "real-time" / "seed-0")
    reproduce(["6"], **given)
    assert (tmp_path / "cluster" / "rows" / "real-time" / "seed-0.json").is_file()


def test_scales_are_the_papers_and_of_one_plan() -> None:
    full = tables.SCALES["full"]
    assert (full.baseline.backbone, full.baseline.depth) == ("resnet101", 12)
    assert recipes.Recipe.load(full.recipe).iterations == 300_000
    names = {row.name for table in tables.TABLES.values() for row in table.rows}
    for scale in tables.SCALES.values():
        configs = {name: scale.config(name) for name in scale.changes()}
        assert set(configs) == names
        assert len(set(configs.values())) == len(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tables": ["8"]}, "no table '8' to reproduce; choose among 1, 2, 3, 4, 5, 6, 7"),
        (
            {"tables": ["2"], "rows": ["twin"]},
            "no row 'twin' in these tables; choose among baseline, original, pure-twin",
        ),
        ({"tables": ["2"], "devices": 0}, "devices is 0"),
        ({"tables": ["2"], "nodes": 0}, "nodes is 0"),
        ({"tables": ["2"], "scale": "large"}, "no scale 'large'; choose one of full, tiny"),
        ({"tables": ["2"], "seeds": 0}, "seeds is 0"),
        ({"tables": ["2"], "scale": "full"}, "give a data set with --data"),
    ],
)
def test_bad_input(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(SOTRError, match=message):
        reproduce(**arguments, out=str(tmp_path / "out"), quiet=True)
    assert not (tmp_path / "out").exists()
