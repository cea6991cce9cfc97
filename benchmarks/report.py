"""What a benchmark found: as JSON per kind of machine, as Markdown, as an image, and against the last time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Machine, Spread
from sotr.errors import SOTRError
from sotr.files import atomic_write

Row = dict[str, str | int | float | None]
"""One line of a table; its keys are the columns."""


@dataclass(frozen=True)
class Report:
    """The findings of one sub-benchmark."""

    name: str
    what: str
    """What was timed, in a sentence or two."""
    machine: Machine
    quick: bool
    precision: str
    rows: list[Row]
    """Lines with `case` and `side`, which name them, `median`, `low`, `high` (seconds) and `runs`, and more."""
    findings: list[str] = field(default_factory=list)
    """Ratios and fits, a sentence each."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "what": self.what,
            "machine": self.machine.to_dict(),
            "quick": self.quick,
            "precision": self.precision,
            "rows": self.rows,
            "findings": self.findings,
        }

    def to_markdown(self) -> str:
        """A section with table and findings."""
        machine = self.machine
        versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
        device = "" if machine.device == machine.processor else f"{machine.device}; "
        lines = [
            f"### `python -m benchmarks {self.name}{' --quick' if self.quick else ''}"
            f"{'' if self.precision == 'float32' else f' --precision {self.precision}'}`",
            "",
            f"{self.what} {device}{machine.cores} cores of {machine.processor}, {machine.threads} threads; "
            f"{versions}; medians with quartiles.",
            "",
            *table(self.rows),
            "",
            *(f"- {finding}" for finding in self.findings),
        ]
        return "\n".join(lines).rstrip() + "\n"


def timed(case: str, side: str, part: str, times: Spread, **more: str | int | float | None) -> Row:
    """A row of seconds."""
    row: Row = {"case": case, "side": side, "part": part}
    return row | {"median": times.median, "low": times.low, "high": times.high, "runs": times.runs} | more


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as lines of a Markdown table; quartiles stand behind their median."""
    columns = list(dict.fromkeys(column for row in rows for column in row if column not in ("low", "high")))
    lines = ["| " + " | ".join("seconds" if column == "median" else column for column in columns) + " |"]
    lines.append("|" + "|".join("---" if column in ("case", "side", "part") else "---:" for column in columns) + "|")
    for row in rows:
        cells = []
        for column in columns:
            text = _number(row.get(column))
            if column == "median":
                text += f" ({_number(row['low'])} to {_number(row['high'])})"
            cells.append(text)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _number(value: str | int | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return str(value)


def results_file(folder: str | Path, machine: Machine) -> Path:
    """Where the findings of a kind of machine are kept."""
    return Path(folder) / f"{machine.kind}.json"


def save(report: Report, folder: str | Path) -> list[Path]:
    """Write the report into the folder: its section of the machine's JSON, and a Markdown page and a plot of its own.

    Returns:
        The files written.
    """
    path = results_file(folder, report.machine)
    everything = _read(path)
    everything[_key(report)] = report.to_dict()
    with atomic_write(path, "w") as file:
        json.dump(everything, file, indent=1)
        file.write("\n")
    stem = path.with_name(f"{path.stem}-{_key(report)}")
    page = stem.with_suffix(".md")
    with atomic_write(page, "w") as file:
        file.write(report.to_markdown())
    from benchmarks.plot import draw

    picture = stem.with_suffix(".png")
    draw(report, picture)
    return [path, page, picture]


def compare(report: Report, folder: str | Path) -> list[Row]:
    """How long each row takes now as a multiple of what the folder's results say; above 1 is slower now.

    Raises:
        SOTRError: there are no such results for this kind of machine.
    """
    path = results_file(folder, report.machine)
    before = _read(path).get(_key(report))
    if before is None:
        raise SOTRError(
            f"{path} holds no results of {_key(report)} to compare with; run the benchmark without compare first"
        )
    known = {_names(row): row for row in before["rows"] if "median" in row}
    rows: list[Row] = []
    for row in report.rows:
        old = known.get(_names(row))
        if old is not None and "median" in row:
            now, then = float(row["median"] or 0), float(old["median"])
            rows.append({
                "case": row["case"], "side": row["side"], "part": row["part"],
                "before": then, "now": now, "ratio": now / then if then else None,
            })  # fmt: skip
    return rows


def _names(row: Row) -> tuple[Any, Any, Any]:
    return row.get("case"), row.get("side"), row.get("part")


def _key(report: Report) -> str:
    return report.name + ("" if report.precision == "float32" else f"-{report.precision}")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SOTRError(f"{path} cannot be read: {error}; delete it to start anew") from None
    if not isinstance(content, dict):
        raise SOTRError(f"{path} holds no benchmark results; delete it to start anew")
    return content
