"""The images of a report: AP over the training, kinds of errors, and objects on validation images."""

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.accuracy.study import Row, Study
from benchmarks.accuracy.tide import KINDS
from sotr.data.batches import load_picture
from sotr.files import atomic_write
from sotr.results.instances import Instances
from sotr.results.panels import panel_sheet

OPERATING_SCORE = 0.3
"""Score from which objects are drawn."""

PANEL = 360
"""Height in pixels of a panel of `overlays.png`."""

STYLES = ("-", "--", ":", "-.")
"""Of the budgets, from the longest."""


def draw_curves(groups: Sequence[Sequence[Row]], labels: Sequence[str], path: Path) -> None:
    """AP and loss over processor minutes: the mean over the seeds, and between the least and the greatest a band.

    Args:
        groups: rows that differ in their seed alone.
        labels: a name for each group.
    """
    figure, (ap, loss) = plt.subplots(1, 2, figsize=(11, 4.4))
    names = _names(groups)
    budgets = sorted({rows[0].budget_s for rows in groups}, reverse=True)
    for rows, label in zip(groups, labels):
        color, style = f"C{names.index(rows[0].competitor)}", STYLES[budgets.index(rows[0].budget_s) % len(STYLES)]
        common = min(len(row.curve) for row in rows)  # a step may be longer than a share of a short budget
        minutes = np.mean([[point["used_s"] / 60 for point in row.curve[-common:]] for row in rows], 0)
        values = np.array([[point["AP"] for point in row.curve[-common:]] for row in rows])
        ap.plot(minutes, values.mean(0), style, color=color, marker="o", markersize=4, label=label)
        ap.fill_between(minutes, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0)
        for row in rows:
            if len(row.losses):
                used, mean = np.array(row.losses).T
                loss.plot(used / 60, mean / mean[0], style, color=color, linewidth=1)
    ap.legend(frameon=False, fontsize=8)
    ap.set_ylim(bottom=0)
    loss.set_yscale("log")
    _label(ap, "mask AP on the validation images", "processor minutes of training")
    _label(loss, "training loss, as a multiple of its start", "processor minutes of training")
    _save(figure, path)


def draw_errors(groups: Sequence[Sequence[Row]], labels: Sequence[str], path: Path) -> None:
    """AP50 gained by repairing each kind of error: a bar per group, whiskers from the least to the greatest seed."""
    figure, axis = plt.subplots(figsize=(10, 4.2))
    width = 0.8 / len(groups)
    for place, (rows, label) in enumerate(zip(groups, labels)):
        values = np.array([[row.errors[kind] for kind in KINDS] for row in rows])
        mean, x = values.mean(0), np.arange(len(KINDS)) + (place - (len(groups) - 1) / 2) * width
        whiskers = [mean - values.min(0), values.max(0) - mean] if len(rows) > 1 else None
        axis.bar(x, mean, width * 0.92, yerr=whiskers, capsize=2, label=label, color=f"C{place}")
    axis.set_xticks(range(len(KINDS)), KINDS)
    axis.legend(frameon=False, fontsize=8)
    axis.axhline(0, color="0.3", linewidth=0.8)
    _label(axis, "AP50 gained if all errors of a kind were repaired, one kind at a time", "")
    _save(figure, path)


def draw_overlays(study: Study, rows: Sequence[Row], path: Path, count: int = 4) -> None:
    """Validation images, evenly spread over those with objects: the truth, and what each row's network found.

    Args:
        rows: one of each competitor.
        count: images at most.
    """
    truth = study.val.truth()
    with_objects = [i for i in range(len(study.val)) if study.val.offsets[i] < study.val.offsets[i + 1]]
    chosen = np.unique(np.linspace(0, len(with_objects) - 1, min(count, len(with_objects))).round().astype(int))
    found = {row.competitor: study.results(row.plan) for row in rows}
    panels = []
    for index in (with_objects[place] for place in chosen.tolist()):
        image, image_id = load_picture(study.val, index), int(study.val.image_ids[index])
        columns = {"truth": truth["annotations"]} | {
            name: [result for result in results if result["score"] >= OPERATING_SCORE]
            for name, results in found.items()
        }
        for title, annotations in columns.items():
            own = [each for each in annotations if each["image_id"] == image_id]
            drawn = Instances.from_coco({**truth, "annotations": own}, image_id).draw(image)
            panels.append((title, _fitted(drawn)))
    if panels:
        with atomic_write(path) as file:
            Image.fromarray(panel_sheet(panels, columns=1 + len(found))).save(file, "PNG")


def _fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image at a panel's size: `PANEL` pixels high, and at most 1.5 times as wide."""
    scale = min(PANEL / image.shape[0], 1.5 * PANEL / image.shape[1])
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _names(groups: Sequence[Sequence[Row]]) -> list[str]:
    return list(dict.fromkeys(rows[0].competitor for rows in groups))


def _label(axis: Axes, title: str, below: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(below)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    plt.close(figure)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
