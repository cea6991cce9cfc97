"""What a training leaves for the eye: loss curves, validation images beside their truth, a table, a model card."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from sotr.data.coco import CocoDataset, Record
from sotr.data.images import load_image
from sotr.evaluation.tables import number
from sotr.files import atomic_write
from sotr.model.segmenter import Segmenter
from sotr.results.instances import Instances
from sotr.results.panels import panel_sheet
from sotr.training.display import duration

_COLOURS = {"loss_class": "#d1495b", "loss_mask": "#00798c"}
_AP_COLOURS = {"AP": "#00798c", "AP50": "#edae49", "AP75": "#d1495b"}


def read_log(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's CSV logs, oldest first; what a resumed run did again replaces what was there before.

    Args:
        folder: `RUN/logs/csv`, with one `version_N` for each time the run was started or resumed.
    """
    rows: list[dict[str, float]] = []
    parts = sorted(folder.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for part in parts:
        text = part.read_text(encoding="utf-8", errors="replace")
        lines = text[: text.rfind("\n") + 1].splitlines()  # a process that was killed may have begun another
        new = [row for row in map(_numbers, csv.DictReader(lines)) if "step" in row]
        # A validation that was interrupted is made up for at the step of a loss that stays.
        first_loss = min((row["step"] for row in new if "loss" in row), default=math.inf)
        first = min((row["step"] for row in new), default=math.inf)
        rows = [row for row in rows if row["step"] < (first_loss if "loss" in row else first)] + new
    return rows


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    """The values of a log's row; none at all if they are not numbers, as after a power cut."""
    try:
        return {key: float(value) for key, value in row.items() if value}
    except (TypeError, ValueError):
        return {}


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Losses, validation AP and learning rate over the steps, as one PNG."""
    figure = curves(rows)
    FigureCanvasAgg(figure)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def curves(rows: Sequence[Mapping[str, float]], ink: str = "#333333") -> Figure:
    """Losses, validation AP and learning rate over the steps, side by side; text and axes in the color `ink`."""
    figure = Figure(figsize=(15, 4.2))
    figure.subplots_adjust(left=0.04, right=0.99, bottom=0.13, top=0.91, wspace=0.17)
    losses, precision, rate = figure.subplots(1, 3, sharex=True)

    steps = [row for row in rows if "loss" in row]
    x = np.array([row["step"] for row in steps])
    for name, colour in {"loss": ink, **_COLOURS}.items():
        y = np.array([row[name] for row in steps])
        losses.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
        losses.plot(x, _smooth(y), color=colour, linewidth=1.8, label=name)
    if steps:
        # The first steps are so much worse that they would flatten all that follows.
        top = max(np.quantile([row["loss"] for row in steps], 0.98) * 1.1, 1e-3)
        losses.set_ylim(0, top)
        rate.plot(x, [row["lr"] for row in steps], color=ink, linewidth=1.8)

    validations = [row for row in rows if "AP" in row]
    for name, colour in _AP_COLOURS.items():
        points = [(row["step"], row[name]) for row in validations if name in row]
        if points:
            precision.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=name)
    title = "validation, mask AP" if validations else "no validation with objects"
    if validations:
        # Of equals the later one, as the run keeps it.
        best = max(validations, key=lambda row: (row["AP"], row["step"]))
        title += f" (best {best['AP']:.3f} in epoch {best['epoch']:.0f})"
    if not any(row.get("AP50", row["AP"]) for row in validations):
        words = "0 in all validations so far" if validations else "nothing to show"
        precision.text(0.5, 0.5, words, ha="center", va="center", color=ink, transform=precision.transAxes)
    for axes, words in ((losses, "training loss"), (precision, title), (rate, "learning rate")):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        dress(axes, words, "step", ink)
    return figure


def dress(axes: Axes, title: str, x_label: str, ink: str) -> None:
    """Title, label, legend and grid in the way of all our drawings."""
    axes.set_title(title, color=ink)
    axes.set_xlabel(x_label, color=ink)
    axes.grid(alpha=0.2, color=ink)
    axes.tick_params(colors=ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(ink)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=ink)


def _smooth(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running mean over a fiftieth of the curve."""
    width = max(1, len(y) // 50)
    padded = np.pad(y, (width // 2, width - 1 - width // 2), mode="edge")
    return np.asarray(np.convolve(padded, np.ones(width) / width, mode="valid"), np.float64)


def draw_validation(segmenter: Segmenter, data: CocoDataset, folder: Path, count: int = 8) -> None:
    """Some of the images of `data`, evenly spread, as PNGs: truth on the left, prediction on the right."""
    for index in spread(len(data), count):
        record, panel = truth_beside(segmenter, data, index, segmenter.decode_options.operating_score)
        with atomic_write(folder / f"{record.path.stem}.{record.image_id}.png") as file:
            Image.fromarray(panel).save(file, format="png", compress_level=3)


def spread(length: int, count: int) -> list[int]:
    """At most `count` positions in a sequence, evenly spread."""
    return sorted({round(i) for i in np.linspace(0, length - 1, min(count, length))})


def truth_beside(segmenter: Segmenter, data: CocoDataset, index: int, score: float) -> tuple[Record, NDArray[np.uint8]]:
    """Image `index` of `data`, and its truth beside what the model finds in it from a score on; RGB uint8."""
    record = data.record(index)
    image = load_image(record.path)
    kept = ~record.iscrowd_I
    truth = Instances.from_rles(
        np.ones(int(kept.sum())),
        record.labels_I[kept],
        [rle for rle, keep in zip(record.segmentations, kept, strict=True) if keep],
        data.class_names,
        data.category_ids,
        (record.height, record.width),
    )
    found = segmenter.predict(image, score=score)
    return record, panel_sheet(
        [
            (f"truth: {len(truth)} objects", truth.draw(image)),
            (f"prediction: {len(found)} objects, score >= {score:g}", found.draw(image)),
        ]
    )


def model_card(run: Mapping[str, Any], metrics: Mapping[str, Any] | None, seconds: float, epochs: int) -> str:
    """Markdown for the model folder's README.md.

    Args:
        run: what `run.json` holds.
        metrics: of the best validation, if there was one.
        seconds: wall time of the training.
        epochs: epochs that were trained.
    """
    recipe, data, config = run["recipe"], run["data"], run["config"]
    length = f"{recipe['epochs']} epochs" if recipe["epochs"] else f"{recipe['iterations']} iterations"
    names = ", ".join(data["class_names"][:20]) + (", ..." if len(data["class_names"]) > 20 else "")
    lines = [
        f"# {run['name']}",
        "",
        f"SOTR instance segmentation ({config['backbone']} backbone, {config['depth']} transformer layers, "
        f"shortest edge {config['image_size']} px) of: {names}.",
        "",
        "```python",
        "import sotr",
        "",
        'objects = sotr.load("path/to/this/folder").predict("picture.png")',
        "```",
        "",
        "## Training",
        f"- data: {data['name']}, {data['train_pictures']} training images with {data['train_objects']} objects",
        f"- command: `{run['command']}`",
        f"- recipe: {run['arguments']['recipe']} ({recipe['optimizer']}, learning rate {recipe['lr']:g}, "
        f"batch {recipe['batch_size']}, {length}), seed {run['seed']}",
        f"- started from: {run['weights']}",
        f"- trained: {epochs} epochs in {duration(seconds)} (h:mm:ss) on {run['device']}, precision {run['precision']}",
        f"- versions: {', '.join(f'{name} {number}' for name, number in run['versions'].items())}",
    ]
    lines += ["", "## Validation"]
    if metrics is None:
        lines.append("None: there were no validation images.")
    else:
        lines += [
            f"{data['val_pictures']} images with {metrics['objects']} objects, after epoch {metrics['epoch']} "
            f"(chosen for its AP), COCO metrics of masks with {metrics['max_dets']} detections per image:",
            "",
            "| " + " | ".join(METRICS) + " |",
            "|" + "---|" * len(METRICS),
            "| " + " | ".join(number(metrics[name]) for name in METRICS) + " |",
        ]
    return "\n".join(lines) + "\n"


METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR")
