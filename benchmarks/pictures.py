"""Files to training samples, and results to AP: what runs beside the network."""

import copy
import json
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import synthetic
from benchmarks.measure import Parts, Stopwatch, alternate
from benchmarks.report import Row, timed
from sotr.config import SOTRConfig
from sotr.data import load_coco
from sotr.data.batches import TrainDataset
from sotr.data.transforms import Augmentation
from sotr.evaluation import coco_metrics

DATA = (
    "Training samples from JPEG files of 480 x 640 with ellipses as RLE: reading, augmentation, masks at a quarter "
    "of the size; one process, one thread. Paper: shortest edge 800, flip. Scratch: a crop of 512 with jitter of "
    "scale and color, flips and quarter turns."
)
EVALUATE = "Mask AP of detections, the true ellipses and as many shifted ones, in images of 480 x 640; one thread."

AUGMENTATIONS = {
    "paper": Augmentation(),
    "scratch": Augmentation(scale=(0.5, 2.0), crop=512, vertical_flip=True, rotate90=True, color=0.5),
}
CLASSES = 20


def data(
    device: torch.device, dtype: torch.dtype, quick: bool, on_run: Callable[[str], object]
) -> tuple[list[Row], list[str]]:
    """Rows and findings of `python -m benchmarks data`."""
    return measure_data((1, 30, 300), 480, 640, 4 if quick else 8, 5 if quick else 15, on_run)


def measure_data(
    objects: tuple[int, ...], height: int, width: int, pictures: int, runs: int, on_run: Callable[[str], object]
) -> tuple[list[Row], list[str]]:
    """Samples of images with each number of objects, by each augmentation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            sides = {
                f"{name}, {count}": _samples(Path(folder) / str(count), augmentation, count, height, width, pictures)
                for count in objects
                for name, augmentation in AUGMENTATIONS.items()
            }
            times = alternate(sides, runs, on_run)
    finally:
        torch.set_num_threads(threads)
    rows = []
    for side, parts in times.items():
        name, count = side.split(", ")
        seconds = parts["total"].median / pictures
        case = f"{count} object{'' if count == '1' else 's'} an image, {pictures} images"
        rows.append(timed(case, name, "total", parts["total"], pictures_per_second=1 / seconds))
    return rows, []


def _samples(
    folder: Path, augmentation: Augmentation, count: int, height: int, width: int, pictures: int
) -> Callable[[], Parts]:
    if not folder.exists():
        folder.mkdir()
        truth = synthetic.coco(pictures, count, height, width, CLASSES)
        (folder / "train.json").write_text(json.dumps(truth))
        for number, image in enumerate(truth["images"]):
            Image.fromarray(synthetic.picture(height, width, number)).save(folder / image["file_name"], quality=90)
    loaded = load_coco(folder / "train.json", folder)
    config = SOTRConfig(num_classes=len(loaded.class_names))
    dataset = TrainDataset(loaded, config, augmentation)
    epoch = iter(range(10**9))

    def work() -> Parts:
        turn = next(epoch)
        watch = Stopwatch(torch.device("cpu"))
        for index in range(len(dataset)):
            dataset[turn, index]
        watch.lap("data")
        return watch.parts

    return work


def evaluate_benchmark(
    device: torch.device, dtype: torch.dtype, quick: bool, on_run: Callable[[str], object]
) -> tuple[list[Row], list[str]]:
    """Rows and findings of `python -m benchmarks evaluate`."""
    return measure_evaluate((10, 50), 480, 640, 50 if quick else 250, 3 if quick else 7, on_run)


def measure_evaluate(
    objects: tuple[int, ...], height: int, width: int, pictures: int, runs: int, on_run: Callable[[str], object]
) -> tuple[list[Row], list[str]]:
    """`coco_metrics` and, if it is installed, pycocotools on the same results."""
    rows, findings = [], []
    for count in objects:
        truth = synthetic.coco(pictures, count, height, width, CLASSES)
        results = _results(truth, height, width)
        sides: dict[str, Callable[[], float | None]] = {"sotr": partial(_ours, truth, results)}
        if find_spec("pycocotools") is not None:
            sides["pycocotools"] = partial(_pycocotools, truth, results)
        values = {name: work() for name, work in sides.items()}
        times = alternate({name: _timed(work) for name, work in sides.items()}, runs, on_run)
        for name in sides:
            seconds = times[name]["total"]
            rows.append(
                timed(
                    f"{count} objects an image, {pictures} images",
                    name,
                    "total",
                    seconds,
                    seconds_per_1000=1000 * seconds.median / pictures,
                    AP=values[name],
                )
            )
        if len(sides) > 1:
            ratio = times["pycocotools"]["total"].median / times["sotr"]["total"].median
            findings.append(f"{count} objects an image: pycocotools takes {ratio:.1f} times as long.")
    return rows, findings


def _timed(work: Callable[[], object]) -> Callable[[], Parts]:
    def run() -> Parts:
        watch = Stopwatch(torch.device("cpu"))
        work()
        watch.lap("evaluate")
        return watch.parts

    return run


def _results(truth: dict[str, Any], height: int, width: int) -> list[dict[str, Any]]:
    """Each true object as a detection, and one of the next image's in its place."""
    annotations = truth["annotations"]
    results = []
    for place, annotation in enumerate(annotations):
        other = annotations[(place * 7 + 3) % len(annotations)]
        for score, source in ((0.9 - 0.5 * (place % 10) / 10, annotation), (0.6 - 0.5 * (place % 7) / 10, other)):
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "segmentation": source["segmentation"],
                    "score": score,
                }
            )
    return results


def _ours(truth: dict[str, Any], results: list[dict[str, Any]]) -> float | None:
    return coco_metrics(truth, results).AP


def _pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> float:
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = []
    for annotation in truth["annotations"]:
        rle = annotation["segmentation"]
        annotations.append(annotation | {"area": float(mask.area(rle)), "bbox": mask.toBbox(rle).tolist()})
    with redirect_stdout(StringIO()):
        true = COCO()
        true.dataset = copy.deepcopy(truth) | {"annotations": annotations}
        true.createIndex()
        evaluation = COCOeval(true, true.loadRes(copy.deepcopy(results)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])
