"""What `predict` says on the terminal."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sotr.data.sizes import MUCH_SHRUNK, compared, shrinking
from sotr.data.traits import DIM, Domain, Traits
from sotr.masks.run_lengths import runs_of
from sotr.results.instances import Instances
from sotr.tiling.columns import place, unite

MAX_ROWS = 30
"""Rows of a printed table, and lines of a printed list of failures; the rest is counted."""


@contextmanager
def progress(total: int | None, show: bool) -> Iterator[Callable[[float], None]]:
    """A progress bar with the rate, on standard error if that is a terminal; yields the function that moves it.

    Args:
        total: images or frames to come, if that is known.
        show: whether there is one at all.
    """
    columns = (
        TextColumn("segmenting"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # Where it is not a terminal the bar would leave an empty line.
    disable = not (show and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


class _Rate(ProgressColumn):
    """Images or frames per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def print_failures(failures: Sequence[tuple[str, str]], noun: str = "image") -> None:
    """List what could not be read on standard error."""
    if not failures:
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    console.print(f"{counted(len(failures), noun)} could not be read:")
    for path, reason in failures[:MAX_ROWS]:
        console.print(f"  {path}: {reason}")
    if len(failures) > MAX_ROWS:
        console.print(f"  ... and {len(failures) - MAX_ROWS} more")


@dataclass
class Remarks:
    """What may be wrong with the images as a model sees them; each kind becomes one line."""

    edges: tuple[int, int]
    """Shortest edge to which the model resizes images, and cap of the longest."""
    training_size: tuple[int, int] | None
    """Height and width of a common training image."""
    domain: Domain | None
    """How its training images look."""
    given_range: bool
    """Whether black and white were chosen, by the user or by the model."""
    tiled: bool
    shrunk: int = 0
    most_shrunk: float = MUCH_SHRUNK
    dim: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)

    def add(self, name: str, size: tuple[int, int], traits: Traits | None) -> None:
        """Look at one image of this height and width."""
        if not self.tiled and (factor := shrinking(*size, self.edges, self.training_size)) > MUCH_SHRUNK:
            self.shrunk, self.most_shrunk = self.shrunk + 1, max(self.most_shrunk, factor)
        if traits is None:
            return
        if not self.given_range and (self.domain.is_dim(traits) if self.domain else 0 < traits.peak < DIM):
            self.dim.append(name)
        elif self.domain is not None and (reasons := self.domain.unlike(traits)):
            self.unlike.append(name)
            self.reasons.update(reasons)

    def lines(self) -> list[str]:
        found = []
        if self.shrunk:
            found.append(
                f"{counted(self.shrunk, 'image')} shrunk by a factor of up to {self.most_shrunk:.1f} "
                f"{compared(self.training_size)}; to find small objects, use --tile auto"
            )
        if self.dim:
            found.append(
                f"{counted(len(self.dim), 'image')} with a small part of the range of values in use "
                f"({some(self.dim)}): objects may be missed; try --intensity-range 0%,99.9%"
            )
        if self.unlike:
            found.append(
                f"{counted(len(self.unlike), 'image')} unlike the model's training images in "
                f"{', '.join(sorted(self.reasons))} ({some(self.unlike)}): what was found there may mean nothing"
            )
        return found


def some(names: Sequence[str], most: int = 3) -> str:
    """The first of some names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


@dataclass
class Report:
    """What the printed table needs: the first images' rows, and sums over all."""

    one_class: bool
    pictures: int = 0
    objects: int = 0
    score_sum: float = 0.0
    area_sum: int = 0
    covered: int = 0
    pixels: int = 0
    rows: list[tuple[str, ...]] = field(default_factory=list)
    first: Instances | None = None

    def add(self, file_name: str, instances: Instances) -> None:
        pixels = instances.image_size[0] * instances.image_size[1]
        scores, area = float(instances.scores_I.sum()), int(instances.areas_I.sum())
        # Masks may overlap: what they cover together is their union.
        covered = _covered(instances)
        self.pictures += 1
        self.objects += len(instances)
        self.score_sum += scores
        self.area_sum += area
        self.covered += covered
        self.pixels += pixels
        if self.first is None:
            self.first = instances
        if len(self.rows) < MAX_ROWS:
            classes = ", ".join(f"{name} {count}" for name, count in list(instances.counts().items())[:4])
            more = ", ..." if len(instances.counts()) > 4 else ""
            numbers = self._numbers(len(instances), scores, area, covered, pixels)
            self.rows.append((escape(file_name), *numbers, escape(classes) + more))

    @staticmethod
    def _numbers(objects: int, score_sum: float, area: int, covered: int, pixels: int) -> tuple[str, str, str, str]:
        """Count, mean score, mean area and covered part, as text."""
        if not objects:
            return "0", "-", "-", "0.0 %"
        return (
            f"{objects:,}",
            f"{score_sum / objects:.2f}",
            f"{area / objects:,.0f}",
            f"{100 * covered / pixels:.1f} %",
        )

    def _totals(self) -> tuple[str, str, str, str]:
        return self._numbers(self.objects, self.score_sum, self.area_sum, self.covered, max(1, self.pixels))

    def table(self) -> Table:
        """Of one image the objects, of several the images; with totals."""
        if self.pictures == 1 and self.first is not None:
            return self._objects_table(self.first)
        table = Table(show_footer=self.pictures > 1)
        table.add_column("image", f"{self.pictures:,} images", overflow="fold")
        for heading, total in zip(("objects", "mean score", "mean area px", "covered"), self._totals(), strict=True):
            table.add_column(heading, total, justify="right")
        columns = 5 if self.one_class else 6
        if not self.one_class:
            table.add_column("classes")
        for row in self.rows:
            table.add_row(*row[:columns])
        if self.pictures > len(self.rows):
            table.add_row(f"... and {self.pictures - len(self.rows):,} more")
        return table

    def _objects_table(self, instances: Instances) -> Table:
        table = Table(title=self.rows[0][0], title_justify="left", show_footer=True)
        _, mean_score, mean_area, covered = self._totals()
        table.add_column("object", counted(len(instances), "object"), justify="right")
        if not self.one_class:
            table.add_column("class")
        table.add_column("score", f"mean {mean_score}", justify="right")
        table.add_column("area px", f"mean {mean_area}", justify="right")
        table.add_column("box x, y, width, height", f"covered {covered}", justify="right")
        for row in instances[:MAX_ROWS].to_rows():
            x, y = int(row["x_min"]), int(row["y_min"])
            table.add_row(
                str(row["object"]),
                *([] if self.one_class else [escape(str(row["class"]))]),
                f"{row['score']:.2f}",
                f"{row['area']:,}",
                f"{x}, {y}, {int(row['x_max']) - x}, {int(row['y_max']) - y}",
            )
        if len(instances) > MAX_ROWS:
            table.add_row(f"... and {len(instances) - MAX_ROWS} more")
        return table


def _covered(instances: Instances) -> int:
    """Pixels inside any of the masks."""
    runs = runs_of([rle["counts"].encode("ascii") for rle in instances.rles], instances.image_size[0])
    origin, together = np.zeros((2, len(instances)), np.int64)
    return int(unite(place(runs, origin, origin), together, 1).areas[0])
