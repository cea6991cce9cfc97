"""What a study found: one table, and images."""

import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.competitors import YOLO
from benchmarks.accuracy.plots import OPERATING_SCORE, draw_curves, draw_errors, draw_overlays
from benchmarks.accuracy.study import Row, Study
from benchmarks.accuracy.tide import KINDS
from benchmarks.measure import Machine, describe_machine
from sotr.files import atomic_write

SEARCH_COLUMNS = ("competitor", "budget", "learning rate", "AP", "AP50", "steps")

DIGITS = {"steps": 0, "wall s": 0}
"""Digits behind the point, where they are not three."""

COLUMNS: dict[str, Callable[[Row], float | None]] = {
    "AP": lambda row: row.AP,
    "AP50": lambda row: row.AP50,
    "AP75": lambda row: row.AP75,
    "small": lambda row: row.AP_S,
    "medium": lambda row: row.AP_M,
    "large": lambda row: row.AP_L,
    "found": lambda row: row.found,
    "named": lambda row: row.named,
    "small found": lambda row: row.found_small,
    **{f"+{kind}": lambda row, kind=kind: row.errors[kind] for kind in KINDS},  # type: ignore[misc]
    "steps": lambda row: row.steps,
    "s per image": lambda row: row.infer_s,
    "wall s": lambda row: row.wall_s,
}
"""Columns of the table that are a mean over seeds."""

NOTES = """
The budget is processor time (user and system) of training; measuring is not in it. Numbers are means over the seeds.
Where there are several, the standard deviation stands behind ±. AP is COCO's mask AP on the validation images.

- found: share of the objects that a detection of any class covers with IoU 0.5
- named: of these, the share whose best detection has the right class
- +kind: AP50 gained if all errors of that kind were repaired, one kind at a time, as TIDE tells them apart
  (`benchmarks/accuracy/tide.py`)
- s per image: processor seconds per validation image on one thread, files included
- wall s: seconds on the clock of training; far more than the budget means that other work slowed it
"""

YOLO_NOTE = """
YOLO departs from the others. It is trained by ultralytics in a process of its own, in float32, with its own losses,
moving average, batch normalization (in batches of 8) and square, padded images. No stage of its backbone is frozen. Its
scale jitter is as wide as the recipe's, its color jitter is its own, and it has no mosaic. A training that is
interrupted begins anew.
"""


def write_report(study: Study) -> list[Path]:
    """Write `report.md`, `report.json`, `curves.png`, `errors.png` and `overlays.png` from the rows in the folder.

    Returns:
        The files.
    """
    rows, tried = study.rows(), replace(study, folder=study.folder / "search").rows()
    settings = json.loads((study.folder / "settings.json").read_text(encoding="utf-8"))
    machine, groups = describe_machine(torch.device("cpu")), grouped(rows)
    names = ("report.md", "report.json", "curves.png", "errors.png", "overlays.png")
    text, plain, curves_image, errors_image, overlays_image = (study.folder / name for name in names)
    last = [group for group in groups if group[0].budget_s == max(row.budget_s for row in rows)]
    draw_curves(groups, _labels(groups), curves_image)
    draw_errors(last, _labels(last), errors_image)
    draw_overlays(study, _best_of_each(last), overlays_image)
    found = {
        "machine": machine.to_dict(),
        "settings": settings,
        "table": [_cells(group) for group in groups],
        "rows": [asdict(row) for row in rows],
        "search": [row.summary() for row in tried],
    }
    with atomic_write(plain, "w") as file:
        json.dump(found, file, indent=1)
    with atomic_write(text, "w") as file:
        file.write(_markdown(groups, tried, settings, machine))
    return [study.folder / name for name in names]


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in their seed alone, by budget, then by competitor and rate."""
    groups: dict[tuple[float, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.budget_s, row.competitor, row.lr), []).append(row)
    return [groups[key] for key in sorted(groups)]


def mean_and_spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean and, of several values, their standard deviation; a dash where there is none."""
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    spread = f" ± {statistics.stdev(there):.{digits}f}" if len(there) > 1 else ""
    return f"{statistics.mean(there):.{digits}f}{spread}"


def _cells(group: Sequence[Row]) -> dict[str, str]:
    """A line of the table."""
    first = group[0]
    return {
        "competitor": first.competitor,
        "budget": f"{first.budget_s / 60:g} min",
        "seeds": str(len(group)),
        "learning rate": f"{first.lr:g}",
        "parameters": f"{first.parameters / 1e6:.1f} M",
        **{name: mean_and_spread([of(row) for row in group], DIGITS.get(name, 3)) for name, of in COLUMNS.items()},
    }


def _markdown(groups: Sequence[Sequence[Row]], tried: Sequence[Row], settings: dict[str, Any], machine: Machine) -> str:
    table = [_cells(group) for group in groups]
    threads = f"{machine.threads} thread (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')})"
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    lines = [
        f"# Accuracy after equal processor time: {settings['data']}",
        "",
        f"{settings['train_images']} training and {settings['val_images']} validation images, shortest edge "
        f"{settings['image_size']} pixels, at most {settings['max_dets']} objects per image; first weights of the "
        f"backbone: {'as given' if settings['weights'] else 'random'}. Made on {machine.cores} cores of "
        f"{machine.processor}, {threads}; {versions}; by",
        "",
        "```sh",
        *settings["commands"],
        "```",
        "",
        *_table(table),
        NOTES + (YOLO_NOTE if any(row[0].competitor in YOLO for row in groups) else ""),
    ]
    if tried:
        lines += [
            "Learning rates that were tried, on four fifths of the training images and measured on the rest of them:",
            "",
            *_table([{**_cells([row]), "AP": f"{row.AP:.3f}"} for row in sorted(tried, key=_by_rate)], SEARCH_COLUMNS),
            "",
        ]
    lines += [
        "![AP and loss over the training](curves.png)",
        "",
        "![Errors by kind](errors.png)",
        "",
        f"Objects with a score of at least {OPERATING_SCORE}:",
        "",
        "![Objects on validation images](overlays.png)",
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, str]], columns: Sequence[str] = ()) -> list[str]:
    columns = columns or list(rows[0])
    head = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return head + ["| " + " | ".join(row[column] for column in columns) + " |" for row in rows]


def _by_rate(row: Row) -> tuple[str, float]:
    return row.competitor, row.lr


def _labels(groups: Sequence[Sequence[Row]]) -> list[str]:
    """Names of groups, with what tells them apart."""
    rates = {(group[0].budget_s, group[0].competitor): 0 for group in groups}
    for group in groups:
        rates[group[0].budget_s, group[0].competitor] += 1
    several = len({group[0].budget_s for group in groups}) > 1
    return [
        group[0].competitor
        + (f", {group[0].budget_s / 60:g} min" if several else "")
        + (f", lr {group[0].lr:g}" if rates[group[0].budget_s, group[0].competitor] > 1 else "")
        for group in groups
    ]


def _best_of_each(groups: Sequence[Sequence[Row]]) -> list[Row]:
    """Of each competitor the first seed with the learning rate of the best mean AP."""
    best: dict[str, Sequence[Row]] = {}
    for group in groups:
        name = group[0].competitor
        if name not in best or _mean_ap(group) > _mean_ap(best[name]):
            best[name] = group
    return [min(group, key=lambda row: row.seed) for group in best.values()]


def _mean_ap(group: Sequence[Row]) -> float:
    return statistics.mean(row.AP for row in group)
