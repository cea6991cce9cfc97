"""Metrics as people read them."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text


def class_table(metrics: Mapping[str, Any], title: str) -> Table:
    """One row per class, all classes last.

    Args:
        metrics: what `Metrics.to_dict` gives.
        title: what was measured.
    """
    table = Table(title=Text(f"{title}: mask AP, at most {metrics['max_dets']} per image"), title_justify="left")
    table.add_column("class")
    for name in ("objects", "AP", "AP50", "AP75"):
        table.add_column(name, justify="right")
    for name, values in metrics["per_class"].items():
        # Text, not markup: a name in brackets is a name, whether the console reads markup or not.
        table.add_row(Text(name), *_row(values))
    table.add_section()
    table.add_row("all", *_row(metrics), style="bold")
    return table


def _row(values: Mapping[str, Any]) -> list[str]:
    return [f"{values['objects']:,}", *(number(values[name]) for name in ("AP", "AP50", "AP75"))]


def number(value: float | None) -> str:
    """A metric for a table, "-" where it is undefined."""
    return "-" if value is None else f"{value:.3f}"
