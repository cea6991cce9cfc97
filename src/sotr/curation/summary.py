"""A checked data set in numbers, as plain values and as tables on the terminal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from sotr.config import FPN_STRIDES, SOTRConfig
from sotr.curation.advice import mirroring, suggest
from sotr.curation.checks import CheckedSplit
from sotr.curation.findings import Finding, by_kind, counted
from sotr.curation.grids import fit_to_grids

MOST_CLASSES = 30
"""Classes that a table lists, the most frequent first."""

BATCH_SIZE = 8
"""Images per step that the advice on the batch is about: the paper's recipe's, the largest of the bundled ones."""


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found out."""

    findings: list[Finding]
    splits: dict[str, dict[str, Any]]
    """Counts, sizes and classes of each split; plain values."""
    fit: dict[str, Any]
    """The training objects on the levels and grids of the model."""
    advice: dict[str, Any]
    """Settings that suit the data and this machine, and why."""
    input_sides_A: NDArray[np.float64]
    """The sides of the fitted objects in pixels of the model's input."""

    @property
    def failures(self) -> list[Finding]:
        """The harmful findings."""
        return [finding for finding in self.findings if finding.harmful]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "harmful": len(self.failures),
            "harmless": len(self.findings) - len(self.failures),
            "splits": self.splits,
            "fit": self.fit,
            "advice": self.advice,
            "findings": [finding.to_json() for finding in self.findings],
        }


def summarize(
    checked: Mapping[str, CheckedSplit], config: SOTRConfig, device: torch.device
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], NDArray[np.float64]]:
    """The fields `splits`, `fit`, `advice` and `input_sides_A` of a `DataReport`.

    The fit and the advice are of the training split, or of the only one there is.
    """
    splits = {split: _split(part) for split, part in checked.items()}
    part = checked.get("train") or next(iter(checked.values()), None)
    if part is None:
        return splits, {}, {}, np.zeros(0)
    fit = fit_to_grids(part.objects, config)
    advice = suggest(part.data, config, BATCH_SIZE, device)
    return (
        splits,
        {
            "objects": len(fit.sides_A),
            "no_level": int(fit.unlearnable_A.sum()),
            "no_cell": int(fit.lost_A.sum()),
            "cells_claimed": fit.claimed,
            "cells_contested": fit.contested,
            "levels": [
                {
                    "level": f"P{level + 2}",
                    "stride": FPN_STRIDES[level],
                    "grid": config.grids[level],
                    "low": low,
                    "high": high,
                    "objects": int(fit.levels_A5[:, level].sum()),
                }
                for level, (low, high) in enumerate(config.scale_ranges)
            ],
            "sides": _spread(fit.sides_A),
        },
        {
            "image_size": advice.config.image_size,
            "max_image_size": advice.config.max_image_size,
            "grids": list(advice.config.grids),
            "scale_ranges": [list(pair) for pair in advice.config.scale_ranges],
            "batch_size": advice.batch_size,
            "reasons": [*advice.reasons, *([reason] if (reason := mirroring(part.data.class_names)) else [])],
        },
        fit.sides_A,
    )


def _split(part: CheckedSplit) -> dict[str, Any]:
    data, objects = part.data, part.objects
    per_picture = np.bincount(objects.pictures_A, minlength=len(data))
    labels = np.asarray(data.labels)[objects.rows_A]
    counts = np.bincount(labels, minlength=len(data.class_names))
    return {
        "annotations": str(data.json_path),
        "images": str(data.images_dir),
        "pictures": len(data),
        "pictures_without_objects": int((per_picture == 0).sum()),
        "objects": len(objects.rows_A),
        "crowds": int(data.iscrowd.sum()),
        "heights": _spread(data.sizes_N2[:, 0]),
        "widths": _spread(data.sizes_N2[:, 1]),
        "objects_per_picture": _spread(per_picture),
        "object_sides": _spread(objects.sides_A),
        "classes": {f"{name}": int(count) for name, count in zip(data.class_names, counts, strict=True)},
    }


def _spread(values: NDArray[Any]) -> dict[str, float]:
    """Smallest, a tenth, middle, nine tenths and largest."""
    names = ("min", "p10", "median", "p90", "max")
    if not len(values):
        return dict.fromkeys(names, 0.0)
    return {
        name: round(float(value), 2)
        for name, value in zip(names, np.quantile(values, (0, 0.1, 0.5, 0.9, 1)), strict=True)
    }


def show_report(report: DataReport, data: str, model: str, console: Console) -> None:
    """Print a report as tables."""
    _show_splits(report, data, console)
    if report.fit:
        _show_fit(report, model, console)
    if report.findings:
        console.print("[bold]Findings[/bold]", markup=True)
        for kind, findings in by_kind(report.findings).items():
            word = "[red]harmful[/red] " if findings[0].harmful else "[yellow]harmless[/yellow]"
            console.print(word, end=" ", markup=True)
            console.print(counted(kind, findings), soft_wrap=True)
        first = next(iter(report.failures), None)
        if first is not None:
            console.print(f"training would stop at once: {first.message}", soft_wrap=True)
    else:
        console.print("nothing found that is wrong")


def _show_splits(report: DataReport, data: str, console: Console) -> None:
    table = Table(title=data, title_justify="left")
    table.add_column("")
    for split in report.splits:
        table.add_column(split, justify="right")
    rows = {
        "pictures": lambda s: f"{s['pictures']:,}",
        "  without objects": lambda s: f"{s['pictures_without_objects']:,}",
        "objects": lambda s: f"{s['objects']:,}",
        "crowds": lambda s: f"{s['crowds']:,}",
        "width, px": lambda s: _range(s["widths"]),
        "height, px": lambda s: _range(s["heights"]),
        "objects per image": lambda s: _range(s["objects_per_picture"]),
        "object side, px": lambda s: _range(s["object_sides"]),
    }
    for title, cell in rows.items():
        table.add_row(title, *(cell(values) for values in report.splits.values()))
    names: dict[str, int] = {}
    for values in report.splits.values():
        for name, count in values["classes"].items():
            names[name] = names.get(name, 0) + count
    table.add_section()
    ordered = sorted(names, key=lambda name: -names[name])
    for name in ordered[:MOST_CLASSES]:
        table.add_row(name, *(f"{values['classes'].get(name, 0):,}" for values in report.splits.values()))
    if len(ordered) > MOST_CLASSES:
        table.add_row(f"and {len(ordered) - MOST_CLASSES} more", *("" for _ in report.splits))
    console.print(table)
    console.print("ranges are from the smallest to the largest, with the median between; sides are of boxes' areas")


def _show_fit(report: DataReport, model: str, console: Console) -> None:
    fit, advice = report.fit, report.advice
    table = Table(title=f"objects on the levels of {model}, in pixels of its input", title_justify="left")
    for name in ("level", "grid", "sizes", "objects", "share"):
        table.add_column(name, justify="left" if name == "level" else "right")
    for level in fit["levels"]:
        table.add_row(
            level["level"],
            f"{level['grid']} x {level['grid']}",
            f"{level['low']:g}-{level['high']:g}",
            f"{level['objects']:,}",
            f"{level['objects'] / max(1, fit['objects']):.1%}",
        )
    console.print(table)
    console.print(
        f"{fit['no_level']} of {fit['objects']} objects are of no level's size; {fit['no_cell']} lose all their cells "
        f"to smaller ones; {fit['cells_contested']} of {fit['cells_claimed']} claimed cells are claimed more than once",
        soft_wrap=True,
    )
    if advice["reasons"]:
        for reason in advice["reasons"]:
            console.print(f"suggestion: {reason}", soft_wrap=True)
    else:
        console.print(
            f"the settings of {model} suit these data: image size {advice['image_size']}, "
            f"batch size up to {advice['batch_size']} and more",
            soft_wrap=True,
        )


def _range(spread: Mapping[str, float]) -> str:
    low, middle, high = (f"{spread[name]:,.0f}" for name in ("min", "median", "max"))
    return low if low == high else f"{low} .. {middle} .. {high}"
