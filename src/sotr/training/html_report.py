"""The page that a run leaves: everything worth seeing in one HTML file without anything from elsewhere."""

import base64
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from sotr.data.coco import CocoDataset
from sotr.evaluation.coco import precision_recall
from sotr.evaluation.confusion import Confusion, confusion
from sotr.evaluation.evaluate import detect
from sotr.evaluation.tables import number
from sotr.files import atomic_write
from sotr.model.segmenter import Segmenter
from sotr.training.display import duration
from sotr.training.report import METRICS, curves, dress, truth_beside

PICTURES = 4
"""Of the worst and of the best images."""

MOST_CURVES = 8
"""Classes whose precision and recall are drawn; with more, those with the most objects."""

MOST_CLASSES = 30
"""Classes in the confusion matrix; with more, those that are confused most."""

INK = "#123456"
"""Stands for the color of the text in drawings, which the page's light or dark theme decides."""

_COLOURS = ("#00798c", "#d1495b", "#c98a00", "#5b8e3e", "#7a5cc4", "#c2571a", "#2f86d6", "#a0568a")


def write_report(
    path: Path,
    segmenter: Segmenter,
    data: CocoDataset | None,
    run: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    rows: Sequence[Mapping[str, float]],
    seconds: float,
    lines: Sequence[str] = (),
    workers: int = 0,
    on_pictures: Callable[[int], object] = lambda count: None,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        segmenter: the run's model, which goes over the validation images once more.
        data: the validation images, or None.
        run: what `run.json` holds.
        metrics: of the best validation, or None.
        rows: of the run's logs, as `report.read_log` gives them.
        seconds: wall time of the training.
        lines: what to say at the top, see `verdict`.
        workers: processes that load images.
        on_pictures: told the number of images of each batch when it is done.
    """
    values: dict[str, Any] = {
        "run": run,
        "metrics": metrics,
        "metric_names": METRICS,
        "number": number,
        "duration": duration(seconds),
        "curves": _svg(curves(rows, INK)),
        "steps": max((int(row["step"]) for row in rows), default=0),
        "found": None,
        "lines": lines,
    }
    if data is not None and metrics is not None:
        results = detect(
            segmenter, data, data.category_ids, max_dets=metrics["max_dets"], workers=workers, on_pictures=on_pictures
        )
        compared = confusion(data, results, segmenter.decode_options.operating_score)
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
    """One validation image with its truth beside the prediction, as a JPEG inside a data URL."""
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
    """Rows and columns of the table: counts, and their share of the row for the color."""
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
            {"name": name, "cells": list(zip(row.tolist(), part.round(3).tolist(), strict=True))}
            for name, row, part in zip([*names, "nothing there"], cut, share, strict=True)
        ],
        "left_out": classes - len(kept),
    }


def _precision_recall(curves_of: Mapping[str, NDArray[np.float64]], metrics: Mapping[str, Any]) -> str:
    def objects(name: str) -> int:
        return int(metrics["per_class"].get(name, {}).get("objects", 0))

    shown = sorted(curves_of, key=objects, reverse=True)[:MOST_CURVES]
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    for colour, name in zip(_COLOURS, shown, strict=False):
        axes.plot(recall, curves_of[name], color=colour, linewidth=1.8, label=name)
    if len(curves_of) > 1:
        axes.plot(recall, np.mean(list(curves_of.values()), 0), color=INK, linewidth=2.6, label="mean of all classes")
    if not any(np.any(curve > 0) for curve in curves_of.values()):
        axes.text(0.5, 0.5, "no detection matches an object", ha="center", color=INK)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_ylabel("precision", color=INK)
    dress(axes, "masks that overlap by an IoU of 0.50", "recall", INK)
    if axes.get_legend() is not None:
        axes.legend(frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _svg(figure)


def _svg(figure: Figure) -> str:
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    # Letters stay text, so that the browser's fonts draw the scripts that Matplotlib's own font lacks.
    with matplotlib.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :].replace(INK, "currentColor")
