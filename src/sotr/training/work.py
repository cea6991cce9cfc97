"""The work of one run: fitting, validating, finishing."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from safetensors import SafetensorError
from torch.utils.data import DataLoader

from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.data.batches import WORKER_DIED, Batch, domain_of, lost_worker, train_loader
from sotr.data.coco import CocoDataset
from sotr.data.sampling import EpochSampler
from sotr.decoding import DecodeOptions
from sotr.errors import SOTRError
from sotr.evaluation.decoding_choice import MOST_IMAGES, choose_decoding
from sotr.evaluation.tables import class_table
from sotr.files import atomic_write
from sotr.model.segmenter import Segmenter
from sotr.training import settings
from sotr.training.averaging import AveragedWeights
from sotr.training.callbacks import RunKeeper
from sotr.training.checkpoints import (
    CheckpointFiles,
    has_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    remove_leftovers,
)
from sotr.training.devices import Devices
from sotr.training.display import Display, Interrupts, Stop, duration, quiet_lightning
from sotr.training.html_report import write_report
from sotr.training.loggers import check_logger, make_loggers
from sotr.training.module import LossNotFinite, SOTRModule
from sotr.training.recipe import Recipe
from sotr.training.replay import keep_step
from sotr.training.report import draw_curves, draw_validation, model_card, read_log
from sotr.training.validation import Validation, measured
from sotr.training.verdict import verdict

FAILED_STEP = "failed-step"
"""Folder in the run folder that holds a step whose loss was not finite."""


class TrainingInterrupted(KeyboardInterrupt):
    """The training was stopped by a signal; the message says how to go on from the run's `last.ckpt`.

    Attributes:
        exit_code: what the process should exit with: 0 after SIGTERM, the way in which schedulers end a job that is
            meant to be continued; 130 after Ctrl-C.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class TrainingSummary:
    """Where a finished training left its results."""

    run: Path
    """The run folder."""
    model: Path
    """The model folder, ready for `sotr.load`."""
    metrics: dict[str, Any] | None
    """Metrics of the best validation with its "epoch" (from 1); None without validation images."""


@dataclass
class Work:
    """One run: its folder, settings and data."""

    folder: Path
    run: dict[str, Any]
    train_data: CocoDataset
    val_data: CocoDataset | None
    devices: Devices
    workers: int
    compile: bool
    logger: str | None
    console: Console

    def __post_init__(self) -> None:
        self.config = SOTRConfig.from_dict(self.run["config"])
        self.recipe = Recipe.from_dict(self.run["recipe"])
        self.options = DecodeOptions().with_max_objects(self.run["max_dets"])
        self.devices.check(self.recipe)
        check_logger(self.logger)

    def fit(self, first_weights: Mapping[str, torch.Tensor] | None) -> RunKeeper:
        """Train to the end, from the run's newest checkpoint if it has one.

        Raises:
            TrainingInterrupted: a signal asked to stop.
        """
        if self.devices.main:
            remove_leftovers(self.folder)
        newest = newest_checkpoint(self.folder, self.console.print)
        first_step = 0 if newest is None else int(newest[1]["global_step"])

        loader = self._loader()
        total = self.recipe.total_iterations(len(loader))
        torch.manual_seed(self.run["seed"])
        module = SOTRModule(self.config, self.recipe, total, self.run["seed"], self.compile)
        if first_weights is not None:
            module.network.load_state_dict(first_weights, strict=False)  # all, or all but the class head

        display, interrupts = Display(self.console), Interrupts(self.console)
        average = AveragedWeights(self.recipe.ema_decay) if self.recipe.ema_decay else None
        validate = None
        if self.val_data is not None:
            validate = Validation(self.val_data, self.options, self.workers, interrupts)
        assert isinstance(loader.sampler, EpochSampler)
        log_every = max(1, min(20, len(loader) // 4))
        keeper = RunKeeper(
            self.folder,
            loader.sampler,
            display,
            interrupts,
            validate,
            average,
            self.draw_curves if self.devices.main else _nothing,
            log_every,
            self.run["max_seconds"],
        )

        if self.devices.main:
            settings.write_run(self.folder, self.run)
        self._say(module, len(loader), first_step)
        if newest is not None and newest[1]["callbacks"].get(keeper.state_key, {}).get("finished"):
            keeper.load_state_dict(newest[1]["callbacks"][keeper.state_key])
            self.console.print(
                f"this run was finished after {duration(keeper.seconds)}; now only its model folder and report are "
                f"written again; to train longer, start a new run: sotr train DATA --model {self.folder}"
            )
            return keeper
        resume_from = None if newest is None else newest[0]
        del newest

        with quiet_lightning(), interrupts, display:
            callbacks: list[pl.Callback] = [keeper] if average is None else [average, keeper]
            trainer = self._trainer(callbacks, math.ceil(total / len(loader)), first_step)
            try:
                try:
                    trainer.fit(module, loader, ckpt_path=resume_from, weights_only=True)
                except Exception as error:
                    raise (keeper.failure or error) from None
                if keeper.owes_validation:  # of a last epoch, after which there was nothing left to fit
                    keeper.catch_up(trainer, module.to(self.devices.device))
            except torch.OutOfMemoryError as error:
                raise SOTRError(
                    f"{self.devices.device} has not enough memory ({str(error).split('. ')[0]}); "
                    "lower --batch-size or --image-size"
                ) from None
            except LossNotFinite as failure:
                raise self._failed(module, failure) from None
            except WORKER_DIED as error:
                raise (lost_worker(loader, error) or error) from None
            except Stop:
                raise self._interrupted(trainer.global_step, total, interrupts) from None
        return keeper

    def _loader(self) -> DataLoader[Batch]:
        """Batches of this process."""
        return train_loader(
            self.train_data,
            self.config,
            self.recipe.augmentation,
            batch_size=self.recipe.batch_size,
            mask_stride=self.recipe.loss.mask_stride,
            seed=self.run["seed"],
            workers=self.workers,
            pin_memory=self.devices.device.type == "cuda",
            rank=self.devices.rank,
            ranks=self.devices.total,
            repeat_below=self.recipe.repeat_below,
        )

    def _trainer(self, callbacks: list[pl.Callback], epochs: int, first_step: int) -> pl.Trainer:
        """Lightning's trainer, without what this run does itself."""
        return pl.Trainer(
            **self.devices.trainer_arguments(),
            precision=self.run["precision"],
            sync_batchnorm=self.recipe.batch_norm == "sync" and self.devices.total > 1,
            max_epochs=epochs,
            gradient_clip_val=self.recipe.clip_norm or None,
            callbacks=callbacks,
            logger=make_loggers(self.folder, self.run, self.logger, first_step, self.console.print),
            plugins=[CheckpointFiles()],
            log_every_n_steps=1,  # of Lightning's own log, which is not used
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=self.folder,
        )

    def _failed(self, module: SOTRModule, failure: LossNotFinite) -> SOTRError:
        folder = self.folder / (FAILED_STEP if module.global_rank == 0 else f"{FAILED_STEP}-{module.global_rank}")
        where = "to see where it begins: " + shlex.join(["sotr", "train", "--replay", str(folder)])
        try:
            keep_step(folder, module, failure, self.run["precision"])
        except (OSError, SafetensorError) as error:  # the latter hides a full disk
            where = f"the step could not be kept in {folder} ({error})"
        remedy = "check these images and their annotations, or lower the learning rate"
        if not module.has_finite_weights():  # a gradient that was not looked at; see `on_before_optimizer_step`
            remedy = "the weights were not finite before it; lower the learning rate, or train in 32-true"
        return SOTRError(
            f"{failure} in step {module.global_step + 1} with {', '.join(failure.batch.file_names)}; {remedy}; {where}"
        )

    def _interrupted(self, step: int, total: int, interrupts: Interrupts) -> TrainingInterrupted:
        exit_code = 0 if interrupts.terminated else 130
        if not has_checkpoint(self.folder):
            begin = f"to begin again: {self.run['command']}"
            return TrainingInterrupted(f"interrupted before anything was saved; {begin}", exit_code)
        again = shlex.join(["sotr", "train", self.run["data"]["folder"], "--out", str(self.folder), "--resume"])
        finish = again.removesuffix("--resume") + "--finish"
        return TrainingInterrupted(
            f"interrupted after step {step} of {total}; to continue: {again}; for a model of what there is: {finish}",
            exit_code,
        )

    def _say(self, module: SOTRModule, per_epoch: int, first_step: int) -> None:
        millions = sum(parameter.numel() for parameter in module.network.parameters()) / 1e6
        data, names = self.run["data"], self.run["arguments"]
        self.console.print(
            f"{self.folder}: {names['model']}, {millions:.1f}M parameters, {self.run['weights']}; "
            f"recipe {names['recipe']}, {module.total_iterations} steps of {self.recipe.batch_size} images, "
            f"{per_epoch} per epoch; {data['train_pictures']} images with {data['train_objects']} objects to train "
            f"on, {data['val_pictures']} to validate; {self.run['device']}, {self.run['precision']}"
            + (f"; resuming after step {first_step}" if first_step else "")
        )

    def draw_curves(self) -> None:
        """Write curves.png from the logs so far."""
        draw_curves(read_log(self.folder / "logs" / "csv"), self.folder / "curves.png")

    def keeper_of_checkpoint(self) -> RunKeeper:
        """What the newest checkpoint of an unfinished run knows, for `finish`.

        Raises:
            SOTRError: there is no checkpoint that can be read.
        """
        newest = newest_checkpoint(self.folder, self.console.print)
        assert newest is not None  # `existing_run` has looked
        keeper = RunKeeper(
            self.folder,
            EpochSampler(len(self.train_data)),
            Display(self.console),
            Interrupts(self.console),
            None,
            None,
            _nothing,
            1,
            0.0,
        )
        keeper.load_state_dict(newest[1]["callbacks"][keeper.state_key])
        return keeper

    def finish(self, keeper: RunKeeper) -> TrainingSummary:
        """Write the model folder, the metrics, the images; print the table."""
        summary = TrainingSummary(self.folder, self.folder / "model", keeper.best)
        if not self.devices.main:
            return summary
        network = build_network(self.config)
        weights = self._best_weights(keeper)
        network.load_state_dict({name.removeprefix("network."): value for name, value in weights.items()})
        segmenter = Segmenter(
            network,
            self.train_data.class_names,
            self.train_data.category_ids,
            self.options,
            self.run["name"],
            self.devices.device,
            model_card(self.run, keeper.best, keeper.seconds, keeper.epochs),
            domain=domain_of(self.train_data, self.config),
        )
        if self.recipe.choose_decoding and keeper.best is not None:
            self._choose_decoding(segmenter, keeper.best)
        operating_score = None if keeper.best is None else keeper.best.get("operating_score")
        if operating_score is not None:
            segmenter.decode_options = replace(segmenter.decode_options, operating_score=operating_score)
        segmenter.save(self.folder / "model")
        self.draw_curves()
        if self.val_data is not None and keeper.best is not None:
            with atomic_write(self.folder / "metrics.json", "w") as file:
                json.dump(keeper.best, file, indent=2, ensure_ascii=False)
            draw_validation(segmenter, self.val_data, self.folder / "validation")
            self.console.print(class_table(keeper.best, f"validation after epoch {keeper.best['epoch']}"))
            if operating_score is not None:
                self.console.print(
                    f"default score of the model: {operating_score}, with the best F1 on these images "
                    f"({keeper.best['f1']:.3f})"
                )
        rows = read_log(self.folder / "logs" / "csv")
        steps = max((int(row["step"]) for row in rows), default=0)
        lines = verdict(keeper.best, self.run, self.train_data, steps)
        self._write_report(segmenter, keeper, rows, lines)
        for line in lines:
            self.console.print(line)
        self.console.print(
            f"the model is in {self.folder / 'model'}; curves, images and report.html are in {self.folder}"
        )
        return summary

    def _choose_decoding(self, segmenter: Segmenter, best: dict[str, Any]) -> None:
        """Give the model the decoding that suits the training images, and `best` the metrics with it."""
        with Display(self.console) as display:
            display.begin("decoding", min(MOST_IMAGES, len(self.train_data)))
            choice = choose_decoding(segmenter, self.train_data, display.advance)
            tried = ", ".join(f"{change} {ap:.3f}" for change, ap in choice.ap_of.items() if change)
            said = (
                f"decoding: {choice.change or 'as it was'}; AP on training images {choice.ap_of['']:.3f}, with {tried}"
            )
            self.console.print(said)
            if choice.change:
                segmenter.decode_options = choice.options
                assert self.val_data is not None
                display.begin("validation", len(self.val_data))
                best |= measured(segmenter, self.val_data, self.options.max_objects, self.workers, display.advance)

    def _write_report(
        self, segmenter: Segmenter, keeper: RunKeeper, rows: Sequence[Mapping[str, float]], lines: Sequence[str]
    ) -> None:
        with Display(self.console) as display:
            display.begin("report", self.run["data"]["val_pictures"])
            write_report(
                self.folder / "report.html",
                segmenter,
                self.val_data,
                self.run,
                keeper.best,
                rows,
                keeper.seconds,
                lines,
                workers=self.workers,
                on_pictures=display.advance,
            )

    def _best_weights(self, keeper: RunKeeper) -> Mapping[str, torch.Tensor]:
        """Those of the best validation, or the newest if there was none."""
        if keeper.best is not None:
            try:
                best: Mapping[str, torch.Tensor] = load_checkpoint(keeper.best_path)["state_dict"]
                return best
            except SOTRError as error:
                self.console.print(f"{error}; the model gets the newest weights instead")
        newest = newest_checkpoint(self.folder, self.console.print)
        assert newest is not None
        weights: Mapping[str, torch.Tensor] = newest[1]["state_dict"]
        return weights


def _nothing() -> None:
    """Draw no curves: only the first process draws them."""
