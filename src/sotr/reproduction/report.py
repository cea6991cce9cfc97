"""The tables as Markdown: our numbers with their spread beside the paper's, and what they say of its ordering."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sotr.reproduction.tables import BASELINE, Table

METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")

CERTAIN = 2.0
"""A difference of so many standard errors counts; a smaller one is noise."""


class RowResults(NamedTuple):
    """What has been measured of a row."""

    metrics: Mapping[int, Mapping[str, float | None]]
    """Seed -> metrics in 0..1, of the finished runs."""
    costs: Mapping[str, float] | None
    """What `costs.Costs` holds."""
    changes: Mapping[str, Any]
    """Settings that differ from the baseline's."""
    model_file: str
    """Where the whole configuration is."""


def table_markdown(table: Table, results: Mapping[str, RowResults], seeds: int, title: str) -> str:
    """One table.

    Args:
        table: of the paper.
        results: row name -> its results.
        seeds: runs that a row should have.
        title: what was trained on what, for the line under the heading.
    """
    done = sum(len(results[row.name].metrics) for row in table.rows)
    wanted = seeds * len(table.rows)
    lines = [f"## Table {table.number}: {table.title}", "", title]
    if done < wanted:
        lines += ["", f"**Unfinished: {done} of {wanted} runs.** The same command goes on."]
    paper_columns = [name for name in (*METRICS, "ms", "memory") if any(name in row.paper for row in table.rows)]
    header = ["row", "settings", "seeds", *METRICS, "parameters", "GMAC", "memory (MB)", "ms"]
    header += [f"paper: {name}" for name in paper_columns]
    lines += ["", _line(header), _line(["---", "---", *["---:"] * (len(header) - 2)])]
    for row in table.rows:
        found = results[row.name]
        cells = [row.label, _settings(found), ", ".join(map(str, found.metrics)) or "-"]
        cells += [_mean_and_spread([metrics[name] for metrics in found.metrics.values()]) for name in METRICS]
        cells += _costs(found.costs)
        cells += [f"{row.paper[name]:g}" if name in row.paper else "-" for name in paper_columns]
        lines.append(_line(cells))
    lines += ["", *_comparison(table, results), ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _settings(found: RowResults) -> str:
    changes = ", ".join(f"{name}: {value!r}" for name, value in found.changes.items()) or "baseline"
    return f"[{changes}]({found.model_file})"


def _mean_and_spread(values: Sequence[float | None]) -> str:
    """In percent: the mean and, of several runs, their standard deviation."""
    percent = [100 * value for value in values if value is not None]
    if not percent:
        return "-"
    spread = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.1f}{spread}"


def _costs(costs: Mapping[str, float] | None) -> list[str]:
    if costs is None:
        return ["-"] * 4
    return [
        f"{costs['parameters'] / 1e6:.2f}M",
        f"{costs['macs'] / 1e9:.3g}",
        f"{costs['memory']:,.0f}",
        f"{costs['ms']:.0f}",
    ]


def _comparison(table: Table, results: Mapping[str, RowResults]) -> list[str]:
    """Each row's AP less the baseline's, with what that says of the paper's ordering."""
    points = {
        row.name: [100 * (metrics["AP"] or 0.0) for metrics in results[row.name].metrics.values()] for row in table.rows
    }
    lines = ["| row | AP less the baseline's | paper | ordering |", "|---|---:|---:|---|"]
    baseline = next(row for row in table.rows if row.name == BASELINE)
    deviation = _pooled_deviation(list(points.values()))
    for row in table.rows:
        if row.name == BASELINE:
            continue
        paper = row.paper["AP"] - baseline.paper["AP"]
        ours, theirs = points[row.name], points[BASELINE]
        if not ours or not theirs:
            lines.append(_line([row.label, "-", f"{paper:+.1f}", "not measured yet"]))
            continue
        difference = statistics.mean(ours) - statistics.mean(theirs)
        text = f"{difference:+.1f}"
        verdict = "one run says nothing of noise"
        if deviation is not None:
            error = deviation * math.sqrt(1 / len(ours) + 1 / len(theirs))
            text += f" ± {error:.1f}"
            verdict = "within noise"
            if abs(difference) > CERTAIN * error:
                verdict = "as in the paper" if (difference > 0) == (paper > 0) else "the other way round"
        lines.append(_line([row.label, text, f"{paper:+.1f}", verdict]))
    return lines


def _pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation of a run around its row's mean, over all rows; None without a row of several runs."""
    freedom = sum(len(group) - 1 for group in groups if group)
    if not freedom:
        return None
    squares = sum((value - statistics.mean(group)) ** 2 for group in groups if group for value in group)
    return math.sqrt(squares / freedom)


NOTES = """\
AP in percent, mean ± standard deviation over the seeds. Differences ± their standard error, from the deviation of runs
around their row's mean, pooled over the table; "within noise" are those of less than two such errors. Parameters and
GMAC as `sotr info` counts them (1 MAC is one multiplication with its addition) for the input of a training batch.
Memory is that of one training step{batch} in float32: on CUDA the peak that was allocated, elsewhere parameters,
gradients and what the forward pass keeps for the backward pass. ms is the median time from a loaded image to its
objects, one at a time. The paper's AP_S, AP_M and AP_L come, it seems, from areas of all-zero boxes and are not
comparable; ours are those of the masks.
"""
"""What the columns mean; {batch} says of how many images."""
