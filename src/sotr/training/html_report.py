"""The page that a run leaves: everything worth seeing in one HTML file without anything from elsewhere."""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from sotr.data.coco import CocoDataset
from sotr.evaluation.coco import precision_recall
from sotr.evaluation.confusion import Confusion, confusion
from sotr.evaluation.evaluate import detect
from sotr.evaluation.tables import number
from sotr.files import atomic_write
from sotr.model import Segmenter
from sotr.training.report import METRICS, smooth, truth_beside

PICTURES = 4
"""Of the worst and of the best pictures."""

MOST_CURVES = 8
"""Classes whose precision and recall are drawn; with more, those with the most objects."""

MOST_CLASSES = 30
"""Classes in the confusion matrix; with more, those that are confused most."""

INK = "#123456"
"""Stands for the colour of the text in drawings, which the page's light or dark theme decides."""

_COLOURS = ("#00798c", "#d1495b", "#c98a00", "#5b8e3e", "#7a5cc4", "#c2571a", "#2f86d6", "#a0568a")


def write_report(
    path: Path,
    segmenter: Segmenter,
    data: CocoDataset | None,
    run: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    rows: Sequence[Mapping[str, float]],
    seconds: float,
    workers: int = 0,
    on_pictures: Callable[[int], object] = lambda count: None,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        segmenter: the run's model, which goes over the validation pictures once more.
        data: the validation pictures, or None.
        run: what `run.json` holds.
        metrics: of the best validation, or None.
        rows: of the run's logs, as `report.read_log` gives them.
        seconds: wall time of the training.
        workers: processes that load pictures.
        on_pictures: told the number of pictures of each batch when it is done.
    """
    values: dict[str, Any] = {
        "run": run,
        "metrics": metrics,
        "metric_names": METRICS,
        "number": number,
        "duration": str(timedelta(seconds=round(seconds))),
        "curves": _curves(rows),
        "steps": max((int(row["step"]) for row in rows), default=0),
        "found": None,
    }
    if data is not None and metrics is not None:
        results = detect(
            segmenter, data, data.category_ids, max_dets=metrics["max_dets"], workers=workers, on_pictures=on_pictures
        )
        compared = confusion(data, results)
        order = np.argsort(compared.quality_N, kind="stable")
        shown = min(PICTURES, len(data) // 2) or len(data)
        values |= {
            "found": compared,
            "precision_recall": _precision_recall(precision_recall(data.truth(), results), metrics),
            "confusion": _confusion_table(compared, data.class_names),
            "worst": [_picture(segmenter, data, int(i), compared) for i in order[:shown]],
            "best": [_picture(segmenter, data, int(i), compared) for i in order[::-1][:shown]] if len(data) > 1 else [],
        }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(values)
    with atomic_write(path, "w") as file:
        file.write(page)


def _picture(segmenter: Segmenter, data: CocoDataset, index: int, compared: Confusion) -> dict[str, Any]:
    """One validation picture with its truth beside the prediction, as a JPEG inside a data URL."""
    record, panel = truth_beside(segmenter, data, index, compared.score)
    picture = Image.fromarray(panel)
    picture.thumbnail((1100, 900))
    buffer = io.BytesIO()
    picture.save(buffer, format="jpeg", quality=82)
    return {
        "name": data.file_names[index],
        "quality": float(compared.quality_N[index]),
        "source": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"),
        "width": picture.width,
        "height": picture.height,
        "objects": int((~record.iscrowd_I).sum()),
    }


def _confusion_table(compared: Confusion, class_names: Sequence[str]) -> dict[str, Any]:
    """Rows and columns of the table: counts, and their share of the row for the colour."""
    counts_TF = compared.counts_TF
    classes = len(class_names)
    wrong = counts_TF.sum(0)[:classes] + counts_TF.sum(1)[:classes] - 2 * np.diag(counts_TF)[:classes]
    kept = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
    index = np.append(kept, classes)
    cut = counts_TF[np.ix_(index, index)]
    share = cut / np.maximum(1, counts_TF[index].sum(1, keepdims=True))
    names = [class_names[k] for k in kept]
    return {
        "columns": [*names, "not found"],
        "rows": [
            {
                "name": name,
                "cells": [{"count": int(c), "share": round(float(s), 3)} for c, s in zip(*pair, strict=True)],
            }
            for name, *pair in zip([*names, "nothing there"], cut, share, strict=True)
        ],
        "left_out": classes - len(kept),
    }


def _curves(rows: Sequence[Mapping[str, float]]) -> str:
    steps = [row for row in rows if "loss" in row]
    validations = [row for row in rows if "AP" in row]
    figure, (losses, precision, rate) = _figure(3, "step")
    x = np.array([row["step"] for row in steps])
    for colour, name in zip((INK, _COLOURS[1], _COLOURS[0]), ("loss", "loss_class", "loss_mask"), strict=True):
        y = np.array([row[name] for row in steps])
        if len(y):
            losses.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
            losses.plot(x, smooth(y), color=colour, linewidth=1.6, label=name)
    if steps:
        losses.set_ylim(0, max(float(np.quantile([row["loss"] for row in steps], 0.98)) * 1.1, 1e-3))
        rate.plot(x, [row["lr"] for row in steps], color=_COLOURS[0], linewidth=1.6)
    for colour, name in zip(_COLOURS, ("AP", "AP50", "AP75"), strict=False):
        points = [(row["step"], row[name]) for row in validations if name in row]
        if points:
            precision.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=name)
    for axes, title in ((losses, "training loss"), (precision, "validation, mask AP"), (rate, "learning rate")):
        axes.set_title(title, color=INK, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        _legend(axes)
    return _svg(figure)


def _precision_recall(curves: Mapping[str, NDArray[np.float64]], metrics: Mapping[str, Any]) -> str:
    def objects(name: str) -> int:
        return int(metrics["per_class"].get(name, {}).get("objects", 0))

    shown = sorted(curves, key=objects, reverse=True)[:MOST_CURVES]
    figure, (axes,) = _figure(1, "recall")
    recall = np.linspace(0, 1, 101)
    for colour, name in zip(_COLOURS, shown, strict=False):
        axes.plot(recall, curves[name], color=colour, linewidth=1.6, label=name)
    if len(curves) > 1:
        axes.plot(recall, np.mean(list(curves.values()), 0), color=INK, linewidth=2.4, label="mean of all classes")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_ylabel("precision at IoU 0.50", color=INK)
    _legend(axes)
    return _svg(figure)


def _figure(count: int, x_label: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.4 * count if count > 1 else 6.4, 3.3 if count > 1 else 4.0), layout="constrained")
    FigureCanvasSVG(figure)
    plots = list(np.atleast_1d(figure.subplots(1, count)))
    for axes in plots:
        axes.set_xlabel(x_label, color=INK)
        axes.set_facecolor("none")
        axes.grid(alpha=0.18, color=INK)
        axes.tick_params(colors=INK, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        for spine in axes.spines.values():
            spine.set_color(INK)
    return figure, plots


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :].replace(INK, "currentColor")
