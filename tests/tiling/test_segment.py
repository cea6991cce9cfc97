"""Whole images in tiles, through the bundled network: as good as small images one by one."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image

import sotr
from sotr.errors import SOTRError
from sotr.masks.run_lengths import runs_of
from sotr.results.instances import Instances
from sotr.tiling.columns import place


def cells(seed: int, side: int, count: int) -> tuple[NDArray[np.uint8], Instances]:
    """An image of bright, blurred ellipses on dark ground, none cut by its border, and their true masks."""
    rng = np.random.default_rng(seed)
    scale = side / 250
    labels = np.zeros((side, side), np.uint8)
    light = np.zeros((side, side), np.float32)
    placed: list[tuple[float, float, float]] = []
    while len(placed) < count:
        radii = rng.uniform(8, 16, 2) * scale
        x, y = rng.uniform(20 * scale, side - 20 * scale, 2)
        reach = radii.max() + 2 * scale
        if all(np.hypot(x - x2, y - y2) > reach + reach2 for x2, y2, reach2 in placed):
            placed.append((x, y, reach))
            ellipse = ((x, y), tuple(2 * radii), rng.uniform(0, 180))
            cv2.ellipse(labels, ellipse, len(placed), -1)
            cv2.ellipse(light, ellipse, rng.uniform(90, 200), -1)
    light = cv2.GaussianBlur(light, (0, 0), 1.5 * scale) + 12 + rng.normal(0, 4, light.shape)
    picture = np.repeat(light.clip(0, 255).astype(np.uint8)[..., None], 3, 2)
    masks = labels == np.arange(1, count + 1)[:, None, None]
    return picture, Instances.from_masks(np.ones(count), np.zeros(count), masks, ["nucleus"], [1])


def mosaic(pictures: list[tuple[NDArray[np.uint8], Instances]], per_row: int) -> tuple[NDArray[np.uint8], Instances]:
    """Images of one size side by side, and their objects."""
    side = pictures[0][1].image_size[0]
    rows = [pictures[start : start + per_row] for start in range(0, len(pictures), per_row)]
    whole = np.concatenate([np.concatenate([picture for picture, _ in row], 1) for row in rows])
    counts: list[list[int]] = []
    for position, (_, truth) in enumerate(pictures):
        row, column = divmod(position, per_row)
        runs = runs_of([rle["counts"].encode() for rle in truth.rles], side)
        x, y = np.full(len(truth), column * side), np.full(len(truth), row * side)
        counts += place(runs, x, y).counts(*whole.shape[:2])
    size = whole.shape[:2]
    rles = [{"size": list(size), "counts": runs} for runs in counts]
    return whole, Instances.from_rles(np.ones(len(rles)), np.zeros(len(rles)), rles, ["nucleus"], [1], size)


def matches(found: Instances, truth: Instances) -> NDArray[np.float64]:
    """The best intersection over union of each true object."""
    return coco_mask.iou(list(found.rles), list(truth.rles), [0] * len(truth)).max(0)


def repetitions(found: Instances) -> int:
    """Pairs of objects of which one lies in the other, by half or more."""
    covered = coco_mask.iou(list(found.rles), list(found.rles), [1] * len(found))
    return int((np.triu(np.maximum(covered, covered.T), 1) >= 0.5).sum())


def test_tiles_are_as_good_as_small_pictures() -> None:
    model = sotr.load("nuclei")
    pictures = [cells(seed, 250, 16) for seed in (1, 2)]
    whole, truth = mosaic(pictures, 2)
    alone = np.concatenate([matches(model.predict(picture, score=0.3), true) for picture, true in pictures])
    found = model.predict(whole, score=0.3, tile=250, overlap=0.2, batch_size=3)
    assert found.image_size == (250, 500)
    together = matches(found, truth)
    assert (together > 0.5).mean() >= (alone > 0.5).mean() - 0.01
    assert together.mean() > alone.mean() - 0.01
    assert repetitions(found) == 0
    # A tile that holds the whole image changes nothing.
    picture = pictures[0][0]
    assert model.predict([picture], tile=250)[0].rles == model.predict(picture).rles


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 0}, "tile is 0; it must be at least 32 pixels"),
        ({"tile": 64, "overlap": 0.0}, "overlap is 0.0; it must be above 0 and at most 0.5"),
        ({"tile": 64, "overlap": 0.6}, "overlap is 0.6"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(SOTRError, match=message):
        sotr.load("nuclei").predict([], **settings)


@pytest.mark.slow
def test_a_mosaic_of_6000_by_6000(tmp_path: Path) -> None:
    """Prints what docs/predict.md states: run it with -s."""
    import tifffile

    model = sotr.load("nuclei")
    pictures = [cells(seed, 1000, 25) for seed in range(36)]
    alone = [model.predict(picture, score=0.3) for picture, _ in pictures]
    apart = np.concatenate([matches(found, truth) for found, (_, truth) in zip(alone, pictures, strict=True)])
    whole, truth = mosaic(pictures, 6)
    tifffile.imwrite(tmp_path / "mosaic.tif", whole, tile=(512, 512), compression="zlib", photometric="rgb")
    Image.fromarray(pictures[0][0]).save(tmp_path / "small.png")
    peaks = []
    for name in ("small.png", "mosaic.tif"):
        arguments = ["--tile", "1000", "--overlap", "0.2", "--no-overlays", "--device", "cpu"]
        command = [sys.executable, "-m", "sotr.cli", "predict", str(tmp_path / name), *arguments]
        subprocess.run(
            [*command, "--out", str(tmp_path / "out")],
            check=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found = Instances.from_rles(
        [result["score"] for result in results],
        [0] * len(results),
        [result["segmentation"] for result in results],
        ["nucleus"],
        [1],
        (6000, 6000),
    )
    together = matches(found, truth)
    twice = (sum(map(repetitions, alone)), repetitions(found))
    print(f"small images: recall {(apart > 0.5).mean():.4f}, mean IoU {apart.mean():.4f}, {twice[0]} repetitions")
    print(f"mosaic: recall {(together > 0.5).mean():.4f}, mean IoU {together.mean():.4f}, {twice[1]} repetitions")
    print(f"{sum(map(len, alone))} and {len(found)} objects of {len(truth)}; peak memory {peaks[1]:.0f} MiB")
    print(f"peak memory with one small image instead: {peaks[0]:.0f} MiB")
    assert abs((together > 0.5).mean() - (apart > 0.5).mean()) < 0.01
    assert abs(together.mean() - apart.mean()) < 0.01
    assert twice[1] <= twice[0]
    assert peaks[1] < peaks[0] + 150
