"""Images of benchmark results."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import Report, Row
from sotr.files import atomic_write

PARTS = ("pre-processing", "data", "network", "forward", "loss", "backward", "decoding")
"""Order in which a bar's parts are stacked."""


def draw(report: Report, path: Path) -> None:
    """Curves over the size where rows have one, stacked bars elsewhere; a PNG."""
    if any("cells" in row for row in report.rows):
        figure = _curves(report)
    else:
        figure = _bars(report)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight", format="png")
    plt.close(figure)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def _curves(report: Report) -> Figure:
    """Seconds, and saved memory, over the cells per side of square maps, on logarithmic axes."""
    rows = [row for row in report.rows if isinstance(row.get("side_cells"), int)]
    panels = {"training step, seconds": "median", "saved for the backward pass, MiB": "saved_mib"}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
    for axis, (title, column) in zip(axes, panels.items(), strict=True):
        for side in dict.fromkeys(str(row["side"]) for row in rows):
            own = [row for row in rows if row["side"] == side and row["part"] == "step"]
            x = [float(row["side_cells"] or 0) for row in own]
            axis.plot(x, [float(row[column] or 0) for row in own], marker="o", markersize=4, label=side)
        _label(axis, title)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("cells per side N of a square map")
        ticks = sorted({int(row["side_cells"] or 0) for row in rows})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axes[0].legend(frameon=False)
    figure.suptitle(_caption(report), fontsize=9)
    figure.tight_layout()
    return figure


def _bars(report: Report) -> Figure:
    """A bar per case and side, of its parts, with the quartiles of the total."""
    rows = [row for row in report.rows if "median" in row]
    bars = list(dict.fromkeys((str(row["case"]), str(row["side"])) for row in rows))
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.36 * len(bars)))
    colors = {part: f"C{index}" for index, part in enumerate(PARTS)}
    for place, bar in enumerate(bars):
        own = {str(row["part"]): row for row in rows if (row["case"], row["side"]) == bar}
        left = 0.0
        for part in PARTS:
            if part in own:
                width = float(own[part]["median"] or 0)
                axis.barh(place, width, left=left, color=colors[part], label=part, height=0.65)
                left += width
        total = own["total"]
        if not left:
            axis.barh(place, float(total["median"] or 0), color="tab:blue", height=0.65)
        _whisker(axis, place, total)
    axis.set_yticks(range(len(bars)), [f"{case}  {side}".strip() for case, side in bars])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    _label(axis, _caption(report))
    axis.set_xlabel("seconds, median; whiskers: quartiles of the total")
    handles = {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        axis.legend(handles.values(), handles.keys(), frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


def _whisker(axis: Axes, place: int, total: Row) -> None:
    median, low, high = (float(total[key] or 0) for key in ("median", "low", "high"))
    axis.errorbar(median, place, xerr=[[median - low], [high - median]], color="0.25", capsize=3, linewidth=1)
    axis.annotate(f"{median:.3g}", (high, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)


def _label(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)


def _caption(report: Report) -> str:
    machine = report.machine
    return f"python -m benchmarks {report.name}, {report.precision}: {machine.device}, {machine.threads} threads"
