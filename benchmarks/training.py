"""A training step: ours against Mask R-CNN's, with few and with many objects."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from benchmarks import synthetic
from benchmarks.measure import Parts, Stopwatch, alternate, device_peak, peak_memory
from benchmarks.on_card import costs
from benchmarks.report import Row, timed
from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.data.batches import Batch, Sample, collate
from sotr.data.transforms import Augmentation, augment
from sotr.info import count_components
from sotr.learning import LossOptions, sotr_losses
from sotr.training.module import attention_for

WHAT = (
    "One step of training, weights random and all trained, with AdamW. Data: augmentation (flip, "
    "large-scale jitter, crop) and assignment, in the same process. Forward: the network; of Mask R-CNN with its "
    "losses. Backward: all gradients. Memory: what a process of its own needs at most for building and one step, "
    "beyond its imports."
)

CLASSES = 80
OBJECTS = (1, 30, 300)
TYPICAL_OBJECTS = 7
"""COCO's mean of objects in an image."""
CUDA_BATCH = 16
CUDA_SIDE = 800
MATRIX = 8192
"""Rows and columns of the matrices whose product shows what a card can do."""
AUGMENTATION = Augmentation(scale=(0.5, 1.5), crop=512)
STEPS = {"sotr-r50": "sotr-r50", "sotr-rt-r50": "sotr-rt-r50", "Mask R-CNN R50-FPN": None}
"""Side -> preset of ours."""

Step = Callable[[], Parts]


@dataclass(frozen=True)
class Conditions:
    """What all sides have in common."""

    objects: int
    batch: int
    side: int
    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, if asked for."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def train(
    device: torch.device, dtype: torch.dtype, quick: bool, on_run: Callable[[str], object]
) -> tuple[list[Row], list[str]]:
    """Rows and findings of the sub-benchmark."""
    names = [name for name in STEPS if not quick or name != "sotr-rt-r50"]
    if device.type != "cuda":
        return measure(names, OBJECTS, 1 if quick else 2, AUGMENTATION.crop, device, dtype, 2 if quick else 5, on_run)
    rows, findings = measure(names, OBJECTS, 8, CUDA_SIDE, device, dtype, 3 if quick else 7, on_run)
    on_run("throughput")
    return rows, findings + throughput("sotr-r50", CUDA_BATCH, CUDA_SIDE, device, dtype, 5 if quick else 15)


def measure(
    names: list[str],
    objects: tuple[int, ...],
    batch: int,
    side: int,
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    on_run: Callable[[str], object],
    memory: bool = True,
) -> tuple[list[Row], list[str]]:
    """The named sides with each number of objects per image."""
    rows: list[Row] = []
    findings = []
    for count in objects:
        conditions = Conditions(count, batch, side, device, dtype)
        peaks = {name: _peak(name, conditions) if memory else None for name in names}
        times = alternate({name: _step(name, conditions) for name in names}, runs, on_run)
        case = f"{count} object{'' if count == 1 else 's'}, {batch} x {side} x {side}"
        for name in names:
            rows += [
                timed(case, name, part, times[name][part], peak_mib=peaks[name] if part == "total" else None)
                for part in times[name]
            ]
        for peer in names:
            findings += [
                f"{case}: a step of {name} takes {times[name]['total'].median / times[peer]['total'].median:.2f} times "
                f"as long as one of {peer}."
                for name in names
                if STEPS[peer] is None and STEPS[name] is not None
            ]
    return rows, findings


def _peak(name: str, conditions: Conditions) -> float:
    if conditions.device.type != "cuda":
        return round(peak_memory(_once, name, conditions))
    with device_peak(conditions.device) as peak:
        _once(name, conditions)
    return round(peak.mib)


def _once(name: str, conditions: Conditions) -> None:
    _step(name, conditions)()


def _step(name: str, conditions: Conditions) -> Step:
    preset = STEPS[name]
    return _mask_rcnn(conditions) if preset is None else _sotr(preset, conditions)


class _Pictures:
    """An endless row of the same augmentations of an image and its objects."""

    def __init__(self, conditions: Conditions, config: SOTRConfig) -> None:
        self.conditions, self.config = conditions, config
        height, width = 3 * conditions.side // 4, conditions.side
        self.image = synthetic.picture(height, width)
        masks = synthetic.ellipses(conditions.objects, height, width)
        self.objects = synthetic.objects(masks, CLASSES)
        self.augmentation = replace(AUGMENTATION, crop=conditions.side)

    def batch(self) -> Batch:
        samples = []
        height, width, _ = self.image.shape
        for number in range(self.conditions.batch):
            found = augment(
                self.image,
                self.objects,
                self.augmentation,
                self.conditions.side,
                2 * self.conditions.side,
                mask_stride=4,
                generator=np.random.default_rng(number),
            )
            samples.append(Sample(found.image_3hw, found.targets, number, "", found.size, (height, width)))
        return collate(samples, self.config)


class _Ours:
    """A network of ours under training.

    Args:
        compiled: through `torch.compile`, as `sotr train --compile` does it.
    """

    def __init__(self, preset: str, conditions: Conditions, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.config, self.conditions = SOTRConfig.preset(preset, CLASSES), conditions
        self.network = build_network(self.config).to(memory_format=torch.channels_last).to(conditions.device)
        self.forward = torch.compile(self.network.forward) if compiled else self.network.forward
        self.optimizer = _optimizer(self.network)

    def step(self, batch: Batch, watch: Stopwatch | None = None) -> None:
        """One step, timed in parts, for each of which the device is waited for, or in none."""
        lap = _no_lap if watch is None else watch.lap
        self.optimizer.zero_grad(set_to_none=True)
        with self.conditions.autocast(), attention_for(self.conditions.device):
            dense = self.forward(batch.images_B3HW.contiguous(memory_format=torch.channels_last))
        lap("forward")
        with self.conditions.autocast():
            losses = sotr_losses(dense, batch.targets, batch.assignment, LossOptions())
        lap("loss")
        torch.stack(list(losses.values())).sum().backward()
        lap("backward")
        self.optimizer.step()
        lap("optimiser")


def _no_lap(part: str) -> None:
    pass


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=1e-6)


def _sotr(preset: str, conditions: Conditions) -> Step:
    ours = _Ours(preset, conditions)
    pictures = _Pictures(conditions, ours.config)

    def step() -> Parts:
        watch = Stopwatch(conditions.device)
        batch = pictures.batch().to(conditions.device)
        watch.lap("data")
        ours.step(batch, watch)
        return watch.parts

    return step


def throughput(preset: str, batch: int, side: int, device: torch.device, dtype: torch.dtype, steps: int) -> list[str]:
    """How many images a second pass through whole steps without a pause, their data at hand, and what that is of the
    card's arithmetic: a backward pass counts twice a forward pass."""
    conditions = Conditions(TYPICAL_OBJECTS, batch, side, device, dtype)
    a, b = torch.randn(2, MATRIX, MATRIX, device=device, dtype=dtype)
    peak = MATRIX**3 / _seconds(lambda: a @ b, device, 20)
    findings = []
    for compiled in (False, True):
        ours = _Ours(preset, conditions, compiled)
        pictures = _Pictures(conditions, ours.config).batch().to(device)
        work = partial(ours.step, pictures)
        with device_peak(device) as memory:
            seconds = _seconds(work, device, steps)
        macs = 3 * batch * count_components(ours.config, side, side)["total"].macs
        findings.append(
            f"{preset}{' compiled' if compiled else ''}, {batch} x {side} x {side}, {TYPICAL_OBJECTS} objects each: "
            f"{batch / seconds:.1f} images per second in training, {macs / seconds / peak:.1%} of the "
            f"{peak / 1e12:.0f} TMAC/s of {MATRIX} x {MATRIX} matrices' products, {memory.mib / 2**10:.1f} GiB beyond "
            f"the weights; a step takes {seconds:.3f} s, in which the card is busy with {', '.join(costs(work)[:4])}."
        )
    return findings


def _seconds(work: Callable[[], object], device: torch.device, runs: int) -> float:
    """Of one run, of so many without a pause after three to warm up."""
    for _ in range(3):
        work()
    watch = Stopwatch(device)
    for _ in range(runs):
        work()
    watch.lap("runs")
    return watch.parts["runs"] / runs


def _mask_rcnn(conditions: Conditions) -> Step:
    torch.manual_seed(0)
    size = conditions.side
    model: Any = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=size, max_size=size
    )
    model = model.train().to(conditions.device)
    optimizer = _optimizer(model)
    pictures = _Pictures(conditions, SOTRConfig())

    def step() -> Parts:
        optimizer.zero_grad(set_to_none=True)
        watch = Stopwatch(conditions.device)
        batch = pictures.batch().to(conditions.device)
        targets = [
            {
                "boxes": target.boxes_I4,
                "labels": target.labels_I + 1,
                "masks": _full_size(target.masks_Ihw, size),
            }
            for target in batch.targets
        ]
        watch.lap("data")
        with conditions.autocast():
            losses = model(list(batch.images_B3HW), targets)
        watch.lap("forward")
        sum(losses.values()).backward()
        watch.lap("backward")
        optimizer.step()
        watch.lap("optimiser")
        return watch.parts

    return step


def _full_size(masks_Ihw: Tensor, side: int) -> Tensor:
    """Masks at a pixel each, as Mask R-CNN wants them."""
    return (masks_Ihw > 127).to(torch.uint8).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :side, :side]
