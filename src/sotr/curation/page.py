"""A checked data set as one self-contained HTML page: numbers, plots, findings and sample images."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sotr.curation.checks import CheckedSplit
from sotr.curation.findings import KINDS, Finding, by_kind
from sotr.curation.plots import COLOURS, bars, histogram, scatter
from sotr.curation.show import draw_truth
from sotr.curation.summary import DataReport
from sotr.errors import SOTRError
from sotr.files import atomic_write

SAMPLES, MARKED = 8, 4
"""Sample images of each split, and images for each kind of finding."""

MOST_FINDINGS = 200
"""Findings of a kind that are listed; the rest is counted."""

LONGEST = 480
"""Longest edge of a sample image, in pixels."""


def write_page(path: Path, data: str, model: str, report: DataReport, checked: Mapping[str, CheckedSplit]) -> None:
    """Write the page.

    Raises:
        SOTRError: `path` cannot be written.
    """
    parts = [_head(data, report), _numbers(report), _plots(report, checked, model), _findings(report, checked)]
    parts += [_samples(split, part) for split, part in checked.items()]
    page = _PAGE.replace("TITLE", escape(data)).replace("BODY", "\n".join(parts))
    try:
        with atomic_write(path, "w") as file:
            file.write(page)
    except OSError as error:
        raise SOTRError(f"{path} cannot be written: {error.strerror or error}") from None


def _head(data: str, report: DataReport) -> str:
    harmful, harmless = len(report.failures), len(report.findings) - len(report.failures)
    verdict = (
        f'<p class="bad">{harmful} harmful finding{"" if harmful == 1 else "s"}: training would stop at once.</p>'
        if harmful
        else '<p class="good">Nothing harmful: training can start.</p>'
    )
    return f"<h1>{escape(data)}</h1>{verdict}<p>{harmless} harmless finding{'' if harmless == 1 else 's'}.</p>"


def _numbers(report: DataReport) -> str:
    rows = [
        ("pictures", lambda s: f"{s['pictures']:,}"),
        ("without objects", lambda s: f"{s['pictures_without_objects']:,}"),
        ("objects", lambda s: f"{s['objects']:,}"),
        ("crowds", lambda s: f"{s['crowds']:,}"),
        ("classes with objects", lambda s: f"{sum(n > 0 for n in s['classes'].values())} of {len(s['classes'])}"),
        ("width, px", lambda s: _range(s["widths"])),
        ("height, px", lambda s: _range(s["heights"])),
        ("objects per image", lambda s: _range(s["objects_per_picture"])),
        ("object side, px", lambda s: _range(s["object_sides"])),
    ]
    head = "".join(f"<th>{split}</th>" for split in report.splits)
    body = "".join(
        f"<tr><td>{title}</td>" + "".join(f"<td>{cell(s)}</td>" for s in report.splits.values()) + "</tr>"
        for title, cell in rows
    )
    advice = ""
    if report.advice:
        items = report.advice["reasons"] or ["the model's settings suit these data"]
        advice = "<h2>Suggestions</h2><ul>" + "".join(f"<li>{escape(line)}</li>" for line in items) + "</ul>"
    return (
        f"<h2>In numbers</h2><table><tr><th></th>{head}</tr>{body}</table>"
        "<p class=note>Ranges: smallest, median, largest. An object's side is the square root of its box's area.</p>"
        + advice
    )


def _plots(report: DataReport, checked: Mapping[str, CheckedSplit], model: str) -> str:
    figures = []
    names = list(dict.fromkeys(name for split in report.splits.values() for name in split["classes"]))
    totals = {name: sum(split["classes"].get(name, 0) for split in report.splits.values()) for name in names}
    ordered = sorted(names, key=lambda name: -totals[name])
    shown = ordered[:40]
    title = "Objects per class" + (f" (the {len(shown)} most frequent of {len(ordered)})" if len(ordered) > 40 else "")
    classes = bars(title, shown, {s: [v["classes"].get(n, 0) for n in shown] for s, v in report.splits.items()})
    sides = {split: part.objects.sides_A for split, part in checked.items()}
    figures.append(histogram("Object side in the file, px", sides, log=True))
    if report.fit:
        bands = [(level["level"], level["low"], level["high"], level["objects"]) for level in report.fit["levels"]]
        fitted = {"train" if "train" in checked else next(iter(checked)): report.input_sides_A}
        figures.append(
            histogram(f"Object side in the input of {model}, px, and its levels' scale ranges", fitted, True, bands)
            + f"<p class=note>{report.fit['no_level']} of {report.fit['objects']} objects are of no level's size; "
            f"{report.fit['no_cell']} lose all their cells to smaller ones; {report.fit['cells_contested']} of "
            f"{report.fit['cells_claimed']} claimed cells are claimed more than once.</p>"
        )
    per_picture = {
        split: np.bincount(part.objects.pictures_A, minlength=len(part.data)).astype(np.float64)
        for split, part in checked.items()
    }
    figures.append(histogram("Objects per image", per_picture))
    figures.append(
        scatter(
            "Width and height of the images, px",
            {split: np.asarray(part.data.sizes_N2)[:, ::-1] for split, part in checked.items()},
        )
    )
    boxes = "".join(f"<div>{figure}</div>" for figure in [*figures, classes])
    return f"<h2>Plots</h2>{_legend(list(report.splits))}<div class=plots>{boxes}</div>"


def _legend(splits: Sequence[str]) -> str:
    return "<p>" + " ".join(f'<span style="color:{COLOURS[s]}">&#9632;</span> {s}' for s in splits) + "</p>"


def _findings(report: DataReport, checked: Mapping[str, CheckedSplit]) -> str:
    if not report.findings:
        return "<h2>Findings</h2><p>None.</p>"
    parts = ["<h2>Findings</h2>"]
    for kind, findings in by_kind(report.findings).items():
        word = "harmful" if KINDS[kind].harmful else "harmless"
        lines = "".join(f"<li>{escape(finding.message)}</li>" for finding in findings[:MOST_FINDINGS])
        if len(findings) > MOST_FINDINGS:
            lines += f"<li>and {len(findings) - MOST_FINDINGS:,} more</li>"
        parts.append(
            f"<details{' open' if KINDS[kind].harmful else ''}><summary><b class={word}>{word}</b> "
            f"{escape(KINDS[kind].title)}: <b>{len(findings):,}</b>; {escape(KINDS[kind].remedy)}</summary>"
            f"<ul>{lines}</ul>{_pictures_of(findings, checked)}</details>"
        )
    return "".join(parts)


def _pictures_of(findings: Sequence[Finding], checked: Mapping[str, CheckedSplit]) -> str:
    """Some of the images that findings are about, where they can be drawn."""
    wanted = dict.fromkeys((f.split, f.file) for f in findings if f.file is not None)
    drawn: list[str] = []
    for split, name in list(wanted)[: 2 * MARKED]:
        part = checked.get(split)
        if part is None or len(drawn) == MARKED:
            continue
        index = next((i for i, known in enumerate(part.data.file_names) if known == name), None)
        if index is not None and (figure := _figure(part, index)) is not None:
            drawn.append(figure)
    return f"<div class=samples>{''.join(drawn)}</div>" if drawn else ""


def _samples(split: str, part: CheckedSplit) -> str:
    count = min(SAMPLES, len(part.data))
    chosen = np.unique(np.linspace(0, len(part.data) - 1, count).round().astype(np.int64)).tolist()
    figures = [figure for index in chosen if (figure := _figure(part, index)) is not None]
    return f"<h2>Samples: {split}</h2><div class=samples>{''.join(figures)}</div>"


def _figure(part: CheckedSplit, index: int) -> str | None:
    try:
        picture = draw_truth(part.data, index, LONGEST)
    except SOTRError:  # it is among the findings
        return None
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="jpeg", quality=82)
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    count = int(part.data.offsets[index + 1] - part.data.offsets[index])
    caption = f"{escape(part.data.file_names[index])} &middot; {count} annotation{'' if count == 1 else 's'}"
    return f'<figure><img src="data:image/jpeg;base64,{source}" alt=""><figcaption>{caption}</figcaption></figure>'


def _range(spread: Mapping[str, Any]) -> str:
    low, middle, high = (f"{spread[name]:,.0f}" for name in ("min", "median", "max"))
    return low if low == high else f"{low} &ndash; {middle} &ndash; {high}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>TITLE</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 24px auto; padding: 0 20px; }
h1 { font-size: 24px; margin: 0 0 8px; overflow-wrap: anywhere; } h2 { font-size: 19px; margin: 32px 0 8px; }
table { border-collapse: collapse; } td, th { padding: 3px 14px 3px 0; text-align: right; }
td:first-child { text-align: left; color: #555; } tr { border-bottom: 1px solid #eee; }
.note { color: #666; font-size: 13px; } .good { color: #00695c; } .bad, .harmful { color: #b3261e; }
.harmless { color: #8a6100; } details { margin: 6px 0; } summary { cursor: pointer; }
details ul { max-height: 240px; overflow: auto; font-size: 13px; overflow-wrap: anywhere; }
.plots { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 24px; } .plots div { width: 560px; }
.plots svg { width: 100%; }
.samples { display: flex; flex-wrap: wrap; gap: 14px; } figure { margin: 0; width: 270px; }
figure img { width: 100%; display: block; } figcaption { font-size: 12px; color: #555; overflow-wrap: anywhere; }
</style></head><body>
BODY
</body></html>
"""
