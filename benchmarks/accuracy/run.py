"""Train the competitors one after another for the same processor time, and measure all with one evaluator."""

import json
import math
import os
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.competitors import BACKBONE, COMPETITORS, Competitor
from benchmarks.accuracy.errors import errors_of
from sotr.config import SOTRConfig
from sotr.curation.advice import mirroring
from sotr.data.batches import train_loader
from sotr.data.coco import CocoDataset, find_data
from sotr.data.sampling import EpochSampler
from sotr.errors import SOTRError
from sotr.evaluation.coco import coco_metrics
from sotr.training.module import attention_for, seed_step
from sotr.training.recipe import Recipe
from sotr.training.settings import seconds_of

LONG = 1_000_000
"""Steps that no budget reaches: the schedule follows the processor time alone."""


@dataclass(frozen=True)
class Row:
    """A competitor after a budget."""

    competitor: str
    lr: float
    seed: int
    budget_s: float
    """Processor seconds (user and system) of training; measuring is not in it."""
    steps: int
    parameters: int
    AP: float
    AP50: float
    AP75: float
    AP_S: float | None
    AP_M: float | None
    AP_L: float | None
    found: float
    """Share of the true objects that some detection covers with IoU 0.5, of whatever class."""
    named: float
    """Of those, the share whose best such detection has the right class."""
    found_small: float | None
    """`found` of the objects below 32 x 32 pixels."""
    infer_s: float
    """Processor seconds per image of finding objects, files included."""


def accuracy(
    data: str,
    budget: str = "10m",
    competitors: Sequence[str] = ("sotr", "mask-rcnn"),
    recipe: str = "pretrained",
    backbone_weights: str | None = None,
    image_size: int = 256,
    lr: Sequence[float] = (),
    seeds: Sequence[int] = (0,),
    max_dets: int = 100,
    train_json: str | None = None,
    val_json: str | None = None,
    images: str | None = None,
    out: str = "accuracy.jsonl",
) -> list[Row]:
    """Compare models that were trained for the same processor time, on one thread.

    All have the same backbone and first weights, batches, augmentation, optimizer, moving average and cosine schedule,
    which ends when the budget is used up. Each row is printed, and added to a file.

    Args:
        data: folder of the data set.
        budget: processor time of each training, such as 90s, 10m or 1h.
        competitors: sotr and mask-rcnn.
        recipe: a recipe's name or file: its augmentation, batch size, decay and average hold for all.
        backbone_weights: file of the backbone's first weights; without one they are random.
        image_size: shortest edge in pixels.
        lr: learning rates to try; default each competitor's own.
        seeds: one training each.
        max_dets: objects per image that are counted.
        train_json: annotation file to train on, if not the folder's own: to choose settings, a part of it.
        val_json: annotation file to measure on, likewise.
        images: folder of the images, if not the data set's own.
        out: file that gets a JSON line per row.

    Raises:
        SOTRError: there is nothing to train or to measure on, or no such competitor.
    """
    torch.set_num_threads(1)
    if unknown := set(competitors) - COMPETITORS.keys():
        raise SOTRError(f"there is no competitor {unknown.pop()!r}; choose among {', '.join(COMPETITORS)}")
    train_data, val_data = find_data(data, train_json=train_json, val_json=val_json, images=images)
    if train_data is None or val_data is None:
        raise SOTRError(f"{data} has no training or no validation images")
    settings = _recipe(recipe, train_data)
    config = replace(
        SOTRConfig.preset("sotr-nano", len(train_data.class_names)),
        backbone=BACKBONE,
        image_size=image_size,
        max_image_size=round(image_size * 5 / 3),
    )
    rows = []
    for seed in seeds:
        for name in competitors:
            for rate in lr or (None,):
                competitor = COMPETITORS[name](train_data, config, settings, backbone_weights, seed)
                rate = competitor.lr if rate is None else rate
                steps = fit(competitor, train_data, config, settings, rate, seconds_of(budget), seed)
                rows.append(_row(name, competitor, val_data, max_dets, (rate, seed, seconds_of(budget), steps)))
                print(json.dumps(asdict(rows[-1])), flush=True)
                with Path(out).open("a") as file:
                    file.write(json.dumps(asdict(rows[-1])) + os.linesep)
    return rows


def _recipe(name: str, data: CocoDataset) -> Recipe:
    recipe = Recipe.load(name)
    if mirroring(data.class_names):
        recipe = replace(recipe, augmentation=replace(recipe.augmentation, horizontal_flip=False, vertical_flip=False))
    return recipe


def processor_seconds() -> float:
    """User and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def fit(
    competitor: Competitor,
    data: CocoDataset,
    config: SOTRConfig,
    recipe: Recipe,
    lr: float,
    budget: float,
    seed: int,
    most_steps: int = LONG,
) -> int:
    """Train until the budget is used up, with all that is spent on data in it; returns the number of steps.

    The network ends with the moving average of its weights.
    """
    network = competitor.network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(competitor.groups(lr), betas=(recipe.momentum, 0.999))
    rates = [group["lr"] for group in optimizer.param_groups]
    learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    average = _Average(network, recipe.ema_decay)
    loader = train_loader(
        data, config, recipe.augmentation, batch_size=recipe.batch_size, mask_stride=competitor.mask_stride, seed=seed
    )
    assert isinstance(loader.sampler, EpochSampler)
    step, epoch, started = 0, 0, processor_seconds()
    while True:
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            used = max((processor_seconds() - started) / budget, step / most_steps)
            if used >= 1:
                average.into(network)
                return step
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * schedule(used)
            seed_step(seed, step, 0)
            with torch.autocast("cpu", torch.bfloat16), attention_for(torch.device("cpu")):
                loss = competitor.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            if competitor.clip_norm:
                nn.utils.clip_grad_norm_(learned, competitor.clip_norm)
            optimizer.step()
            step += 1
            average.update(step)
        epoch += 1


def schedule(used: float, warmup: float = 0.1) -> float:
    """The rate after a share of the budget, as a multiple of the highest: a linear rise, then a cosine to 1 %."""
    if used < warmup:
        return 0.01 + 0.99 * used / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (used - warmup) / (1 - warmup)))


class _Average:
    """The moving average of a network's floating-point weights and buffers."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self._current = [value for value in network.state_dict().values() if value.is_floating_point()]
        self._mean: list[Tensor] = [value.clone() for value in self._current]

    def update(self, step: int) -> None:
        torch._foreach_lerp_(self._mean, self._current, 1 - min(self._decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def into(self, network: nn.Module) -> None:
        torch._foreach_copy_(self._current, self._mean)


def _row(
    name: str, competitor: Competitor, data: CocoDataset, max_dets: int, how: tuple[float, int, float, int]
) -> Row:
    lr, seed, budget, steps = how
    started = processor_seconds()
    results = competitor.results(data, max_dets)
    seconds = (processor_seconds() - started) / len(data)
    metrics = coco_metrics(data.truth(), results, max_dets=max_dets).to_dict()
    errors: dict[str, Any] = asdict(errors_of(data.truth(), results))
    return Row(
        competitor=name,
        lr=lr,
        seed=seed,
        budget_s=budget,
        steps=steps,
        parameters=sum(parameter.numel() for parameter in competitor.network.parameters()),
        infer_s=seconds,
        **{key: metrics[key] for key in ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")},
        **errors,
    )
