"""`sotr evaluate`: a model against a data set's own annotations."""

import json as jsonlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sotr.data.batches import WORKER_DIED, died, eval_loader, load_picture
from sotr.data.coco import CocoDataset, find_data, load_coco
from sotr.data.layouts import locate_test
from sotr.decoding import finish
from sotr.errors import SOTRError
from sotr.evaluation.coco import Metrics, coco_metrics
from sotr.evaluation.tables import class_table, number
from sotr.files import atomic_write
from sotr.loading import load
from sotr.model.predictor import Predictor
from sotr.model.segmenter import Segmenter
from sotr.moved import renamed
from sotr.progress import progress_bar
from sotr.results.instances import Instances

UNKNOWN_CLASS = -1
"""Stands for a class of the model that the data set does not have."""


@renamed("max_dets", "max_objects")
def evaluate(
    data: str | Path,
    model: str | Path | Predictor = "nuclei",
    split: str = "val",
    max_objects: int = 100,
    batch_size: int = 1,
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
    train_json: str | Path | None = None,
    val_json: str | Path | None = None,
    images: str | Path | None = None,
    workers: int = 0,
    precision: Literal["float32", "bfloat16"] = "float32",
    engine: Literal["auto", "pytorch"] = "auto",
    decode: str | None = None,
    results: str | Path | None = None,
) -> dict[str, Any]:
    """Measure a model's COCO mask AP and AR on annotated images.

    The model's classes are matched to the data set's by name; order and ids may differ. Areas are those of the masks.

    Args:
        data: folder with COCO annotations and images, in any of the layouts of `sotr train`.
        model: a bundled model, a model or run folder, a hub id, or a file that `sotr export` wrote (in Python also a
            loaded model, which stays on its device).
        split: which part of the data to measure on: val, train or test.
        max_objects: detections per image that are made and counted; COCO's own is 100, crowded images need more.
            COCO's name for it, max_dets, is taken too.
        batch_size: images that go through the network together.
        device: auto, cpu, cuda, cuda:1 or mps.
        json: print one JSON object on standard output instead of tables.
        quiet: print no progress and no tables.
        train_json: annotation file of split train, where `data` has another layout.
        val_json: annotation file of split val, where `data` has another layout.
        images: folder of the images, where `data` has another layout.
        workers: processes that load images; 0 loads them in this one.
        precision: float32, or bfloat16: quicker where the device computes it in hardware, with slightly other results.
        engine: auto takes the quickest way that proves equal to plain PyTorch, such as OpenVINO on CPUs if it is
            installed; pytorch takes plain PyTorch, which starts at once and needs less memory.
        decode: decoding settings to change, such as points_nms=true,nms=linear; the names are those of
            `sotr.decoding.DecodeOptions`. Exported files have their own.
        results: also write the detections to this file, as a list of COCO results with the image and category ids of
            the data. With it the data needs no annotations, as COCO's test images have none; then nothing is measured.

    Returns:
        AP, AP50, AP75, AP_S, AP_M, AP_L, AR, AR_S, AR_M, AR_L in 0..1 (None where the data has no such object),
        "per_class" (name -> AP, AP50, AP75, objects), max_dets, images, objects, detections, operating_score (the score
        with the best F1 at IoU 0.50 on this data) and f1, seconds, model, data and split. Without annotations: images,
        detections, seconds, model, data and split.

    Raises:
        SOTRError: the data or the model cannot be used, they have no class in common, or a process that loads
            images died.
    """
    if split not in ("val", "train", "test"):
        raise SOTRError(f"there is no split {split!r}; choose val, train or test")
    for name, value, least in (("max_objects", max_objects, 1), ("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise SOTRError(f"{name} is {value}; it must be at least {least}")
    if results is not None and Path(results).is_dir():
        raise SOTRError(f"{results} is a folder; name a file with --results")
    unlabeled = results is not None
    if split == "test":
        json_path, beside = locate_test(Path(data))
        dataset: CocoDataset | None = load_coco(json_path, images or beside, unlabeled)
    else:
        only: Literal["val", "train"] = "val" if split == "val" else "train"
        found = find_data(data, train_json=train_json, val_json=val_json, images=images, only=only, unlabeled=unlabeled)
        dataset = found.val if split == "val" else found.train
    if dataset is None or not len(dataset):
        raise SOTRError(f"{data} has no images to measure on in its {split} split; name them with --{split}-json")
    segmenter = model if isinstance(model, Predictor) else load(model, device, precision, engine)

    if decode is not None:
        segmenter.change_decoding(decode)
    messages = Console(stderr=True, quiet=quiet, soft_wrap=True)
    category_ids = match_classes(segmenter.class_names, dataset.class_names, dataset.category_ids)
    if absent := sorted(set(dataset.class_names) - set(segmenter.class_names)):
        messages.print(f"the model does not know, and so scores 0 on: {escape(', '.join(absent))}")
    if not isinstance(segmenter, Segmenter) and max_objects > (most := segmenter.decode_options.max_objects):
        messages.print(f"the file was exported for {most} objects per image, so it gives no more than that")

    started = time.perf_counter()
    with progress_bar("evaluating", len(dataset), messages) as advance:
        try:
            detections = detect(
                segmenter,
                dataset,
                category_ids,
                max_dets=max_objects,
                batch_size=batch_size,
                workers=workers,
                on_pictures=advance,
            )
        except WORKER_DIED as error:
            if (reason := died(error)) is None:
                raise
            raise SOTRError(
                f"a process that loads images died ({reason}); look at the machine's free memory, use fewer --workers"
            ) from None
    seconds = time.perf_counter() - started
    if results is not None:
        try:
            with atomic_write(Path(results), "w") as file:
                jsonlib.dump(detections, file)
        except OSError as error:
            raise SOTRError(f"{results}: cannot be written: {error.strerror or error}") from None
    measured = results is None or len(dataset.labels) > 0
    metrics = None
    if measured:
        metrics = coco_metrics(dataset.truth(), detections, max_dets=max_objects).at_operating_point(
            dataset, detections
        )
    counted = {"images": len(dataset), "detections": len(detections)} if metrics is None else metrics.to_dict()
    report = {"model": segmenter.name, "data": str(data), "split": split, **counted, "seconds": round(seconds, 3)}
    if json:
        sys.stdout.write(jsonlib.dumps(report) + "\n")
    elif metrics is None:
        messages.print(
            f"{len(dataset)} images without annotations, {len(detections)} detections in {escape(str(results))}; "
            "nothing to measure them against"
        )
    elif not quiet:
        _show(metrics, Console(highlight=False), f"{segmenter.name} on {data} ({split})", seconds)
    return report


def match_classes(
    model_names: Sequence[str], data_names: Sequence[str], data_category_ids: Sequence[int]
) -> tuple[int, ...]:
    """The data set's category id of each of the model's classes, matched by name; `UNKNOWN_CLASS` where it has none.

    Of classes of the same name the first is matched with the first, the second with the second and so on.

    Raises:
        SOTRError: no name is common to both.
    """
    ids_of: dict[str, deque[int]] = {}
    for name, category_id in zip(data_names, data_category_ids, strict=True):
        ids_of.setdefault(name, deque()).append(category_id)
    matched = tuple(ids_of[name].popleft() if ids_of.get(name) else UNKNOWN_CLASS for name in model_names)
    if not set(model_names) & set(data_names):
        raise SOTRError(
            f"the model and the data have no class in common: the model knows {_some(model_names)}, "
            f"the data has {_some(data_names)}; give them the same names"
        )
    return matched


@torch.inference_mode()
def detect(
    segmenter: Predictor,
    dataset: CocoDataset,
    category_ids: Sequence[int],
    *,
    max_dets: int = 100,
    batch_size: int = 1,
    workers: int = 0,
    on_pictures: Callable[[int], object] = lambda count: None,
    pictures: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """COCO results of a model on images of a data set.

    Args:
        category_ids: of each of the model's classes, as `match_classes` gives them; detections of `UNKNOWN_CLASS`
            are left out.
        max_dets: objects per image.
        on_pictures: told the number of images of each batch when it is done.
        pictures: positions of the images in the data set; default all.
    """
    results: list[dict[str, Any]] = []
    batches = (
        _by_batches(segmenter, dataset, category_ids, max_dets, batch_size, workers, pictures)
        if isinstance(segmenter, Segmenter)
        else _by_prediction(segmenter, dataset, category_ids, max_dets, batch_size, pictures)
    )
    for image_ids, found in batches:
        for image_id, instances in zip(image_ids, found, strict=True):
            results += [item for item in instances.to_coco(image_id) if item["category_id"] != UNKNOWN_CLASS]
        on_pictures(len(image_ids))
    return results


def _by_batches(
    segmenter: Segmenter,
    dataset: CocoDataset,
    category_ids: Sequence[int],
    max_dets: int,
    batch_size: int,
    workers: int,
    pictures: Sequence[int] | None,
) -> Iterator[tuple[Sequence[int], list[Instances]]]:
    """Image ids and objects, batch after batch."""
    # More candidates than objects, for Matrix NMS will weed some out.
    options = segmenter.decode_options.with_max_objects(max_dets)
    loader = eval_loader(
        dataset,
        segmenter.config,
        batch_size=batch_size,
        workers=workers,
        pin_memory=segmenter.device.type == "cuda",
        pictures=pictures,
    )
    for batch in loader:
        yield (
            batch.image_ids,
            finish(
                segmenter.find(batch.images_B3HW.to(segmenter.device, non_blocking=True), options),
                batch.image_sizes,
                batch.original_sizes,
                options,
                class_names=segmenter.class_names,
                category_ids=category_ids,
            ),
        )


def _by_prediction(
    predictor: Predictor,
    dataset: CocoDataset,
    category_ids: Sequence[int],
    max_dets: int,
    batch_size: int,
    pictures: Sequence[int] | None,
) -> Iterator[tuple[Sequence[int], list[Instances]]]:
    """The same of an exported model, whose decoding cannot be made to give more objects than it was exported for."""
    most = min(max_dets, predictor.decode_options.max_objects)
    chosen = range(len(dataset)) if pictures is None else pictures
    for start in range(0, len(chosen), batch_size):
        indices = chosen[start : start + batch_size]
        images = [load_picture(dataset, index) for index in indices]
        least = predictor.decode_options.score_threshold
        found = predictor.predict(images, score=least, max_objects=most, batch_size=batch_size)
        yield (
            [dataset.image_ids[index] for index in indices],
            [replace(instances, category_ids=tuple(category_ids)) for instances in found],
        )


def _some(names: Sequence[str], most: int = 8) -> str:
    """The names, or the first of them."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _show(metrics: Metrics, console: Console, title: str, seconds: float) -> None:
    """Tables of the metrics."""
    speed = metrics.images / seconds if seconds else 0.0
    summary = f"{escape(title)}: {metrics.images} images, {metrics.objects} objects, {speed:.2f} pictures/s"
    console.print(summary, soft_wrap=True)
    table = Table(title="mask metrics", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("all", "IoU 0.50", "IoU 0.75", "small", "medium", "large"):
        table.add_column(name, justify="right")
    table.add_row(
        "AP", *map(number, (metrics.AP, metrics.AP50, metrics.AP75, metrics.AP_S, metrics.AP_M, metrics.AP_L))
    )
    table.add_row(
        f"AR, at most {metrics.max_dets}",
        number(metrics.AR),
        "",
        "",
        *map(number, (metrics.AR_S, metrics.AR_M, metrics.AR_L)),
    )
    console.print(table)
    if metrics.operating_score is not None:
        console.print(f"best F1 {number(metrics.f1)} at score {metrics.operating_score}")
    if len(metrics.per_class) > 1:
        console.print(class_table(metrics.to_dict(), "per class"))
