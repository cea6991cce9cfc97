"""The `predict` command: pictures, folders and globs in; overlays, COCO JSON and tables out."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sotr.data.images import list_images, load_image
from sotr.errors import SOTRError
from sotr.instances import Instances
from sotr.loading import load
from sotr.prediction.output import (
    MASKS_FOLDER,
    OVERLAY_SUFFIX,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    TABLE_FILE,
    is_earlier_result,
    output_names,
    printable,
    relative_names,
    result_files,
    write_masks,
    write_png,
)
from sotr.predictor import Predictor

MAX_ROWS = 30
"""Rows of a printed table, and lines of a printed list of failures; the rest is counted."""


@dataclass(frozen=True)
class PredictionSummary:
    """What `predict` did."""

    pictures: int
    """Pictures that were segmented."""
    objects: int
    """Objects found in them."""
    failures: list[tuple[str, str]]
    """(file, reason) of each picture that could not be read."""
    out: Path
    """Folder with the results."""


def predict(
    pictures: Sequence[str | Path],
    model: str | Path | Predictor = "nuclei",
    out: str | Path = "predictions",
    score: float = 0.3,
    max_objects: int | None = None,
    batch_size: int = 1,
    device: str = "auto",
    overlays: bool = True,
    masks: bool = False,
    csv: bool = False,
    quiet: bool = False,
) -> PredictionSummary:
    """Segment pictures and write the results to a folder.

    Written are OUT/predictions.json, a COCO data set (info, categories, images, annotations with their `score`) that
    labelling tools import; OUT/results.json, the same objects as the plain list of COCO results that evaluation
    tools read, with the same image ids; OUT/NAME.overlay.png for each picture; and on request masks and a CSV. NAME is
    the picture's name without its ending, or its whole path if two pictures share that. Categories have the ids of the
    model's training data. Masks refer to the upright picture (EXIF rotation applied). Pictures are handled one batch
    at a time, so memory does not grow with their number. Earlier overlays and masks in OUT are not segmented again.

    Args:
        pictures: files, folders (searched recursively) and glob patterns.
        model: a bundled model, a model or training run folder, a hub id, a file that `sotr export` wrote, or (in
            Python) a loaded model, which stays on its device.
        out: folder for the results; files of the same name are replaced.
        score: leave out objects below this score, 0..1.
        max_objects: at most so many objects per picture, best first; by default what the model was saved with.
        batch_size: pictures that go through the network together; more than 1 is quicker on a GPU if they have the
            same size, and changes results slightly if they do not.
        device: auto, cpu, cuda, cuda:1, mps.
        overlays: write each picture with its objects drawn on it.
        masks: write each object's mask to OUT/masks/NAME/000.png and so on, best score first.
        csv: write one line per object to OUT/objects.csv.
        quiet: print nothing but the pictures that failed.

    Returns:
        Counts, and the pictures that could not be read, which are skipped.

    Raises:
        SOTRError: an input does not exist or holds no pictures, a setting is out of range, the model cannot be used,
            or the results cannot be written.
    """
    started = time.perf_counter()
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise SOTRError(f"{out} is a file; give a folder for the results with --out")
    inputs = [pictures] if isinstance(pictures, (str, Path)) else list(pictures)
    named = {Path(item) for item in inputs}
    found = list_images(inputs)
    paths = [path for path in found if path in named or not is_earlier_result(path, out)]
    if not paths:
        raise SOTRError(f"only results of an earlier run were found, in {out}; name the pictures to segment")
    root, file_names = relative_names(paths)
    names = output_names(paths, file_names, out)
    segmenter = model if isinstance(model, Predictor) else load(model, device)
    # No picture, but the limits are checked before anything is written.
    segmenter.predict([], score=score, max_objects=max_objects, batch_size=batch_size)

    console = Console(quiet=quiet, highlight=False)
    if len(paths) < len(found):
        console.print(f"{len(found) - len(paths)} overlays and masks of an earlier run in {escape(str(out))} left out")
    report = _Report(one_class=len(segmenter.class_names) == 1)
    failures: list[tuple[str, str]] = []
    info = {
        "description": "objects found by SOTR",
        "model": segmenter.name,
        "version": version("sotr"),
        "score": score,
        "images_root": str(root),
    }
    try:
        with (
            _progress(len(paths), quiet) as advance,
            result_files(out, info, segmenter.class_names, segmenter.category_ids, csv) as files,
        ):
            for start in range(0, len(paths), batch_size):
                chosen = range(start, min(start + batch_size, len(paths)))
                readable = [(i, image) for i in chosen if (image := _load(paths[i], failures)) is not None]
                predicted = segmenter.predict(
                    [image for _, image in readable], score=score, max_objects=max_objects, batch_size=batch_size
                )
                for (i, image), instances in zip(readable, predicted, strict=True):
                    files.add(file_names[i], instances)
                    if overlays:
                        write_png(out / f"{names[i]}{OVERLAY_SUFFIX}", instances.draw(image))
                    if masks:
                        write_masks(out / MASKS_FOLDER / names[i], instances)
                    report.add(file_names[i], instances)
                advance(len(chosen))
    except OSError as error:
        raise SOTRError(
            f"cannot write to {out}: {error.strerror or error}; choose another folder with --out"
        ) from error

    if report.pictures:
        console.print(report.table())
    written = [PREDICTIONS_FILE, RESULTS_FILE] + [TABLE_FILE] * csv
    extra = [_counted(report.pictures, "overlay")] * overlays + [f"masks in {MASKS_FOLDER}/"] * masks
    console.print(
        f"{report.pictures} of {_counted(len(paths), 'picture')} in {time.perf_counter() - started:.1f} s; "
        f"in {escape(str(out))}: {', '.join(written + extra)}",
        soft_wrap=True,
    )
    _print_failures(failures)
    return PredictionSummary(report.pictures, report.objects, failures, out)


def _load(path: Path, failures: list[tuple[str, str]]) -> NDArray[np.uint8] | None:
    """The picture, or None and a new line in `failures`."""
    try:
        return load_image(path)
    except SOTRError as error:
        failures.append((printable(str(path)), printable(str(error).removeprefix(f"{path}: "))))
        return None


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error for more than one picture; yields the function that moves it."""
    columns = (
        TextColumn("segmenting"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # Where it is not a terminal the bar would leave an empty line.
    disable = quiet or total < 2 or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _print_failures(failures: Sequence[tuple[str, str]]) -> None:
    if not failures:
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{len(failures)} pictures could not be read:" if len(failures) > 1 else "1 picture could not be read:"
    )
    for path, reason in failures[:MAX_ROWS]:
        console.print(f"  {path}: {reason}")
    if len(failures) > MAX_ROWS:
        console.print(f"  ... and {len(failures) - MAX_ROWS} more")


@dataclass
class _Report:
    """What the printed table needs: the first pictures' rows, and sums over all."""

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
        covered = int(coco_mask.area(coco_mask.merge(list(instances.rles)))) if len(instances) else 0
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
        """Of one picture the objects, of several the pictures; with totals."""
        if self.pictures == 1 and self.first is not None:
            return self._objects_table(self.first)
        table = Table(show_footer=self.pictures > 1)
        table.add_column("picture", f"{self.pictures:,} pictures", overflow="fold")
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
        table.add_column("object", _counted(len(instances), "object"), justify="right")
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
