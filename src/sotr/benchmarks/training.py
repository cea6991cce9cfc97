"""A training step: ours against Mask R-CNN's, with few and with many objects."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn

from sotr.benchmarks import synthetic
from sotr.benchmarks.measure import Parts, Stopwatch, alternate, peak_memory
from sotr.benchmarks.report import Row, timed
from sotr.config import SOTRConfig
from sotr.data.batches import Batch, Sample, collate
from sotr.data.transforms import Augmentation, augment
from sotr.learning import LossOptions, sotr_losses
from sotr.network import SOTR
from sotr.training.module import attention_for

WHAT = (
    "One step of training, weights random and all trained, without the optimiser's. Data: augmentation (flip, "
    "large-scale jitter, crop) and assignment, in the same process. Forward: the network; of Mask R-CNN with its "
    "losses. Backward: all gradients. Memory: what a process of its own needs at most for building and one step, "
    "beyond its imports."
)

CLASSES = 80
OBJECTS = (1, 30, 300)
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
    return measure(names, OBJECTS, 1 if quick else 2, AUGMENTATION.crop, device, dtype, 2 if quick else 5, on_run)


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
    """The named sides with each number of objects per picture."""
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
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(conditions.device)
    _once(name, conditions)
    return round(torch.cuda.max_memory_allocated(conditions.device) / 2**20)


def _once(name: str, conditions: Conditions) -> None:
    _step(name, conditions)()


def _step(name: str, conditions: Conditions) -> Step:
    preset = STEPS[name]
    return _mask_rcnn(conditions) if preset is None else _sotr(preset, conditions)


class _Pictures:
    """An endless row of the same augmentations of a picture and its objects."""

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


def _sotr(preset: str, conditions: Conditions) -> Step:
    config = SOTRConfig.preset(preset, CLASSES)
    torch.manual_seed(0)
    network = SOTR(config).to(memory_format=torch.channels_last).to(conditions.device)
    pictures = _Pictures(conditions, config)

    def step() -> Parts:
        network.zero_grad(set_to_none=True)
        watch = Stopwatch(conditions.device)
        batch = pictures.batch().to(conditions.device)
        watch.lap("data")
        with conditions.autocast(), attention_for(conditions.device):
            dense = network(batch.images_B3HW.contiguous(memory_format=torch.channels_last))
        watch.lap("forward")
        with conditions.autocast():
            losses = sotr_losses(dense, batch.targets, batch.assignment, LossOptions())
        watch.lap("loss")
        torch.stack(list(losses.values())).sum().backward()
        watch.lap("backward")
        return watch.parts

    return step


def _mask_rcnn(conditions: Conditions) -> Step:
    torch.manual_seed(0)
    size = conditions.side
    model: Any = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=size, max_size=size
    )
    model = model.train().to(conditions.device)
    pictures = _Pictures(conditions, SOTRConfig())

    def step() -> Parts:
        model.zero_grad(set_to_none=True)
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
        return watch.parts

    return step


def _full_size(masks_Ihw: Tensor, side: int) -> Tensor:
    """Masks at a pixel each, as Mask R-CNN wants them."""
    return (masks_Ihw > 127).to(torch.uint8).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :side, :side]
