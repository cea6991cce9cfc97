"""Where a run's numbers and images go besides its folder."""

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
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


class Service(Logger):
    """A tracking service. Where it fails while the run goes on, that is said once, and the run goes on without it.

    Args:
        logger: speaks to the service.
        say: told of a failure.
    """

    def __init__(self, logger: WandbLogger | MLFlowLogger, say: Callable[[str], object]) -> None:
        super().__init__()
        self.logger = logger
        self._say: Callable[[str], object] | None = say

    def _tell(self, what: Callable[[], object]) -> None:
        if self._say is None:
            return
        try:
            what()
        except Exception as error:  # a service fails in as many ways as there are servers
            self._say(f"{type(self.logger).__name__} fails, and the run goes on without it: {_reason(error)}")
            self._say = None

    @property
    def name(self) -> str | None:
        """Of the service's project."""
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        """The service's name of this run."""
        return self.logger.version

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers of a step."""
        self._tell(lambda: self.logger.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Settings of the run."""
        self._tell(lambda: self.logger.log_hyperparams(params))

    def log_pictures(self, pictures: Mapping[str, NDArray[np.uint8]], step: int) -> None:
        """RGB images by name."""
        self._tell(lambda: self._log_pictures(pictures, step))

    def _log_pictures(self, pictures: Mapping[str, NDArray[np.uint8]], step: int) -> None:
        if isinstance(self.logger, WandbLogger):
            self.logger.log_image("validation", list(pictures.values()), step, caption=list(pictures))
            return
        for name, picture in pictures.items():
            key = re.sub(r"[^A-Za-z0-9_.\- ]", "-", name)  # MLflow takes no others
            self.logger.experiment.log_image(self.logger.run_id, picture, key=key, step=step)

    def save(self) -> None:
        """Send what waits."""
        self._tell(self.logger.save)

    def finalize(self, status: str) -> None:
        """The run is over."""
        self._tell(lambda: self.logger.finalize(status))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def make_loggers(
    folder: Path, run: Mapping[str, Any], extra: str | None, first_step: int, say: Callable[[str], object]
) -> list[Logger]:
    """The loggers of a run: CSV and TensorBoard in its folder, and perhaps a tracking service.

    Args:
        folder: the run folder.
        run: its settings, which a service shows beside the curves.
        extra: "wandb" or "mlflow"; they find their server and account as always, in their own settings.
        first_step: steps that the run has made before.
        say: told if the service fails later on.

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
            raise SOTRError(f"--logger {extra} cannot start: {_reason(error)}") from error
        loggers.append(Service(service, say))
    return loggers


def _service(folder: Path, run: Mapping[str, Any], name: str) -> WandbLogger | MLFlowLogger:
    if name == "wandb":
        return WandbLogger(name=run["name"], save_dir=folder / "logs", project="sotr")
    # MLflow's own default, where its settings name none; Lightning's is a folder, which newer versions refuse.
    where = importlib.import_module("mlflow").get_tracking_uri()
    return MLFlowLogger(experiment_name="sotr", run_name=run["name"], tracking_uri=where)


def log_pictures(loggers: Sequence[Logger], pictures: Mapping[str, NDArray[np.uint8]], step: int) -> None:
    """Show RGB images by name in the loggers that can."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, picture in pictures.items():
                logger.experiment.add_image(name, picture, step, dataformats="HWC")
        elif isinstance(logger, Service):
            logger.log_pictures(pictures, step)
