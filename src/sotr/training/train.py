"""`sotr train`: from a data folder to a model folder."""

import json
import logging
import math
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console

from sotr.config import SOTRConfig
from sotr.data.batches import EpochSampler, train_loader
from sotr.data.check import verify
from sotr.data.coco import CocoDataset, find_data
from sotr.decoding import DecodeOptions
from sotr.errors import SOTRError
from sotr.evaluation.coco import Metrics, coco_metrics
from sotr.evaluation.evaluate import detect
from sotr.evaluation.tables import class_table
from sotr.files import atomic_write
from sotr.model import Segmenter, choose_device
from sotr.network import SOTR
from sotr.training import settings
from sotr.training.callbacks import (
    AveragedWeights,
    CheckpointFiles,
    RunKeeper,
    load_checkpoint,
)
from sotr.training.display import Display, Interrupts, Stop
from sotr.training.module import SOTRModule
from sotr.training.recipe import Recipe
from sotr.training.report import draw_curves, draw_validation, model_card, read_log


class TrainingInterrupted(KeyboardInterrupt):
    """The user stopped the training with a signal; the message says how to go on from the run's `last.ckpt`."""


@dataclass(frozen=True)
class TrainingSummary:
    """Where a finished training left its results."""

    run: Path
    """The run folder."""
    model: Path
    """The model folder, ready for `sotr.load`."""
    metrics: dict[str, Any] | None
    """Metrics of the best validation with its "epoch" (from 1); None without validation pictures."""


def train(
    data: str,
    model: str = "sotr-r50",
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    image_size: int | None = None,
    suggest: bool = True,
    out: str | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str = "auto",
    workers: int = 2,
    max_dets: int = 100,
    train_json: str | None = None,
    val_json: str | None = None,
    images: str | None = None,
    quiet: bool = False,
) -> TrainingSummary:
    """Train a model on COCO-format data; the best weights end up in OUT/model.

    Ctrl-C or SIGTERM saves everything first; with --resume the run continues as if nothing had happened.

    Args:
        data: Folder of the data set, in any of the layouts that `sotr.data.find_data` knows.
        model: What to train: a preset (sotr-r50, sotr-r101, sotr-rt-r50, sotr-nano) with random weights; a model
            folder, whose weights are the start; or a YAML or JSON file of SOTRConfig's settings.
        recipe: How to train: paper, finetune or scratch, or a YAML file of Recipe's settings. Default: finetune for
            a trained model, scratch for random weights.
        epochs: Passes over the training pictures, instead of the recipe's length.
        batch_size: Pictures per step, instead of the recipe's.
        lr: Learning rate, instead of the recipe's.
        image_size: Shortest edge of a picture in pixels, instead of the model's.
        suggest: Let image size, scale ranges, grids and batch size of a preset follow from the data and the memory
            there is; what changes is said, and image_size, batch_size and a recipe of your own win.
        out: Folder of the run; default runs/DATA-MODEL-1, -2 and so on.
        resume: Continue the run in `out`, or without it the newest run of this data. Settings that are not given are
            the run's own.
        seed: Of the random weights, the order of the pictures and their augmentation.
        device: auto, cpu, cuda, cuda:1 or mps.
        workers: Processes that load pictures; 0 loads them in the main process.
        max_dets: Objects per picture that validation and the saved model allow; raise it for crowded pictures.
        train_json: Annotation file to train on, if `data` has another layout.
        val_json: Annotation file to validate on, if `data` has another layout.
        images: Folder of the pictures, if `data` has another layout.
        quiet: Print nothing but errors.

    Raises:
        SOTRError: something in the input cannot be used, or the loss became infinite or not a number.
        TrainingInterrupted: after Ctrl-C or SIGTERM.
    """
    arguments: dict[str, Any] = {
        "model": model,
        "recipe": recipe,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "image_size": image_size,
        "suggest": suggest,
        "seed": seed,
        "max_dets": max_dets,
        "train_json": train_json,
        "val_json": val_json,
        "images": images,
    }
    console = Console(stderr=True, quiet=quiet, soft_wrap=True, highlight=False, markup=False)
    chosen_device = choose_device(device)
    if workers < 0:
        raise SOTRError(f"workers is {workers}; it must be 0 or more")
    if resume:
        folder, run = settings.existing_run(out, data, arguments)
        arguments = run["arguments"]
    else:
        arguments["recipe"] = recipe if recipe is not None else settings.default_recipe(model)
        folder, run = settings.new_folder(out, data, model), {}

    train_data, val_data = find_data(
        data, train_json=arguments["train_json"], val_json=arguments["val_json"], images=arguments["images"]
    )
    if train_data is None or not len(train_data):
        raise SOTRError(f"{data} has no training pictures; name their annotations with --train-json")
    if val_data is not None and not len(val_data):
        val_data = None
    splits = {"train": train_data} if val_data is None else {"train": train_data, "val": val_data}
    verify(splits, console)

    first_weights = None
    if resume:
        settings.check_same_data(folder, run, train_data, val_data)
    else:
        run = settings.new_run(folder, data, arguments, train_data, val_data, chosen_device)
        for reason in run["advice"]:
            console.print(f"suggested by the data, and taken (--no-suggest would not): {reason}")
        first_weights = settings.first_weights(model, train_data, console)
    # A resumed run keeps its precision, whatever "auto" would choose on this machine.
    precision = run["precision"] if resume else _precision(run["recipe"]["precision"], chosen_device)
    run |= settings.surroundings(chosen_device, precision)

    work = _Work(folder, run, train_data, val_data, chosen_device, workers, console)
    try:
        keeper = work.fit(first_weights)
        return work.finish(keeper)
    except OSError as error:
        raise SOTRError(
            f"the run in {folder} cannot go on: {error}; make room or mend the permissions, or name another folder "
            "with --out"
        ) from error


def _precision(wish: str, device: torch.device) -> str:
    if wish != "auto":
        return wish
    in_hardware = False
    if device.type == "cuda":
        in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        in_hardware = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return "bf16-mixed" if in_hardware else "32-true"


@dataclass
class _Work:
    """One run: its folder, settings and data."""

    folder: Path
    run: dict[str, Any]
    train_data: CocoDataset
    val_data: CocoDataset | None
    device: torch.device
    workers: int
    console: Console

    def __post_init__(self) -> None:
        self.config = SOTRConfig.from_dict(self.run["config"])
        self.recipe = Recipe.from_dict(self.run["recipe"])
        self.options = DecodeOptions().with_max_objects(self.run["max_dets"])

    def fit(self, first_weights: Mapping[str, torch.Tensor] | None) -> RunKeeper:
        """Train to the end, from the run's last checkpoint if it has one.

        Raises:
            TrainingInterrupted: a signal asked to stop.
        """
        last = self.folder / "checkpoints" / "last.ckpt"
        before = load_checkpoint(last) if last.is_file() else None
        first_step = 0 if before is None else int(before["global_step"])

        seed = self.run["seed"]
        loader = train_loader(
            self.train_data,
            self.config,
            self.recipe.augmentation,
            batch_size=self.recipe.batch_size,
            mask_stride=self.recipe.loss.mask_stride,
            seed=seed,
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        total = self.recipe.total_iterations(len(loader))
        torch.manual_seed(seed)
        module = SOTRModule(self.config, self.recipe, total, seed)
        if first_weights is not None:
            module.network.load_state_dict(first_weights, strict=False)  # all, or all but the class head

        display, interrupts = Display(self.console), Interrupts(self.console)
        average = AveragedWeights(self.recipe.ema_decay) if self.recipe.ema_decay else None
        validate = None
        if self.val_data is not None:
            validate = _Validation(self.val_data, self.options, self.workers, interrupts)
        assert isinstance(loader.sampler, EpochSampler)
        log_every = max(1, min(20, len(loader) // 4))
        keeper = RunKeeper(
            self.folder, loader.sampler, display, interrupts, validate, average, self.draw_curves, log_every
        )

        settings.write_run(self.folder, self.run)
        self._say(module, len(loader), first_step)
        if before is not None and before["callbacks"].get(keeper.state_key, {}).get("finished"):
            keeper.load_state_dict(before["callbacks"][keeper.state_key])
            return keeper
        del before

        with _quiet_lightning(), interrupts, display:
            trainer = pl.Trainer(
                accelerator="gpu" if self.device.type == "cuda" else self.device.type,
                devices=[self.device.index or 0] if self.device.type == "cuda" else 1,
                precision=self.run["precision"],
                max_epochs=math.ceil(total / len(loader)),
                gradient_clip_val=self.recipe.clip_norm or None,
                callbacks=[keeper] if average is None else [average, keeper],
                logger=[
                    CSVLogger(self.folder / "logs", name="csv"),
                    TensorBoardLogger(
                        self.folder / "logs",
                        name="tensorboard",
                        version="",
                        purge_step=first_step + 1 if first_step else None,
                    ),
                ],
                plugins=[CheckpointFiles()],
                log_every_n_steps=1,  # of Lightning's own log, which is not used
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                default_root_dir=self.folder,
            )
            try:
                trainer.fit(module, loader, ckpt_path=last if first_step else None, weights_only=True)
                if keeper.owes_validation:  # of a last epoch, after which there was nothing left to fit
                    keeper.catch_up(trainer, module.to(self.device))
            except torch.OutOfMemoryError as error:
                raise SOTRError(
                    f"{self.device} has not enough memory ({str(error).split('. ')[0]}); "
                    "lower --batch-size or --image-size"
                ) from None
            except Stop:
                again = shlex.join(["sotr", "train", self.run["data"]["folder"], "--out", str(self.folder), "--resume"])
                raise TrainingInterrupted(
                    f"interrupted after step {trainer.global_step} of {total}; to continue: {again}"
                ) from None
        return keeper

    def _say(self, module: SOTRModule, per_epoch: int, first_step: int) -> None:
        millions = sum(parameter.numel() for parameter in module.network.parameters()) / 1e6
        data, names = self.run["data"], self.run["arguments"]
        self.console.print(
            f"{self.folder}: {names['model']}, {millions:.1f}M parameters, {self.run['weights']}; "
            f"recipe {names['recipe']}, {module.total_iterations} steps of {self.recipe.batch_size} pictures, "
            f"{per_epoch} per epoch; {data['train_pictures']} pictures with {data['train_objects']} objects to train "
            f"on, {data['val_pictures']} to validate; {self.run['device']}, {self.run['precision']}"
            + (f"; resuming after step {first_step}" if first_step else "")
        )

    def draw_curves(self) -> None:
        """Write curves.png from the logs so far."""
        draw_curves(read_log(self.folder / "logs" / "csv"), self.folder / "curves.png")

    def finish(self, keeper: RunKeeper) -> TrainingSummary:
        """Write the model folder, the metrics, the pictures; print the table."""
        best = keeper.best_path if keeper.best_path.is_file() else keeper.last_path
        network = SOTR(self.config)
        weights = load_checkpoint(best)["state_dict"]
        network.load_state_dict({name.removeprefix("network."): value for name, value in weights.items()})
        segmenter = Segmenter(
            network,
            self.train_data.class_names,
            self.train_data.category_ids,
            self.options,
            self.run["name"],
            self.device,
            model_card(self.run, keeper.best, keeper.seconds, keeper.epochs),
        )
        segmenter.save(self.folder / "model")
        if self.val_data is None:
            self.draw_curves()  # otherwise each validation has
        elif keeper.best is not None:
            with atomic_write(self.folder / "metrics.json", "w") as file:
                json.dump(keeper.best, file, indent=2, ensure_ascii=False)
            draw_validation(segmenter, self.val_data, self.folder / "validation")
            self.console.print(class_table(keeper.best, f"validation after epoch {keeper.best['epoch']}"))
        self.console.print(f"the model is in {self.folder / 'model'}; curves and pictures are in {self.folder}")
        return TrainingSummary(self.folder, self.folder / "model", keeper.best)


class _Validation:
    """COCO mask AP of a module on the validation pictures, measured as `sotr evaluate` does."""

    def __init__(self, data: CocoDataset, options: DecodeOptions, workers: int, interrupts: Interrupts) -> None:
        self._data, self._options, self._workers, self._interrupts = data, options, workers, interrupts
        self._truth = data.truth()

    def __call__(self, module: SOTRModule, display: Display) -> Metrics:
        """Measure the weights that the module has now.

        Raises:
            Stop: a signal asked to.
        """

        def on_pictures(count: int) -> None:
            display.advance(count)
            if self._interrupts.number is not None:
                raise Stop

        data, limit = self._data, self._options.max_objects
        segmenter = Segmenter(module.network, data.class_names, data.category_ids, self._options, device=module.device)
        display.begin("validation", len(data))
        results = detect(
            segmenter, data, data.category_ids, max_dets=limit, workers=self._workers, on_pictures=on_pictures
        )
        return coco_metrics(self._truth, results, max_dets=limit)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's remarks on devices, workers, tips and what it restores; its errors remain exceptions."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for remark in _REMARKS:
                warnings.filterwarnings("ignore", message=remark)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_REMARKS = (
    r".*does not have many workers",
    r".*available but not used",
    r".*ended before the epoch ended and your dataloader is not resumable",  # it is: RunKeeper moves the sampler
    r".*module\(s\) in eval mode at the start of training",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
)
