import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sotr.errors import SOTRError
from sotr.training.loggers import LOGGERS, Service, check_logger, log_pictures, make_loggers

RUN = {"name": "first", "command": "sotr train data", "config": {}, "recipe": {}, "seed": 0, "data": {}}


def test_tensorboard_shows_pictures(tmp_path: Path) -> None:
    loggers = make_loggers(tmp_path, RUN, None, 0, print)
    picture = np.zeros((6, 9, 3), np.uint8)
    log_pictures(loggers, {"validation/a.png": picture}, step=7)
    for logger in loggers:
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    (image,) = events.Images("validation/a.png")
    assert (image.step, image.height, image.width) == (7, 6, 9)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_service_whose_package_is_absent_is_one_line(name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(SOTRError, match=rf"--logger {name} needs the package {name}; install it with: pip install"):
        check_logger(name)


def test_services_that_do_not_exist() -> None:
    check_logger(None)
    with pytest.raises(SOTRError, match=r"no logger 'comet'; choose one of wandb, mlflow"):
        check_logger("comet")


class Unreliable(WandbLogger):
    """A service that is gone after the first numbers."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.calls.append("log_metrics")
        if len(self.calls) > 1:
            raise ConnectionError("no route\nto host")

    def finalize(self, status: str) -> None:
        self.calls.append("finalize")


def test_a_service_that_fails_is_named_once_and_left_alone() -> None:
    said: list[str] = []
    logger = Unreliable()
    service = Service(logger, said.append)
    for step in range(4):
        service.log_metrics({"loss": 1.0}, step)
    service.finalize("success")
    assert said == ["Unreliable fails, and the run goes on without it: no route to host"]
    assert logger.calls == ["log_metrics", "log_metrics"]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_service_takes_numbers_and_pictures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    said: list[str] = []
    *_, service = make_loggers(tmp_path, RUN, name, 0, said.append)
    service.log_metrics({"loss": 0.5, "AP50": 0.25}, 3)
    log_pictures([service], {"train/ä b (1).jpg": np.zeros((6, 9, 3), np.uint8)}, step=3)
    service.save()
    service.finalize("success")
    assert said == []
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) > 500
