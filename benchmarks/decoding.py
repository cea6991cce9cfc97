"""Decoding alone: time and memory over the number of candidates."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.measure import Parts, Stopwatch, alternate, peak_memory
from benchmarks.report import Row, timed
from sotr.config import SOTRConfig
from sotr.decoding import DecodeOptions, decode
from sotr.network import DensePredictions

WHAT = (
    "Predictions of one image of 480 x 640 at 800 x 1088 to at most 100 objects: masks, Matrix NMS, upsampling, "
    "RLE. Specks: ragged masks all over the image, as random weights give them, the hardest to upsample and "
    "compress; blobs: compact ones, as trained weights do; and blobs of a photograph of 3000 x 4000. Memory: what a "
    "process of its own needs at most beyond its imports and the predictions."
)

CANDIDATES = (10, 100, 500, 1000)
SCENES = {"specks": 1.0, "blobs": 1.0, "photograph": 6.25}
"""What is in the image, and how many times larger the image is than usual."""


def decode_benchmark(
    device: torch.device, dtype: torch.dtype, quick: bool, on_run: Callable[[str], object]
) -> tuple[list[Row], list[str]]:
    """Rows and findings of the sub-benchmark."""
    return measure((200, 272), CANDIDATES, device, dtype, 5 if quick else 15, on_run)


def measure(
    size: tuple[int, int],
    candidates: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    on_run: Callable[[str], object],
    memory: bool = True,
) -> tuple[list[Row], list[str]]:
    """Every scene with every number of candidates, features of a size."""
    works = {(scene, count): work_of(scene, count, size, device, dtype) for scene in SCENES for count in candidates}
    times = alternate({f"{scene}, {count}": work for (scene, count), work in works.items()}, runs, on_run)
    rows = []
    memory = memory and device.type == "cpu"
    bases = {scene: peak_memory(predictions_of, scene, 1, size, device, dtype) if memory else 0.0 for scene in SCENES}
    for scene, count in works:
        peak = None
        if memory:
            peak = round(max(0.0, peak_memory(_once, scene, count, size, device, dtype) - bases[scene]))
        rows.append(timed(scene, f"{count} candidates", "total", times[f"{scene}, {count}"]["total"], peak_mib=peak))
    return rows, []


def _once(scene: str, count: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> None:
    work_of(scene, count, size, device, dtype)()


def work_of(
    scene: str, count: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> Callable[[], Parts]:
    dense, config = predictions_of(scene, count, size, device, dtype), SOTRConfig()
    options = DecodeOptions(points_nms=False, cell_threshold=0.5, max_candidates=max(count, 500), score_threshold=0.0)
    height, width = 4 * size[0], 4 * size[1]
    original = (int(480 * SCENES[scene] * height / 800), int(640 * SCENES[scene] * width / 1088))
    names = tuple(str(label) for label in range(config.num_classes))

    def work() -> Parts:
        watch = Stopwatch(device)
        decode(
            dense,
            [(height, width)],
            [original],
            options,
            config=config,
            class_names=names,
            category_ids=range(config.num_classes),
        )
        watch.lap("decoding")
        return watch.parts

    return work


def predictions_of(
    scene: str, count: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> DensePredictions:
    """`count` cells over the threshold, each with a kernel of its own."""
    config = SOTRConfig()
    torch.manual_seed(0)
    logits = torch.full((1, config.num_cells, config.num_classes), -6.0)
    cells = torch.randperm(config.num_cells)[:count]
    logits[0, cells, torch.randint(config.num_classes, (count,))] = torch.rand(count) + 1
    if scene == "specks":
        features = torch.randn(1, config.mask_channels, size[0] // 8, size[1] // 8)
        features = F.interpolate(features, size=size, mode="bilinear", align_corners=False).relu()
        kernels = torch.randn(1, config.num_cells, config.kernel_parameters) / 10
    else:
        # Channels are a plane's monomials: a kernel is a paraboloid, positive inside an ellipse.
        y, x = torch.meshgrid(torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij")
        features = torch.zeros(1, config.mask_channels, *size)
        features[0, :5] = torch.stack([torch.ones_like(x), x, y, x * x, y * y])
        cx, cy = torch.rand(2, config.num_cells) * 2 - 1
        curvature, radius = 40.0, torch.rand(config.num_cells) * 0.2 + 0.05
        kernels = torch.zeros(1, config.num_cells, config.kernel_parameters)
        kernels[0, :, :5] = curvature * torch.stack(
            [radius**2 - cx**2 - cy**2, 2 * cx, 2 * cy, -torch.ones_like(cx), -torch.ones_like(cx)], 1
        )
    features = features.to(device, dtype, memory_format=torch.channels_last)
    return DensePredictions(logits.to(device, dtype), kernels.to(device, dtype), features)
