"""Train the competitors one after another for the same processor time, and measure all with one evaluator."""

import inspect
import json
import math
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.competitors import Competitor, Entry, entries
from benchmarks.accuracy.errors import errors_of
from benchmarks.accuracy.report import write_report
from benchmarks.accuracy.study import Plan, Point, Row, Study, Trained, held_out, thinned
from benchmarks.accuracy.tide import gains
from benchmarks.accuracy.training import Stopped, Training, processor_seconds
from benchmarks.accuracy.yolo import train_yolo
from sotr.curation.advice import mirroring
from sotr.data.coco import CocoDataset, find_data
from sotr.errors import SOTRError
from sotr.evaluation.coco import coco_metrics
from sotr.files import claimed
from sotr.training.recipe import Recipe
from sotr.training.settings import seconds_of

FACTORS = (0.5, 1.0, 2.0)
"""Multiples of a competitor's own learning rate that a search tries."""


def accuracy(
    data: str,
    out: str = "accuracy",
    budget: str = "10m",
    competitors: Sequence[str] = ("sotr", "mask-rcnn"),
    recipe: str = "pretrained",
    backbone_weights: str | None = None,
    image_size: int = 256,
    lr: str | None = None,
    search: str | None = None,
    seeds: Sequence[int] = (0,),
    max_dets: int = 100,
    train_json: str | None = None,
    val_json: str | None = None,
    images: str | None = None,
    yolo_python: str | None = None,
) -> list[Row]:
    """Compare models that were trained for the same processor time, on one thread.

    All have the same backbone and first weights, batches, augmentation, optimizer, moving average and cosine schedule,
    which ends when the budget is used up; YOLO departs from this as its report says. A row that the folder holds is
    not trained again. A training that was interrupted goes on from its checkpoint, which is written about every two
    minutes: give the same command again.

    Args:
        data: folder of the data set.
        out: folder of the rows, COCO results, checkpoints, report.md, report.json, curves.png, errors.png and
            overlays.png. Rows of several commands may share it.
        budget: processor time of each training, such as 90s, 10m or 1h; several are joined by commas.
        competitors: sotr, mask-rcnn, yolo11n, yolo26n, and architectures as FILE.yaml or NAME=FILE.yaml, whose backbone
            is the common one if the file names none.
        recipe: a recipe's name or file: its augmentation, batch size, decay and average hold for all.
        backbone_weights: file of the backbone's first weights; without one they are random.
        image_size: shortest edge in pixels.
        lr: learning rates as NAME=RATE, joined by commas; a rate alone holds for all, and several are all trained
            with. By default each competitor's own, or the best of the search.
        search: budget of each training of a search: half, one and double of each competitor's own rate are tried on
            four fifths of the training images and measured on the rest, never on the validation images.
        seeds: one training each.
        max_dets: objects per image that are counted.
        train_json: annotation file to train on, if not the folder's own.
        val_json: annotation file to measure on, likewise.
        images: folder of the images, if not the data set's own.
        yolo_python: Python of an environment with ultralytics, for yolo11n and yolo26n.

    Raises:
        SOTRError: there is nothing to train or to measure on, no such competitor, or the folder's rows were made with
            other settings.
    """
    command = _command(locals())
    torch.set_num_threads(1)
    entries(competitors, ["object"], image_size, Recipe.load(recipe))  # names are checked before the data are read
    train_data, val_data = find_data(data, train_json=train_json, val_json=val_json, images=images)
    if train_data is None or val_data is None:
        raise SOTRError(f"{data} has no training or no validation images")
    settings = _recipe(recipe, train_data)
    entered = entries(competitors, train_data.class_names, image_size, settings)
    if yolo_python is None and (outside := [entry.name for entry in entered if entry.build is None]):
        raise SOTRError(f"{outside[0]} needs --yolo-python, the Python of an environment with ultralytics")
    study = Study(Path(out), train_data, val_data, settings, image_size, max_dets, backbone_weights, yolo_python)
    budgets = [seconds_of(word) for word in budget.split(",")]
    rates = _rates(lr, entered)
    rows: list[Row] = []
    with claimed(study.folder), _told_to_stop() as stopped:
        study.settle({entry.name: entry.config for entry in entered}, command)
        try:
            if search is not None:
                rates = _searched(study, entered, seconds_of(search), seeds[0], command, stopped) | rates
            for seconds, seed, entry in product(budgets, seeds, entered):
                for rate in rates.get(entry.name, [entry.lr]):
                    rows.append(row_of(study, entry, Plan(entry.name, seconds, rate, seed), stopped))
                    print(json.dumps(rows[-1].summary()), flush=True)
        except Stopped:
            print("stopped; the same command goes on from here", file=sys.stderr)
            return rows
        for path in write_report(study):
            print(f"wrote {path}", file=sys.stderr)
    return rows


def row_of(study: Study, entry: Entry, plan: Plan, stopped: Callable[[], bool] = lambda: False) -> Row:
    """The row of a training, from the folder if it holds it.

    Raises:
        Stopped: it was told to stop; what was trained so far is kept.
    """
    if (row := study.row(plan)) is not None:
        return row
    print(f"training {plan.key}", file=sys.stderr)
    trained = train_yolo(study, entry, plan, stopped) if entry.build is None else _train(study, entry, plan, stopped)
    truth, progress = study.val.truth(), trained.progress
    metrics = coco_metrics(truth, trained.results, max_dets=study.max_dets).to_dict()
    shares: dict[str, Any] = asdict(errors_of(truth, trained.results))
    end = Point(progress.used_s, progress.step, metrics["AP"] or 0.0, metrics["AP50"] or 0.0)
    row = Row(
        competitor=plan.competitor,
        lr=plan.lr,
        seed=plan.seed,
        budget_s=plan.budget_s,
        steps=progress.step,
        skipped=progress.skipped,
        wall_s=progress.wall_s,
        parameters=trained.parameters,
        infer_s=trained.infer_s,
        **{key: metrics[key] for key in ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")},
        **shares,
        errors=gains(truth, trained.results, study.max_dets),
        curve=[*progress.curve, asdict(end)],
        losses=thinned(progress.losses),
    )
    study.keep(row, trained.results)
    _remove(study.checkpoint(plan))
    return row


def _train(study: Study, entry: Entry, plan: Plan, stopped: Callable[[], bool]) -> Trained:
    """A training in this process."""
    assert entry.build is not None
    competitor: Competitor = entry.build(study.train, entry.config, study.recipe, study.weights, plan.seed)

    def measure() -> tuple[float, float]:
        found = coco_metrics(study.val.truth(), competitor.results(study.val, study.max_dets), max_dets=study.max_dets)
        return found.AP or 0.0, found.AP50 or 0.0

    training = Training(competitor, study.train, entry.config, study.recipe, plan, study.checkpoint(plan))
    progress = training.run(measure, stopped)
    started = processor_seconds()
    results = competitor.results(study.val, study.max_dets)
    seconds = (processor_seconds() - started) / len(study.val)
    return Trained(progress, sum(p.numel() for p in competitor.network.parameters()), results, seconds)


def _searched(
    study: Study, entered: Sequence[Entry], seconds: float, seed: int, command: str, stopped: Callable[[], bool]
) -> dict[str, list[float]]:
    """The best learning rate of each competitor; the rows of all that were tried are in the folder `search`."""
    tried = held_out(study)
    tried.settle({entry.name: entry.config for entry in entered}, command)
    best = {}
    for entry in entered:
        plans = [Plan(entry.name, seconds, entry.lr * factor, seed) for factor in FACTORS]
        rows = [row_of(tried, entry, plan, stopped) for plan in plans]
        best[entry.name] = [max(rows, key=lambda row: row.AP or 0.0).lr]
    return best


def _rates(words: str | None, entered: Sequence[Entry]) -> dict[str, list[float]]:
    """Rates by competitor, of those that the words name."""
    rates: dict[str, list[float]] = {}
    names = [entry.name for entry in entered]
    for word in words.split(",") if words else ():
        name, _, number = word.rpartition("=")
        try:
            rate = float(number)
        except ValueError:
            rate = 0.0
        if not 0 < rate < math.inf:
            raise SOTRError(f"lr has {word!r}; give a positive rate, or NAME=RATE")
        if name and name not in names:
            raise SOTRError(f"lr has {word!r}, but the competitors are {', '.join(names)}")
        for each in [name] if name else names:
            rates.setdefault(each, []).append(rate)
    return rates


def _recipe(name: str, data: CocoDataset) -> Recipe:
    recipe = Recipe.load(name)
    if mirroring(data.class_names):
        recipe = replace(recipe, augmentation=replace(recipe.augmentation, horizontal_flip=False, vertical_flip=False))
    return recipe


def _remove(checkpoint: Path) -> None:
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint, ignore_errors=True)
    checkpoint.unlink(missing_ok=True)


@contextmanager
def _told_to_stop() -> Iterator[Callable[[], bool]]:
    """In the block SIGTERM and Ctrl-C end no process but make the function return True."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told.is_set
        return
    before = {name: signal.signal(name, lambda *_: told.set()) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told.is_set
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _command(arguments: Mapping[str, Any]) -> str:
    """The command line that these arguments come from."""
    words = ["python", "-m", "benchmarks", "accuracy", str(arguments["data"])]
    for name, parameter in list(inspect.signature(accuracy).parameters.items())[1:]:
        value = arguments[name]
        if value != parameter.default:
            text = value if isinstance(value, str | int) else f"[{','.join(map(str, value))}]"
            words += [f"--{name.replace('_', '-')}", str(text)]
    return shlex.join(words)
