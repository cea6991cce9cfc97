import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import sotr
from sotr.data import CocoDataset, find_data
from sotr.errors import SOTRError
from sotr.evaluation import evaluate
from sotr.evaluation.decoding_choice import Choice, choose_decoding
from sotr.model import Segmenter
from sotr.training import TrainingInterrupted, TrainingSummary, train
from sotr.training.module import SOTRModule
from sotr.training.report import read_log
from sotr.training.settings import seconds_of
from tests.support.commands import Command
from tests.training.conftest import CONFIG, RECIPE

Train = Callable[..., TrainingSummary]


@pytest.fixture(scope="module")
def uninterrupted(coco_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingSummary:
    """The run of `tiny` without changes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    for name, values in (("model", CONFIG), ("recipe", RECIPE)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    model, recipe = str(folder / "model.yaml"), str(folder / "recipe.yaml")
    torch.set_num_threads(1)
    return train(str(coco_folder), model, recipe, out=str(folder / "run"), device="cpu", workers=0, quiet=True)


@pytest.fixture
def tiny(coco_folder: Path, tmp_path: Path, write_yaml: Callable[..., str]) -> Train:
    """train() of a tiny network on `coco_folder`, 2 steps per epoch, into tmp_path / "run"; RECIPE with `changes`."""

    def run(out: Path | None = None, changes: dict[str, Any] | None = None, **arguments: Any) -> TrainingSummary:
        settings = {
            "model": write_yaml("model.yaml", CONFIG),
            "recipe": write_yaml("recipe.yaml", RECIPE, **(changes or {})),
            "device": "cpu",
            "workers": 0,
            "quiet": True,
            **arguments,
        }
        return train(str(coco_folder), out=str(out or tmp_path / "run"), **settings)

    return run


def checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_log(run / "logs" / "csv") if "loss" in row]


def interrupt(monkeypatch: pytest.MonkeyPatch, where: str, number: int, signal_number: int) -> None:
    """Send ourselves a real signal in the given training step or validation (from 1)."""
    if where == "step":
        owner, name = SOTRModule, "training_step"
    else:
        owner, name = sys.modules["sotr.training.validation"].Validation, "__call__"
    original, calls = getattr(owner, name), 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal_number)
        return original(*arguments)

    monkeypatch.setattr(owner, name, counted)


def test_a_run_leaves_what_it_promises(
    coco_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], drawn: None
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 2\nbatch_size: 4\nlr: 0.001\nema_decay: 0.99\nprecision: 32-true\nvalidate_every: 2\n")
    out = tmp_path / "runs" / "first"
    summary = train(
        str(coco_folder), "sotr-nano", str(recipe), image_size=64, out=str(out), device="cpu", workers=1, max_dets=7
    )

    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {
        "run.json",
        "curves.png",
        "metrics.json",
        "report.html",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "logs/csv/version_0/metrics.csv",
        "model/config.json",
        "model/model.safetensors",
        "model/README.md",
        "model/traits.json",
    } <= files
    assert [name for name in files if name.endswith(".tmp")] == []
    assert any(name.startswith("logs/tensorboard/events.out.tfevents") for name in files)
    overlays = sorted(out.glob("validation/*.png"))
    assert len(overlays) == 4  # all of the validation images, for there are fewer than eight
    for path in (*overlays, out / "curves.png"):
        assert np.asarray(Image.open(path)).std() > 10  # not blank

    model = sotr.load(out)
    assert summary == TrainingSummary(out, out / "model", json.loads((out / "metrics.json").read_text()))
    assert model.class_names == ("disc", "box", "bar")
    assert model.category_ids == (3, 17, 90)
    assert model.training_size == find_data(str(coco_folder))[0].median_size  # type: ignore[union-attr]
    assert model.config.image_size == 64
    assert model.config.max_image_size == round(640 * 64 / 384)
    assert (model.decode_options.max_objects, model.decode_options.max_candidates) == (7, 500)
    assert evaluate(str(coco_folder), str(out), max_dets=7, device="cpu", quiet=True)["AP"] == summary.metrics["AP"]

    run = json.loads((out / "run.json").read_text())
    assert run["command"] == (
        f"sotr train {coco_folder} --model sotr-nano --recipe {recipe} --image-size 64 --max-objects 7 --out {out} "
        "--device cpu --workers 1"
    )
    card = (out / "model" / "README.md").read_text()
    assert run["command"] in card
    assert "disc, box, bar" in card
    assert f"torch {torch.__version__.split('+')[0]}" in card

    rows = read_log(out / "logs" / "csv")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert all(
        row["loss"] == pytest.approx(row["loss_class"] + row["loss_mask"], rel=1e-4) for row in rows if "lr" in row
    )
    assert [row["step"] for row in rows if "AP" in row] == [4]

    said = capfd.readouterr()
    assert said.out == ""
    assert "epoch 1/2  loss " in said.err
    assert "best" in said.err.split("epoch 2/2")[1]
    assert "disc" in said.err
    assert [word for word in ("GPU", "TPU", "Tip", "workers", "arning", "rank_zero", "`") if word in said.err] == []


@pytest.mark.parametrize(
    ("where", "number", "signal_number", "steps_done"),
    [
        ("step", 3, signal.SIGTERM, 3),  # in the middle of epoch 2
        ("step", 2, signal.SIGINT, 2),  # in the last step of epoch 1: before its validation
        ("validation", 1, signal.SIGTERM, 2),
        ("validation", 2, signal.SIGINT, 4),  # all trained, not all validated
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    tiny: Train,
    uninterrupted: TrainingSummary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    number: int,
    signal_number: int,
    steps_done: int,
) -> None:
    whole = uninterrupted
    assert len(losses(whole.run)) == 4

    with monkeypatch.context() as patch:
        interrupt(patch, where, number, signal_number)
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        with pytest.raises(TrainingInterrupted):
            tiny(tmp_path / "parts")
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert checkpoint(tmp_path / "parts")["global_step"] == steps_done
    assert not (tmp_path / "parts" / "model").exists()
    resumed = tiny(tmp_path / "parts", resume=True)

    assert losses(resumed.run) == losses(whole.run)
    assert resumed.metrics == whole.metrics
    expected, got = checkpoint(whole.run), checkpoint(resumed.run)
    # Averaged weights, current weights, optimizer and schedule.
    for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(got[key], expected[key])
    assert got["callbacks"]["RunKeeper"]["position"] == expected["callbacks"]["RunKeeper"]["position"] == [2, 0]
    assert_same(load_file(resumed.model / "model.safetensors"), load_file(whole.model / "model.safetensors"))
    steps = [row["step"] for row in read_log(resumed.run / "logs" / "csv") if "AP" in row]
    assert steps == [2, 4]


def assert_same(got: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected)
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            assert_same(got[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    else:
        assert got == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signals_on_the_command_line(
    coco_folder: Path, tmp_path: Path, write_yaml: Callable[..., str], number: int, code: int
) -> None:
    """As a terminal or a cluster sends them: to the loader workers too, which must not fall over."""
    model = write_yaml("model.yaml", CONFIG)
    recipe = write_yaml("recipe.yaml", RECIPE, epochs=1000, validate_every=1000)
    command = ["train", str(coco_folder), "--model", model, "--recipe", recipe, "--out", str(tmp_path / "run")]
    command += ["--device", "cpu", "--workers", "1"]
    process, said = Command(command), ""
    try:
        for line in process.stderr:
            said += line
            if "epoch 2/" in line:
                break
        os.killpg(process.pid, number)
        said += process.communicate(timeout=60)[1]
        assert process.returncode == code, said
    finally:
        process.kill()
    assert "Traceback" not in said
    assert "interrupted after step" in said
    assert f"sotr train {coco_folder} --out {tmp_path / 'run'} --resume" in said
    assert checkpoint(tmp_path / "run")["global_step"] >= 4


def test_averaged_weights_are_what_is_saved(uninterrupted: TrainingSummary) -> None:
    summary = uninterrupted
    saved = load_file(summary.model / "model.safetensors")
    last, best = checkpoint(summary.run), checkpoint(summary.run, "best")
    assert summary.metrics is not None
    assert summary.metrics["epoch"] == 2
    differs = False
    for name, value in saved.items():
        assert torch.equal(value, last["state_dict"][f"network.{name}"])
        assert torch.equal(value, best["state_dict"][f"network.{name}"])
        differs |= not torch.equal(value, last["current_model_state"][f"network.{name}"])
    assert differs


def test_without_average_or_validation_the_last_weights_are_saved(tiny: Train, coco_folder: Path) -> None:
    summary = tiny(
        changes={"ema_decay": 0.0, "epochs": None, "iterations": 3}, train_json=str(coco_folder / "train.json")
    )
    assert summary.metrics is None
    last = checkpoint(summary.run)
    assert last["global_step"] == 3  # one and a half epochs
    assert "current_model_state" not in last
    for name, value in load_file(summary.model / "model.safetensors").items():
        assert torch.equal(value, last["state_dict"][f"network.{name}"])


def test_fine_tuning_starts_from_the_folders_weights(tiny: Train, uninterrupted: TrainingSummary) -> None:
    first = uninterrupted
    # A rate so low that the weights stay what they were; the average of equal weights is the same again.
    second = tiny(model=str(first.run), changes={"epochs": 1, "lr": 1e-30})
    before, after = (load_file(run.model / "model.safetensors") for run in (first, second))
    for name, value in before.items():
        if "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], value, rtol=1e-6, atol=1e-6)


def test_other_classes_get_a_new_class_head(
    uninterrupted: TrainingSummary, tmp_path: Path, coco_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = uninterrupted
    one_class = tmp_path / "one"
    shutil.copytree(coco_folder, one_class)
    for name in ("train.json", "val.json"):
        content = json.loads((one_class / name).read_text())
        content["categories"] = [{"id": 5, "name": "thing"}]
        for annotation in content["annotations"]:
            annotation["category_id"] = 5
        (one_class / name).write_text(json.dumps(content))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 1\nlr: 1e-30\nbatch_size: 3\nprecision: 32-true\n")

    second = train(str(one_class), str(first.model), str(recipe), out=str(tmp_path / "second"), device="cpu", workers=0)
    assert "knows 3 classes (disc, box, bar), the data have 1 class (thing): the class head starts anew" in (
        capfd.readouterr().err
    )
    before, after = (load_file(run.model / "model.safetensors") for run in (first, second))
    for name, value in before.items():
        if name.startswith("class_head."):
            assert not torch.equal(after[name], value), name
        elif "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], value, rtol=1e-6, atol=1e-6)
    assert sotr.load(second.run).category_ids == (5,)


def test_the_model_gets_the_decoding_that_suits_the_training_images(
    tiny: Train, coco_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(segmenter: Segmenter, data: CocoDataset, on_images: Callable[[int], object]) -> Choice:
        compared = choose_decoding(segmenter, data, on_images)
        assert (len(data), compared.change) == (len(find_data(coco_folder)[0] or ()), "")  # too little is learned
        return Choice(segmenter.decode_options.with_changes("nms=mask"), "nms=mask", compared.ap_of)

    monkeypatch.setattr("sotr.training.work.choose_decoding", choose)
    summary = tiny(changes={"choose_decoding": True})
    model = sotr.load(summary.model)
    assert model.decode_options.nms == "mask"
    measured = evaluate(str(coco_folder), model, device="cpu", quiet=True)
    assert summary.metrics is not None
    assert {name: summary.metrics[name] for name in ("AP", "AR", "detections")} == {
        name: measured[name] for name in ("AP", "AR", "detections")
    }


def test_patience_ends_a_run_for_good(tiny: Train, capfd: pytest.CaptureFixture[str]) -> None:
    changes = {"epochs": 9, "early_stop": 1, "lr": 1e-9}
    summary = tiny(changes=changes)  # the AP stays 0, so the second validation is no better than the first
    assert checkpoint(summary.run)["global_step"] == 4
    again = tiny(changes=changes, resume=True, quiet=False)
    assert again == summary
    assert checkpoint(summary.run)["global_step"] == 4
    assert "this run was finished after 0:" in (said := capfd.readouterr().err)
    assert f"--model {summary.run}" in said


def test_resuming_refuses_what_differs(tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, "step", 1, signal.SIGINT)
        with pytest.raises(TrainingInterrupted):
            tiny()
    with pytest.raises(SOTRError, match=r"not empty; continue that run with --resume, or give another folder"):
        tiny()
    with pytest.raises(SOTRError, match=r"other settings \(lr was None, now 0\.5; seed was 0, now 3\)"):
        tiny(resume=True, lr=0.5, seed=3)
    with pytest.raises(SOTRError, match=r"model was '.*model\.yaml', now 'sotr-nano'"):
        tiny(resume=True, model="sotr-nano")
    with pytest.raises(SOTRError, match=r"recipe weight_decay was 0\.05, now 0\.5"):
        tiny(resume=True, changes={"weight_decay": 0.5})
    described = json.loads((run / "run.json").read_text())
    other_files = {"train_json": "train.json", "val_json": "train.json"}
    (run / "run.json").write_text(json.dumps({**described, "arguments": {**described["arguments"], **other_files}}))
    with pytest.raises(SOTRError, match=r"val_pictures was 4, now 8"):
        tiny(resume=True)
    other_data = {**described["data"], "train_objects": 3}
    (run / "run.json").write_text(json.dumps({**described, "data": other_data}))
    with pytest.raises(SOTRError, match=r"train_objects was 3, now \d+"):
        tiny(resume=True)
    (run / "run.json").write_text("{")
    with pytest.raises(SOTRError, match=r"run\.json is damaged"):
        tiny(resume=True)
    (run / "run.json").write_text(json.dumps(described))

    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not a checkpoint", b""):
        (run / "checkpoints" / "last.ckpt").write_bytes(damaged)
        (run / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
        with pytest.raises(SOTRError, match=r"last\.ckpt is not a checkpoint that can be read") as caught:
            tiny(resume=True)
        assert len(str(caught.value).removeprefix(str(run))) < 200  # PyTorch has more to say
    with pytest.raises(SOTRError, match=r"elsewhere holds no run to resume"):
        tiny(tmp_path / "elsewhere", resume=True)


def test_a_checkpoint_cannot_run_code(tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "step", 1, signal.SIGINT)
        with pytest.raises(TrainingInterrupted):
            tiny()
    content = checkpoint(tmp_path / "run")
    content["surprise"] = _Touch(tmp_path / "touched")
    torch.save(content, tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(SOTRError, match=r"last\.ckpt is not a checkpoint that can be read"):
        tiny(resume=True)
    assert not (tmp_path / "touched").exists()


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_bad_arguments(tiny: Train, tmp_path: Path, write_yaml: Callable[..., str]) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": "sotr-r5"}, r"no model 'sotr-r5'.*random weights: sotr-r50, sotr-r101"),
        ({"model": write_yaml("wide.yaml", CONFIG, widht=3)}, r"wide\.yaml: unknown setting widht"),
        ({"recipe": "scrach"}, r"no recipe 'scrach'"),
        ({"epochs": 0}, r"epochs is 0"),
        ({"batch_size": -1}, r"batch_size is -1"),
        ({"lr": float("nan")}, r"lr is nan"),
        ({"image_size": 0}, r"image_size is 0"),
        ({"max_dets": 0}, r"max_objects is 0"),
        ({"seed": -1}, r"seed is -1"),
        ({"seed": 2**63}, r"seed is \d+; it must be a whole number"),
        ({"workers": -1}, r"workers is -1"),
        ({"backbone_weights": "nothing.pth"}, r"nothing\.pth: no such file"),
        ({"early_stop": -1}, r"early_stop is -1"),
        ({"max_time": "soon"}, r"max_time is 'soon'; give a time such as 90s"),
        ({"devices": 0}, r"devices is 0"),
        ({"devices": 2}, r"batch_size 3 cannot be shared out evenly to 2 devices"),
        ({"strategy": "zero"}, r"no strategy 'zero'; choose one of auto, ddp, fsdp"),
        ({"logger": "comet"}, r"no logger 'comet'"),
        ({"strategy": "fsdp"}, r"fsdp needs CUDA"),
        ({"device": "gpu7"}, r"no device 'gpu7'"),
        ({"train_json": "val.json", "val_json": "nothing.json"}, r"nothing\.json"),
    ]
    for arguments, message in cases:
        with pytest.raises(SOTRError, match=message):
            tiny(**arguments)
        assert not (tmp_path / "run").exists(), arguments


def test_several_devices_need_a_named_folder(coco_folder: Path) -> None:
    with pytest.raises(SOTRError, match=r"name it with --out"):
        train(str(coco_folder), devices=2, device="cpu", quiet=True)


def test_something_to_train_on_must_be_named() -> None:
    with pytest.raises(SOTRError, match=r"nothing to train on"):
        train(device="cpu", quiet=True)
    with pytest.raises(SOTRError, match=r"no run to go on with; name its folder with --out"):
        train(device="cpu", resume=True, quiet=True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("8h", 28800), ("1h30m", 5400), ("0.5h", 1800), (None, 0)]
)
def test_times(text: str | None, seconds: float) -> None:
    assert seconds_of(text) == seconds


def test_a_run_ends_when_its_time_is_used_up_and_leaves_a_model(
    tiny: Train, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    moment, long = iter(range(10**6)), {"epochs": 1000, "validate_every": 1000}
    monkeypatch.setattr("sotr.training.callbacks.time.monotonic", lambda: float(next(moment)))
    summary = tiny(changes=long, max_time="60s", quiet=False)
    assert "of training are over; a last validation and the report follow" in capfd.readouterr().err
    steps = [row for row in read_log(summary.run / "logs" / "csv") if "lr" in row]
    assert 4 < len(steps) < 60
    # The rate has come down to a hundredth although few of the 2,000 steps were made.
    assert min(row["lr"] for row in steps) == steps[-1]["lr"] < 0.05 * RECIPE["lr"]
    assert max(row["lr"] for row in steps) > 0.9 * RECIPE["lr"]
    assert summary.metrics is not None
    assert sotr.load(summary.run).class_names == ("disc", "box", "bar")
    assert tiny(changes=long, max_time="60s", resume=True) == summary  # nothing more to do


def test_an_interrupted_run_gives_its_model_on_demand_and_can_go_on(
    tiny: Train, uninterrupted: TrainingSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, "step", 3, signal.SIGTERM)
        with pytest.raises(TrainingInterrupted, match=rf"sotr train .* --out {run} --finish") as caught:
            tiny()
    assert caught.value.exit_code == 0
    made = train(out=str(run), finish=True, device="cpu", quiet=True)
    assert made.metrics is not None
    assert made.metrics["epoch"] == 1
    best = checkpoint(run, "best")["state_dict"]
    for name, value in load_file(made.model / "model.safetensors").items():
        assert torch.equal(value, best[f"network.{name}"])
    assert json.loads((run / "metrics.json").read_text()) == made.metrics
    resumed = train(out=str(run), resume=True, device="cpu", workers=0, quiet=True)
    assert resumed.metrics == uninterrupted.metrics


def test_a_folder_that_cannot_be_written_is_one_line(tiny: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SOTRError, match=r"file/run cannot be written: .*another folder with --out") as caught:
        tiny(tmp_path / "file" / "run")
    assert "\n" not in str(caught.value)


def test_default_folders_are_numbered_and_the_newest_resumed(
    tiny: Train, coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_yaml: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"model": write_yaml("small.yaml", CONFIG), "recipe": write_yaml("quick.yaml", RECIPE, epochs=1)}
    with pytest.raises(SOTRError, match=r"no run of .* in the folder runs to resume; name it with --out"):
        train(str(coco_folder), resume=True, device="cpu", quiet=True)
    runs = []
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted):
            interrupt(patch, "step", 1, signal.SIGINT)
            train(str(coco_folder), **settings, device="cpu", workers=0, quiet=True)
        runs.append(max(Path("runs").iterdir(), key=lambda path: path.stat().st_mtime))
    assert [run.name for run in runs] == [f"{coco_folder.name}-small-{number}" for number in (1, 2)]
    # Nothing but the data is named: the rest is the run's own.
    assert train(str(coco_folder), resume=True, device="cpu", workers=0, quiet=True).run == runs[1]
    assert checkpoint(runs[1])["global_step"] == 2
