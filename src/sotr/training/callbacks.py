"""What happens around the training steps: checkpoints, validation, logs, and when to stop."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor

from sotr.data.batches import Batch
from sotr.data.sampling import EpochSampler
from sotr.errors import SOTRError
from sotr.evaluation.coco import Metrics
from sotr.evaluation.tables import number
from sotr.training.averaging import AveragedWeights
from sotr.training.checkpoints import BEST, FOLDER, LAST
from sotr.training.devices import sharded
from sotr.training.display import Display, Interrupts, Stop, duration
from sotr.training.loggers import log_pictures
from sotr.training.module import SOTRModule

SAVE_EVERY_SECONDS = 300.0
"""Longest time of training that a crash can cost."""


class Validate(Protocol):
    """Measures a module and draws what it finds."""

    def __call__(self, module: SOTRModule, display: Display) -> Metrics:
        """The metrics of the weights that the module has now, with progress on the display; may raise `Stop`."""

    def pictures(self, module: SOTRModule) -> Mapping[str, NDArray[np.uint8]]:
        """Some images with what the module finds in them, by name; RGB."""


class RunKeeper(Callback):
    """Keeps a run folder: `last.ckpt`, `best.ckpt`, validation, logs, and the state that a resumed run continues.

    Args:
        folder: of the run.
        sampler: whose position is saved and restored.
        display: for progress.
        interrupts: looked at after each step.
        validate: measures a module and shows its progress; None without validation images.
        average: the averaged weights, if any.
        after_validation: called when the logs are up to date, for instance to draw the curves.
        log_every: steps between two rows of the logs, and between two agreements of several processes.
        max_seconds: time budget of the run, all parts together; 0 is none.
    """

    def __init__(
        self,
        folder: Path,
        sampler: EpochSampler,
        display: Display,
        interrupts: Interrupts,
        validate: Validate | None,
        average: AveragedWeights | None,
        after_validation: Callable[[], None],
        log_every: int,
        max_seconds: float,
    ) -> None:
        self.last_path = folder / FOLDER / LAST
        self.best_path = folder / FOLDER / BEST
        self.best: dict[str, Any] | None = None
        """Metrics of the best validation so far, with its "epoch" (from 1)."""
        self.latest: dict[str, Any] | None = None
        """Metrics of the latest validation, with its "epoch" (from 1)."""
        self.seconds = 0.0
        """Wall time of all parts of the run."""
        self.finished = False
        self.failure: BaseException | None = None
        """What ended the training before its time."""
        self._sampler, self._display, self._interrupts = sampler, display, interrupts
        self._validate, self._average, self._after_validation = validate, average, after_validation
        self._log_every, self._max_seconds = log_every, max_seconds
        self._out_of_time = False
        self._without_better = 0
        self._position = (0, 0)
        self._unvalidated_epoch: int | None = None
        self._clock = self._saved_at = time.monotonic()
        self._pictures, self._pictures_since = 0, self._clock
        self._epoch_loss: Tensor | None = None
        self._epoch_steps = 0

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return self._position[0]

    # What a checkpoint holds of this callback, and how it comes back.

    def state_dict(self) -> dict[str, Any]:
        """Plain values only."""
        return {
            "position": list(self._position),
            "unvalidated_epoch": self._unvalidated_epoch,
            "best": self.best,
            "latest": self.latest,
            "without_better": self._without_better,
            "seconds": self._elapsed(),
            "finished": self.finished,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called before the loader starts, so that the first epoch begins at the saved position."""
        epoch, start = state_dict["position"]
        self._position = (epoch, start)
        self._sampler.set_position(epoch, start)
        self._unvalidated_epoch = state_dict["unvalidated_epoch"]
        self.best, self.latest = state_dict["best"], state_dict["latest"]
        self._without_better = state_dict["without_better"]
        self.seconds = state_dict["seconds"]
        self.finished = state_dict["finished"]

    def _elapsed(self) -> float:
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        return self.seconds

    def _save_last(self, trainer: pl.Trainer) -> None:
        self._refuse_broken_weights(trainer)
        trainer.save_checkpoint(self.last_path)
        for logger in trainer.loggers:
            logger.save()
        self._saved_at = time.monotonic()

    def _refuse_broken_weights(self, trainer: pl.Trainer) -> None:
        """A gradient may be infinite though its loss is not, and no later step mends the weights.

        Raises:
            SOTRError: a weight is not finite; no checkpoint is touched.
        """
        module = trainer.lightning_module
        assert isinstance(module, SOTRModule)
        if trainer.strategy.reduce_boolean_decision(not module.has_finite_weights(), all=False):
            raise SOTRError(
                f"weights are infinite or not a number after step {trainer.global_step}, though no loss was; the "
                "checkpoint before is intact: lower the learning rate, or train in 32-true, from --resume or anew"
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Lightning closes the loggers before it lets an error through, and what fails there, as on a full disk, would
        take its place."""
        self.failure = exception

    # The course of the training.

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock starts; a validation that was interrupted comes first."""
        assert isinstance(pl_module, SOTRModule)
        self._interrupts.claim()
        self._stop_if_asked(trainer)
        self._clock = self._pictures_since = time.monotonic()
        self._look_at_clock(trainer, pl_module)
        self.catch_up(trainer, pl_module)
        self._begin_epoch(trainer)

    @property
    def owes_validation(self) -> bool:
        """Whether a validation was due when the run was interrupted."""
        return self._unvalidated_epoch is not None

    def catch_up(self, trainer: pl.Trainer, module: SOTRModule) -> None:
        """Run the validation that an interrupted run still owes, if any."""
        if self._unvalidated_epoch is not None:
            self._run_validation(trainer, module, self._unvalidated_epoch, "")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Point the sampler at the new epoch; not called when a run resumes in the middle of one."""
        self._position = (trainer.current_epoch, 0)
        self._sampler.set_position(*self._position)
        self._begin_epoch(trainer)

    def _begin_epoch(self, trainer: pl.Trainer) -> None:
        done = self._position[1] // _batch_size(trainer)
        title = f"epoch {self._name(trainer, trainer.current_epoch)}"
        self._display.begin(title, int(trainer.num_training_batches), done)
        self._epoch_loss, self._epoch_steps = None, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log, save now and then, and stop where asked to."""
        assert isinstance(pl_module, SOTRModule)
        loss = pl_module.latest["loss"]
        self._epoch_loss = loss if self._epoch_loss is None else self._epoch_loss + loss
        self._epoch_steps += 1
        self._pictures += len(batch.image_ids) * trainer.world_size
        running = None
        if trainer.global_step % self._log_every == 0:
            running = self._log_step(trainer, pl_module)
        self._display.advance(running=running)

        # Several processes must decide alike, and asking one another takes time.
        agree = trainer.world_size == 1 or trainer.global_step % self._log_every == 0
        if agree:
            self._look_at_clock(trainer, pl_module)
        if trainer.global_step >= pl_module.total_iterations:
            trainer.should_stop = True
        if trainer.should_stop or batch_idx + 1 >= trainer.num_training_batches:
            return  # the epoch's end, which saves and looks at interrupts, comes next
        self._position = (trainer.current_epoch, (batch_idx + 1) * _batch_size(trainer))
        due = self._interrupts.number is not None or time.monotonic() - self._saved_at > SAVE_EVERY_SECONDS
        if agree and trainer.strategy.reduce_boolean_decision(due, all=False):
            self._save_last(trainer)
            self._stop_if_asked(trainer)

    def _look_at_clock(self, trainer: pl.Trainer, module: SOTRModule) -> None:
        """Stop where the time is used up, and let the schedule know how much of it is."""
        if not self._max_seconds:
            return
        fraction = float(trainer.strategy.broadcast(self._elapsed() / self._max_seconds))
        module.time_fraction = min(1.0, fraction)
        if fraction >= 1 and not self._out_of_time:
            self._out_of_time = trainer.should_stop = True
            self._display.console.print(
                f"{duration(self._max_seconds)} of training are over; a last validation and the report follow"
            )

    def _log_step(self, trainer: pl.Trainer, module: SOTRModule) -> dict[str, str]:
        values = torch.stack(list(module.latest.values())).float().tolist()
        losses = dict(zip(module.latest, values, strict=True))
        now = time.monotonic()
        speed = self._pictures / max(1e-9, now - self._pictures_since)
        self._pictures, self._pictures_since = 0, now
        rate = module.recipe.lr * module.lr_factor(trainer.global_step - 1)
        row = {**losses, "lr": rate, "pictures_per_second": speed, "epoch": trainer.current_epoch + 1}
        _log(trainer, row)
        return {
            "epoch": self._name(trainer, trainer.current_epoch),
            **{name: f"{value:.4f}" for name, value in losses.items()},
            "rate": f"{rate:.2g}",
            "pictures/s": f"{speed:.1f}",
        }

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, validate where it is due, save again with the outcome."""
        assert isinstance(pl_module, SOTRModule)
        done = pl_module.total_iterations <= trainer.global_step or self._out_of_time
        epoch = trainer.current_epoch
        self._position = (epoch + 1, 0)
        due = self._validate is not None and (done or (epoch + 1) % pl_module.recipe.validate_every == 0)
        self._unvalidated_epoch = epoch if due else None
        self.finished = done and not due
        self._save_last(trainer)
        self._stop_if_asked(trainer)
        mean = "" if self._epoch_loss is None else f"{float(self._epoch_loss) / self._epoch_steps:.4f}"
        if due:
            self._run_validation(trainer, pl_module, epoch, mean)
        else:
            self._report_epoch(trainer, epoch, mean)
        self._pictures, self._pictures_since = 0, time.monotonic()

    def _run_validation(self, trainer: pl.Trainer, module: SOTRModule, epoch: int, mean_loss: str) -> None:
        assert self._validate is not None
        module.eval()
        if self._average is not None:
            with self._average.in_place_of(module):
                self._measure(trainer, module, epoch)
        else:
            self._measure(trainer, module, epoch)
        module.train()
        self._unvalidated_epoch = None
        patience = module.recipe.early_stop
        if patience and self._without_better >= patience:
            trainer.should_stop = True
            self._display.console.print(f"no better AP in {patience} validations: stopping early")
        self.finished = trainer.should_stop or trainer.global_step >= module.total_iterations
        self._save_last(trainer)
        self._report_epoch(trainer, epoch, mean_loss, self.latest)
        self._after_validation()
        self._stop_if_asked(trainer)

    def _measure(self, trainer: pl.Trainer, module: SOTRModule, epoch: int) -> None:
        """Validate the weights that are in the module now, and keep them if they are the best so far."""
        assert self._validate is not None
        # In full precision, whatever the steps use, so that the numbers are those of the saved model.
        with torch.no_grad():
            metrics = self._validate(module, self._display)
        self.latest = {**metrics.to_dict(), "epoch": epoch + 1}
        now, before = self.latest["AP"] or 0.0, -1.0 if self.best is None else self.best["AP"] or 0.0
        self._without_better = 0 if now > before else self._without_better + 1
        if now >= before:  # of equals, such as no AP at all at first, the one that was trained longer
            self.best = self.latest
            trainer.save_checkpoint(self.best_path, weights_only=True)
        row = {name: value for name, value in self.latest.items() if isinstance(value, float)}
        _log(trainer, {**row, "epoch": epoch + 1})
        if trainer.is_global_zero or sharded(module):
            pictures = self._validate.pictures(module)
            if trainer.is_global_zero:
                log_pictures(trainer.loggers, pictures, trainer.global_step)

    def _report_epoch(
        self, trainer: pl.Trainer, epoch: int, mean_loss: str, metrics: dict[str, Any] | None = None
    ) -> None:
        row = {"epoch": self._name(trainer, epoch)} | ({"loss": mean_loss} if mean_loss else {})
        if metrics is not None and self.best is not None:
            row |= {name: number(metrics[name]) for name in ("AP", "AP50", "AP75")}
            row["best"] = "" if self.best is metrics else f"{number(self.best['AP'])} in {self.best['epoch']}"
        line = "  ".join(f"{name} {value}".rstrip() for name, value in row.items())
        elapsed = self._elapsed()
        taken = duration(elapsed)
        # Steps and validations together take as long as they have taken so far.
        done = max(trainer.global_step / self._total(trainer), elapsed / self._max_seconds if self._max_seconds else 0)
        if not self.finished and 0 < done < 1:
            taken += f", about {duration(elapsed / done - elapsed)} left"
        self._display.epoch(row | {"time": taken}, f"{line}  {taken}")

    @staticmethod
    def _total(trainer: pl.Trainer) -> int:
        return cast(SOTRModule, trainer.lightning_module).total_iterations

    def _name(self, trainer: pl.Trainer, epoch: int) -> str:
        # With a time budget nobody knows how many epochs there will be.
        return f"{epoch + 1}" if self._max_seconds else f"{epoch + 1}/{trainer.max_epochs}"

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        asked = self._interrupts.number is not None and not self.finished
        if trainer.strategy.reduce_boolean_decision(asked, all=False):
            raise Stop


def _batch_size(trainer: pl.Trainer) -> int:
    """Images per step of all processes."""
    loader = trainer.train_dataloader
    assert loader is not None
    return int(loader.batch_size) * trainer.world_size


def _log(trainer: pl.Trainer, row: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(row, step=trainer.global_step)
