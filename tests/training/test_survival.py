"""Runs that are killed, and steps that fail."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger

from sotr.errors import SOTRError
from sotr.training import ReplayedStep, callbacks, train
from sotr.training.checkpoints import newest_checkpoint
from sotr.training.display import Stop
from sotr.training.module import SOTRModule
from sotr.training.work import TrainingInterrupted
from tests.conftest import full_disk
from tests.support.commands import PROCESSES
from tests.support.killed import KILLED
from tests.training.conftest import CONFIG, RECIPE, draw_nothing

STEPS_RECIPE = {**RECIPE, "epochs": 12, "validate_every": 12}


@pytest.fixture
def settings(coco_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a run of 24 steps."""
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(STEPS_RECIPE))
    return {
        "data": str(coco_folder),
        "model": str(tmp_path / "model.yaml"),
        "recipe": str(tmp_path / "recipe.yaml"),
        "device": "cpu",
        "workers": 0,
        "quiet": True,
    }


def _run(settings: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "SAVE_EVERY_SECONDS", 0.0)  # saving is half of the time
        draw_nothing(patch)
        train(**settings, out=str(out), resume=any((out / "checkpoints").glob("*.ckpt")))


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(
    settings: dict[str, Any], tmp_path: Path, kills: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    started = time.monotonic()
    _run(settings, whole)
    duration = time.monotonic() - started
    moments = random.Random(7)
    step, killed, ended = 0, 0, []
    while killed < kills:
        process = PROCESSES.Process(target=_run, args=(settings, parts))
        process.start()
        process.join(moments.uniform(0.2, 0.9) * duration)
        if process.exitcode is not None:  # it came to its end first
            assert process.exitcode == 0
            ended, step = [*ended, parts], 0
            parts = tmp_path / f"parts-{len(ended)}"
            continue
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
        if (newest := newest_checkpoint(parts, print)) is not None:
            assert newest[1]["global_step"] >= step
            step = newest[1]["global_step"]
    _run(settings, parts)
    expected = newest_checkpoint(whole, print)
    assert expected is not None
    for run in (*ended, parts):
        found = newest_checkpoint(run, print)
        assert found is not None
        for name, value in expected[1]["state_dict"].items():
            assert torch.equal(found[1]["state_dict"][name], value), name
        assert not list((run / "checkpoints").glob(".*"))


def test_a_checkpoint_holds_all_that_a_run_is(settings: dict[str, Any], tmp_path: Path) -> None:
    train(**settings | {"epochs": 1}, out=str(tmp_path / "run"))
    newest = newest_checkpoint(tmp_path / "run", print)
    assert newest is not None
    checkpoint = newest[1]
    assert checkpoint["global_step"] == 2
    assert checkpoint["state_dict"].keys() == checkpoint["current_model_state"].keys()  # average and current weights
    assert len(checkpoint["optimizer_states"][0]["state"]) > 0
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 2
    own = checkpoint["callbacks"]["RunKeeper"]
    assert own["position"] == [1, 0]  # of the sampler; order and random numbers are functions of it and the seed
    assert own["best"]["epoch"] == 1
    assert own["finished"]


def _blow_up(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make a weight infinite before a step."""
    original = SOTRModule.on_train_batch_start

    def start(module: SOTRModule, batch: Any, batch_idx: int) -> None:
        original(module, batch, batch_idx)
        if module.global_step == step:
            with torch.no_grad():
                module.network.kernel_head.get_parameter(_a_weight(module))[0, 0] = torch.inf

    monkeypatch.setattr(SOTRModule, "on_train_batch_start", start)


def _a_weight(module: SOTRModule) -> str:
    return next(name for name, value in module.network.kernel_head.named_parameters() if value.dim() == 2)


def test_a_step_whose_loss_is_not_finite_can_be_done_again(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        _blow_up(patch, step=3)
        with pytest.raises(SOTRError) as caught:
            train(**settings, out=str(run))
    assert "the loss became nan in step 4 with train_" in str(caught.value)
    assert f"sotr train --replay {run / 'failed-step'}" in str(caught.value)
    assert "the weights were not finite before it" in str(caught.value)
    assert {path.suffix for path in (run / "failed-step").iterdir()} == {".json", ".safetensors"}

    replayed = train(replay=str(run / "failed-step"), device="cpu")
    assert isinstance(replayed, ReplayedStep)
    assert torch.tensor(replayed.losses["loss"]).isnan()
    assert torch.tensor(replayed.losses["loss_class"]).isfinite()
    assert replayed.first_not_finite is not None
    assert replayed.first_not_finite.startswith("the weight kernel_head.")
    said = capfd.readouterr().out
    assert "step 4 with train_" in said
    assert "loss_mask: nan (when it failed: nan)" in said
    # The run goes on from its last checkpoint as if nothing had been.
    with pytest.raises(SOTRError, match="does not hold a failed training step"):
        train(replay=str(run), device="cpu")


def test_a_replayed_step_has_the_losses_that_it_had(settings: dict[str, Any], tmp_path: Path) -> None:
    """Of a step that is finite, for NaN equals nothing: the batch is read back exactly."""
    from rich.console import Console

    from sotr.training.module import LossNotFinite
    from sotr.training.replay import keep_step, replay

    kept: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        check = SOTRModule._check_loss

        def check_and_keep(module: SOTRModule) -> None:
            if module._unchecked is not None and not kept and module.global_step == 1:
                kept.update(module.latest)
                keep_step(tmp_path / "step", module, LossNotFinite(module._unchecked[0], module.latest), "32-true")
            check(module)

        patch.setattr(SOTRModule, "_check_loss", check_and_keep)
        train(**settings | {"epochs": 1}, out=str(tmp_path / "run"))
    replayed = replay(tmp_path / "step", "cpu", Console(quiet=True))
    assert replayed.losses == pytest.approx({name: float(value) for name, value in kept.items()}, rel=1e-6)
    assert replayed.first_not_finite is None


@KILLED
def test_a_loader_process_that_is_killed_is_reported_with_its_file(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sotr.data.batches as batches

    original: Callable[..., Any] = batches.load_picture

    def load(coco: Any, index: int, *rest: Any) -> Any:
        if coco.file_names[index] == "train_5.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(coco, index, *rest)

    monkeypatch.setattr(batches, "load_picture", load)  # the worker inherits it
    with pytest.raises(SOTRError) as caught:
        train(**settings | {"workers": 1}, out=str(tmp_path / "run"))
    message = str(caught.value)
    assert "a process that loads images died" in message
    assert f"it last opened {Path(settings['data']) / 'images' / 'train_5.png'};" in message
    assert "\n" not in message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's writer
@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("checkpoint", r"cannot write .*last\.ckpt \(File too large\); .* is intact: make room, then .* --resume$"),
        ("step", r"the loss became nan in step 4 with train_.*; the step could not be kept in .* \(.*File too large"),
        ("log", r"the run in .* cannot go on: .*File too large.*, then continue with --resume$"),
    ],
)
def test_on_a_full_disk_the_first_failure_is_named(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, message: str
) -> None:
    """Though nothing can be written after it, not even the end of the logs."""
    owner, name = (CSVLogger, "save") if fails == "log" else (SOTRModule, "training_step")
    original: Callable[..., Any] = getattr(owner, name)
    with ExitStack() as disk:

        def fill(own: Any, *arguments: Any) -> Any:
            if own.experiment.metrics if fails == "log" else own.global_step == 3:
                disk.enter_context(full_disk())
            return original(own, *arguments)

        monkeypatch.setattr(owner, name, fill)
        if fails == "step":
            _blow_up(monkeypatch, step=3)
        with pytest.raises(SOTRError, match=message) as caught:
            train(**settings, out=str(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    if fails == "step":
        assert list((tmp_path / "run" / "failed-step").iterdir()) == []
    newest = newest_checkpoint(tmp_path / "run", print)
    assert newest is not None
    assert newest[1]["global_step"] == 2


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the loss is finite."""
    original, modules = SOTRModule.on_train_batch_start, []

    def start(module: SOTRModule, batch: Any, batch_idx: int) -> None:
        original(module, batch, batch_idx)
        if module.global_step == 3:
            modules.append(module)
            module.network.kernel_head.get_parameter(_a_weight(module)).register_hook(lambda grad: grad / 0)

    with monkeypatch.context() as patch:
        patch.setattr(SOTRModule, "on_train_batch_start", start)
        with pytest.raises(
            SOTRError, match=r"the gradient of the loss became (nan|inf) in step 4 with train_"
        ) as caught:
            train(**settings, out=str(tmp_path / "run"))
    assert "check these images" in str(caught.value)
    assert modules[0].has_finite_weights()
    replayed = train(replay=str(tmp_path / "run" / "failed-step"), device="cpu", quiet=True)
    assert isinstance(replayed, ReplayedStep)
    assert replayed.first_not_finite is None  # without the hook
    train(**settings, out=str(tmp_path / "run"), resume=True)


def test_weights_that_are_not_finite_are_never_saved(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient that is infinite, though the loss is not."""
    original = SOTRModule.on_before_optimizer_step

    def before(module: SOTRModule, optimizer: torch.optim.Optimizer) -> None:
        original(module, optimizer)
        if module.global_step == 3:  # the last of the second epoch, which ends with a checkpoint
            module.network.kernel_head.get_parameter(_a_weight(module)).grad.fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(SOTRModule, "on_before_optimizer_step", before)
        with pytest.raises(SOTRError, match=r"weights are infinite or not a number after step 4, .* is intact"):
            train(**settings, out=str(tmp_path / "run"))
    newest = newest_checkpoint(tmp_path / "run", print)
    assert newest is not None
    assert newest[1]["global_step"] == 2
    assert all(value.isfinite().all() for value in newest[1]["state_dict"].values())
    train(**settings, out=str(tmp_path / "run"), resume=True)


def test_a_signal_before_the_first_step_leads_to_a_new_start(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(keeper: callbacks.RunKeeper, *_: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.RunKeeper, "on_train_start", stop)
        with pytest.raises(TrainingInterrupted, match=r"before anything was saved; to begin again: sotr train .*/run"):
            train(**settings, out=str(tmp_path / "run"))
    assert train(**settings | {"epochs": 1}, out=str(tmp_path / "run")).model.is_dir()


@KILLED
def test_a_loader_process_that_is_killed_during_the_report_is_one_line(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: None
) -> None:
    import sotr.data.batches as batches
    import sotr.training.work as work

    original = work.write_report

    def write_report(*arguments: Any, **options: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(batches, "load_picture", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            original(*arguments, **options)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(work, "write_report", write_report)
        with pytest.raises(
            SOTRError, match=rf"images died \(.*worker.*\); .* sotr train --out {run} --finish$"
        ) as caught:
            train(**settings | {"epochs": 1, "workers": 1}, out=str(run))
    assert "\n" not in str(caught.value)
    assert train(out=str(run), finish=True, device="cpu", workers=0, quiet=True)
    assert (run / "report.html").is_file()
