"""What to say of a run that learned next to nothing: why that may be, for this data, and what to try next."""

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from sotr.config import SOTRConfig
from sotr.curation.grids import input_sizes, objects_of
from sotr.data.coco import CocoDataset

NEXT_TO_NOTHING = 0.05
"""AP below which a run has learned next to nothing."""

FEW_STEPS = 2000
"""Steps below which networks from random weights have seldom learned anything."""

FEW_IMAGES = 1000
"""Images below which random weights are a bad start."""

SMALL = 12.0
"""Pixels of the network's input below which an object's side is hard to see: three of the mask features'."""


def verdict(best: Mapping[str, Any] | None, run: Mapping[str, Any], data: CocoDataset, steps: int) -> list[str]:
    """Lines for the terminal and the report; none if the run has learned something or was not validated.

    Args:
        best: metrics of the best validation.
        run: what `run.json` holds.
        data: the training images.
        steps: that the run has taken.
    """
    if best is None or best["AP"] is None or best["AP"] >= NEXT_TO_NOTHING:
        return []
    found = [*_start(run, data), *_length(run, steps), *_sizes(run, data), *_labels(run)]
    return [f"AP {best['AP']:.3f}: this run has learned next to nothing; most likely because", *found[:3]]


def _start(run: Mapping[str, Any], data: CocoDataset) -> list[str]:
    if str(run["weights"]) != "random weights":
        return []
    few = f"; {len(data)} images are few for that" if len(data) < FEW_IMAGES else ""
    command = _command(run, "--backbone-weights", "imagenet")
    if looks_like_microscopy(data):
        command = _command(run, "--model", "nuclei")
    return [f"- it started from random weights{few}. Try: {command}"]


def _length(run: Mapping[str, Any], steps: int) -> list[str]:
    if steps >= FEW_STEPS:
        return []
    wanted = -(-FEW_STEPS * run["recipe"]["batch_size"] // max(1, run["data"]["train_pictures"]))
    return [f"- {steps} steps are few. Try: {_command(run, '--epochs', str(wanted))}"]


def _sizes(run: Mapping[str, Any], data: CocoDataset) -> list[str]:
    config = SOTRConfig.from_dict(run["config"])
    sides = object_sides(data, config)
    if not len(sides) or np.median(sides) >= SMALL:
        return []
    larger = int(32 * np.ceil(config.image_size * min(2.0, SMALL / np.median(sides)) / 32))
    command = _command(run, "--image-size", str(larger))
    return [f"- half of the objects are smaller than {SMALL:g} pixels at the network's input. Try: {command}"]


def _labels(run: Mapping[str, Any]) -> list[str]:
    command = shlex.join(["sotr", "data", "check", run["data"]["folder"], "--report", "check.html"])
    return [f"- the labels may not fit the images. Look at them: {command}"]


def _command(run: Mapping[str, Any], flag: str, value: str) -> str:
    words = ["sotr", "train", run["data"]["folder"]]
    if flag != "--model":
        words += ["--model", str(run["arguments"]["model"])]
    return shlex.join([*words, flag, value])


def object_sides(data: CocoDataset, config: SOTRConfig) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Square roots of the objects' box areas, in pixels of the network's input."""
    objects = objects_of(data)
    ratios = input_sizes(objects.sizes_N2, config).min(1) / objects.sizes_N2.min(1)
    areas = np.prod(objects.boxes_A4[:, 2:] - objects.boxes_A4[:, :2], axis=1)
    return np.sqrt(areas) * ratios[objects.pictures_A]


def looks_like_microscopy(data: CocoDataset) -> bool:
    """Whether the data has one class of many small objects in each image, as cells and nuclei are."""
    objects = objects_of(data)
    if len(data.class_names) != 1 or not len(objects.boxes_A4):
        return False
    share = np.prod(objects.boxes_A4[:, 2:] - objects.boxes_A4[:, :2], axis=1)
    share = share / np.prod(objects.sizes_N2[objects.pictures_A], axis=1)
    return len(objects.boxes_A4) / len(data) >= 10 and float(np.median(share)) < 0.02
