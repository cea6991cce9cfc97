"""Where a run's numbers and pictures go besides its folder."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray

from sotr.errors import SOTRError

LOGGERS = ("wandb", "mlflow")
"""What `--logger` may be."""


def check_logger(name: str | None) -> None:
    """Refuse a tracking service that cannot be used, before anything is written.

    Raises:
        SOTRError: there is no such service, or its package is not installed.
    """
    if name is None:
        return
    if name not in LOGGERS:
        raise SOTRError(f"there is no logger {name!r}; choose one of {', '.join(LOGGERS)}")
    if importlib.util.find_spec(name) is None:
        raise SOTRError(f"--logger {name} needs the package {name}; install it with: pip install {name}")


def make_loggers(folder: Path, run: Mapping[str, Any], extra: str | None, first_step: int) -> list[Logger]:
    """The loggers of a run: CSV and TensorBoard in its folder, and perhaps a tracking service.

    Args:
        folder: the run folder.
        run: its settings, which a service shows beside the curves.
        extra: "wandb" or "mlflow"; they find their server and account as always, in their own settings.
        first_step: steps that the run has made before.

    Raises:
        SOTRError: the service does not start; says why.
    """
    purge_step = first_step + 1 if first_step else None
    loggers: list[Logger] = [
        CSVLogger(folder / "logs", name="csv"),
        TensorBoardLogger(folder / "logs", name="tensorboard", version="", purge_step=purge_step),
    ]
    if extra is not None:
        try:
            service = _service(folder, run, extra)
            service.log_hyperparams({name: run[name] for name in ("command", "config", "recipe", "seed", "data")})
        except Exception as error:  # a service fails in as many ways as there are servers
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SOTRError(f"--logger {extra} cannot start: {reason}") from error
        loggers.append(service)
    return loggers


def _service(folder: Path, run: Mapping[str, Any], name: str) -> Logger:
    if name == "wandb":
        return WandbLogger(name=run["name"], save_dir=folder / "logs", project="sotr")
    # MLflow's own default, where its settings name none; Lightning's is a folder, which newer versions refuse.
    where = importlib.import_module("mlflow").get_tracking_uri()
    return MLFlowLogger(experiment_name="sotr", run_name=run["name"], tracking_uri=where)


def log_pictures(loggers: Sequence[Logger], pictures: Mapping[str, NDArray[np.uint8]], step: int) -> None:
    """Show RGB pictures by name in the loggers that can."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, picture in pictures.items():
                logger.experiment.add_image(name, picture, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image("validation", list(pictures.values()), step, caption=list(pictures))
        elif isinstance(logger, MLFlowLogger):
            for name, picture in pictures.items():
                logger.experiment.log_image(logger.run_id, picture, key=name.replace("/", "-"), step=step)
