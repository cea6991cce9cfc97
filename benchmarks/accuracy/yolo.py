"""YOLO as a competitor: trained by ultralytics in a process of its own, which is told by files what to do.

ultralytics is under the AGPL, so nothing here imports it. `yolo_process.py` runs with the Python of an environment that
has it.
"""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.accuracy.competitors import YOLO, Entry, body_weights
from benchmarks.accuracy.study import SHARES, Plan, Point, Progress, Study, Trained
from benchmarks.accuracy.training import Stopped
from sotr.data.coco import CocoDataset
from sotr.data.sizes import resized_size
from sotr.errors import SOTRError
from sotr.evaluation.coco import coco_metrics
from sotr.files import atomic_folder, link_or_copy
from sotr.masks.checked import plain_rle
from sotr.masks.polygons import EXACT, polygons

BATCH = 8
"""Images per step: its batch normalization learns from the batch."""

PROCESS = Path(__file__).parent / "yolo_process.py"


def train_yolo(study: Study, entry: Entry, plan: Plan, stopped: Callable[[], bool]) -> Trained:
    """A training in another process, from its start: an interrupted one is not continued.

    Raises:
        SOTRError: the process failed; names its log.
        Stopped: it was told to stop.
    """
    data = study.folder / "yolo"
    if not data.is_dir():
        with atomic_folder(data) as folder:
            write_split(study.train, folder, "train")
            write_split(study.val, folder, "val")
    work = study.checkpoint(plan)
    work.mkdir(parents=True, exist_ok=True)
    (work / "data.yaml").write_text(
        json.dumps(  # JSON is YAML, too
            {
                "path": str(data.resolve()),
                "train": "images/train",
                "val": "images/val",
                "names": dict(enumerate(study.train.class_names)),
            }
        ),
        encoding="utf-8",
    )
    weights = None
    if study.weights:
        weights = str(work.resolve() / "backbone.pt")
        torch.save(body_weights(entry.config, study.weights), weights)
    augmentation = study.recipe.augmentation
    job = {
        "model": YOLO[entry.name],
        "weights": weights,
        "data": str(work.resolve() / "data.yaml"),
        "folder": str(work.resolve()),
        "images": [
            [int(image_id), str(study.val.path(i).resolve()), _input_size(study, i)]
            for i, image_id in enumerate(study.val.image_ids)
        ],
        "category_ids": list(study.val.category_ids),
        "max_dets": study.max_dets,
        "budget_s": plan.budget_s,
        "shares": list(SHARES),
        "lr": plan.lr,
        "seed": plan.seed,
        "decay": study.recipe.weight_decay,
        "batch": BATCH,
        "image_size": _longest_edge(study),
        "scale": round(max(augmentation.scale[1] - 1, 1 - augmentation.scale[0]), 3),
        "fliplr": 0.5 * augmentation.horizontal_flip,
        "flipud": 0.5 * augmentation.vertical_flip,
    }
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    _run(study.yolo_python or "", work, stopped)
    return _read(study, work)


def _longest_edge(study: Study) -> int:
    """YOLO's size of images, by which objects are as large as for the others: a multiple of 32."""
    shortest, longest = np.sort(study.train.sizes_N2, axis=1).T
    ratio = float(np.median(longest / shortest))
    return max(32, round(min(study.image_size * ratio, study.image_size * 5 / 3) / 32) * 32)


def _input_size(study: Study, index: int) -> list[int]:
    """Height and width of a validation image as the others see it, up to multiples of 32."""
    height, width = resized_size(*study.val.sizes_N2[index].tolist(), study.image_size, round(study.image_size * 5 / 3))
    return [-(-height // 32) * 32, -(-width // 32) * 32]


def _run(python: str, work: Path, stopped: Callable[[], bool]) -> None:
    """Run the process to its end."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "YOLO_CONFIG_DIR": str(work.resolve()),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
    }
    log = work / "log.txt"
    try:
        with log.open("wb") as file:
            process = subprocess.Popen(
                [python, str(PROCESS), str(work.resolve() / "job.json")],
                env=environment,
                cwd=work,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
    except OSError as error:
        raise SOTRError(f"{python} cannot be run ({error.strerror}); name a Python with --yolo-python") from None
    try:
        while process.poll() is None:
            if stopped():
                raise Stopped
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise SOTRError(f"the training of YOLO failed ({lines[-1] if lines else 'without a word'}); see {log}")


def _read(study: Study, work: Path) -> Trained:
    """What the process has written."""
    done = json.loads((work / "done.json").read_text(encoding="utf-8"))
    sizes = {int(i): (int(h), int(w)) for i, (h, w) in zip(study.val.image_ids, study.val.sizes_N2)}
    found = []
    for moment in done["moments"]:
        results: list[dict[str, Any]] = json.loads((work / moment["file"]).read_text(encoding="utf-8"))
        for result in results:
            result["segmentation"] = plain_rle(result["segmentation"], sizes[result["image_id"]])
        found.append(results)
    progress = Progress(
        step=done["steps"], used_s=done["used_s"], wall_s=done["wall_s"], losses=done["losses"], measured=len(SHARES)
    )
    truth = study.val.truth()
    for moment, results in zip(done["moments"][:-1], found):
        metrics = coco_metrics(truth, results, max_dets=study.max_dets)
        point = Point(moment["used_s"], moment["steps"], metrics.AP or 0.0, metrics.AP50 or 0.0)
        progress.curve.append(vars(point))
    return Trained(progress, done["parameters"], found[-1], done["infer_s"])


def write_split(data: CocoDataset, folder: Path, split: str) -> None:
    """Images and labels as ultralytics reads them: `images/SPLIT/ID.png` beside `labels/SPLIT/ID.txt`."""
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index, image_id in enumerate(data.image_ids.tolist()):
        record = data.record(index)
        lines = []
        for label, crowd, mask_hw in zip(record.labels_I.tolist(), record.iscrowd_I, data.masks(record)):
            if mask_hw.any() and not crowd:
                outline = joined(polygons(mask_hw, EXACT)) / (record.width, record.height)
                lines.append(f"{label} {' '.join(f'{value:.6f}' for value in outline.ravel())}\n")
        link_or_copy(record.path, images / f"{image_id}{record.path.suffix.lower()}")
        (labels / f"{image_id}.txt").write_text("".join(lines), encoding="ascii")


def joined(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One polygon of several: to the nearest corner of each further part leads a cut of no width, and back.

    Args:
        parts: corners x 2 each.
    """
    whole = parts[0]
    for part in parts[1:]:
        distances = np.square(whole[:, None] - part[None]).sum(2)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        turned = np.roll(part, -int(there), 0)
        whole = np.concatenate([whole[: here + 1], turned, turned[:1], whole[here:]])
    return whole
