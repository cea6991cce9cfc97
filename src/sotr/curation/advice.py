"""Settings of a network that suit a data set and a machine, each with its reason."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from sotr.building import build_network
from sotr.config import FPN_STRIDES, INPUT_DIVISOR, MASK_STRIDE, SOTRConfig
from sotr.curation.grids import Objects, fit_to_grids, input_sizes, objects_of
from sotr.data.coco import CocoDataset

SMALLEST = 3 * MASK_STRIDE
"""Pixels that the side of all but a tenth of the objects should have: three of the mask's own."""

CLEAR = 3 * SMALLEST
"""Objects of this side lose nothing when their image is not enlarged."""

LARGER = 1.5
"""The image is not made larger than this, relative to the preset: that would be 2.25 times the work."""

SMALLER = 0.5
"""Nor smaller than this."""

WORTH_IT = 0.15
"""Image sizes that differ less than this from the preset's are not suggested."""

FINER = (1.25, 1.5, 2.0)
"""Factors by which grids are made finer, as far as need be."""

LOST = 0.05
"""Share of the objects that may lose all their cells to smaller ones before grids are made finer."""

STEPS = 25
"""Steps that an epoch should have: a network learns by steps, and few images in large batches make few of them."""

LEAST_BATCH = 4
"""Images below which a batch is not made smaller for the sake of steps."""

MEMORY = 0.7
"""Share of the memory that a batch may take; the rest is for the network, its optimizer and the loaders."""

BESIDES = 0.25
"""What training needs beside the layers' outputs, as a share of them, which autograd alone about keeps."""

_PICTURES = 2000
"""Images that the advice looks at, evenly spread."""


@dataclass(frozen=True)
class Advice:
    """What suits; equal to what was asked about where there is nothing to say."""

    config: SOTRConfig
    batch_size: int | None
    reasons: tuple[str, ...]
    """One line for each change."""


def suggest(
    data: CocoDataset, config: SOTRConfig, batch_size: int | None, device: torch.device, fixed_size: bool = False
) -> Advice:
    """Adapt a preset to training data and to the memory of a device; a preset that fits is left as it is.

    Args:
        config: the preset, for the classes of the data.
        batch_size: what the recipe has; few images and memory may make it smaller, never larger, for the learning
            rate goes with it.
            None leaves it alone, for somebody has chosen it.
        fixed_size: leave the image size alone, for somebody has chosen it.
    """
    objects = objects_of(data)
    if len(data) > _PICTURES:
        objects = objects.of_pictures(np.unique(np.linspace(0, len(data) - 1, _PICTURES).astype(np.int64)))
    reasons: list[str] = []
    if len(objects.rows_A):
        if not fixed_size:
            config = _image_size(objects, config, reasons)
        config = _scale_ranges(objects, config, reasons)
        config = _grids(objects, config, reasons)
    if batch_size is not None:
        batch_size = fitting_batch_size(data, config, batch_size, device, reasons)
    return Advice(config, batch_size, tuple(reasons))


def mirroring(class_names: Sequence[str]) -> str | None:
    """Why images of these classes must not be mirrored: one that is called left has a counterpart on the right, which
    it would look like. None if there is no such pair."""
    names = set(class_names)
    sided = [name for name in class_names if (other := _other_side(name)) != name and other in names]
    if not sided:
        return None
    left = next((name for name in sided if re.search("left", name, re.IGNORECASE)), sided[0])
    pairs = len(sided) // 2
    several = f", and so for {pairs} pairs of classes" if pairs > 1 else ""
    return f"no mirroring (horizontal_flip, vertical_flip): {left} would look like {_other_side(left)}{several}"


def _other_side(name: str) -> str:
    """The name with left for right and right for left, where these are words of their own."""
    sides = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}
    return re.sub(rf"(?<![A-Za-z])({'|'.join(sides)})(?![a-z])", lambda found: sides[found[0]], name)


def _image_size(objects: Objects, config: SOTRConfig, reasons: list[str]) -> SOTRConfig:
    sizes = objects.sizes_N2
    scales = input_sizes(sizes, config).min(1) / sizes.min(1)
    native = float(np.quantile(objects.sides_A, 0.1))
    small = float(np.quantile(objects.sides_A * scales[objects.pictures_A], 0.1))
    edge = float(np.median(sizes.min(1)))
    if small < SMALLEST:
        wanted = min(config.image_size * SMALLEST / small, config.image_size * LARGER, 2 * edge)
        reason = f"a tenth of the objects would be smaller than {small:.0f} px, and masks have blocks of {MASK_STRIDE}"
    elif edge < config.image_size and native >= CLEAR:
        wanted = max(edge, config.image_size * SMALLER)
        reason = f"the images' shortest edge is {edge:.0f} px, and their objects are large enough as they are"
    else:
        return config
    size = math.ceil(wanted / INPUT_DIVISOR) * INPUT_DIVISOR
    if abs(size / config.image_size - 1) < WORTH_IT or (size < config.image_size) != (small >= SMALLEST):
        return config
    reasons.append(f"image size {size} instead of {config.image_size}: {reason}")
    return replace(config, image_size=size, max_image_size=round(config.max_image_size * size / config.image_size))


def _scale_ranges(objects: Objects, config: SOTRConfig, reasons: list[str]) -> SOTRConfig:
    fit = fit_to_grids(objects, config)
    count = int(fit.unlearnable_A.sum())
    if not count:
        return config
    ranges = list(config.scale_ranges)
    ranges[0] = (min(ranges[0][0], math.floor(fit.sides_A.min())), ranges[0][1])
    ranges[-1] = (ranges[-1][0], max(ranges[-1][1], math.ceil(fit.sides_A.max())))
    # A gap between two levels is closed from below.
    for level in range(1, len(ranges)):
        if ranges[level][0] > ranges[level - 1][1]:
            ranges[level] = (ranges[level - 1][1], ranges[level][1])
    reasons.append(f"scale ranges {_pairs(ranges)}: {count} of {len(fit.sides_A)} objects would be of no level's size")
    return replace(config, scale_ranges=tuple(ranges))


def _grids(objects: Objects, config: SOTRConfig, reasons: list[str]) -> SOTRConfig:
    fit = fit_to_grids(objects, config)
    share = fit.lost_A.mean()
    if share <= LOST:
        return config
    concerned = np.any(fit.levels_A5[fit.lost_A], axis=0)
    best, best_share = config, share
    # Cells finer than the level's own map would only repeat it.
    edge = float(np.median(input_sizes(objects.sizes_N2, config).max(1)))
    for factor in FINER:
        grids = tuple(
            max(grid, min(round(grid * factor), math.ceil(edge / stride))) if concerned[level] else grid
            for level, (grid, stride) in enumerate(zip(config.grids, FPN_STRIDES, strict=True))
        )
        finer = replace(config, grids=grids)
        left = fit_to_grids(objects, finer).lost_A.mean()
        if left < best_share:
            best, best_share = finer, left
        if left <= LOST:
            break
    if best is not config:
        reasons.append(
            f"grids {', '.join(map(str, best.grids))} instead of {', '.join(map(str, config.grids))}: "
            f"{share:.1%} of the objects would lose all their cells to smaller ones, now {best_share:.1%}"
        )
    return best


def fitting_batch_size(
    data: CocoDataset, config: SOTRConfig, batch_size: int, device: torch.device, reasons: list[str]
) -> int:
    """`batch_size`, or fewer if an epoch would have few steps or memory holds no more; then `reasons` gets a line."""
    asked, batch_size = batch_size, min(batch_size, max(LEAST_BATCH, len(data) // STEPS))
    if batch_size < asked:
        reasons.append(
            f"batch size {batch_size} instead of {asked}: {len(data)} images would make only "
            f"{math.ceil(len(data) / asked)} step{'s' if len(data) > asked else ''} an epoch"
        )
    # Batches are padded to their largest image: that of nine in ten.
    sizes = np.quantile(input_sizes(data.sizes_N2, config), 0.9, axis=0)
    height, width = (math.ceil(side / INPUT_DIVISOR) * INPUT_DIVISOR for side in sizes)
    each, free = picture_memory(config, height, width), free_memory(device)
    fitting = max(1, int(MEMORY * free / each))
    if fitting >= batch_size:
        return batch_size
    reasons.append(
        f"batch size {fitting} instead of {batch_size}: an image takes about {each / 2**30:.1f} GiB to train on, "
        f"and {device} has {free / 2**30:.1f} GiB"
    )
    return fitting


@lru_cache
def picture_memory(config: SOTRConfig, height: int, width: int) -> int:
    """About how many bytes training takes for each image of this size (multiples of 32), in single precision.

    Counted are the outputs of all layers, which the way back needs, and a share for gradients and what operations keep
    besides; nothing is computed.
    """
    kept = 0

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal kept
        if isinstance(output, Tensor):
            kept += output.numel() * output.element_size()

    with torch.device("meta"):
        network = build_network(config).eval()
        image_13HW = torch.zeros(1, 3, height, width)
    for module in network.modules():
        if not any(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(image_13HW)
    return round((1 + BESIDES) * kept)


def free_memory(device: torch.device) -> int:
    """Bytes that a training may use on a device: all of a GPU's, so that the GPUs of one training agree; of a
    computer's what is available, or half of all where its system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30


def _pairs(ranges: list[tuple[float, float]]) -> str:
    return ", ".join(f"{low:g}-{high:g}" for low, high in ranges)
