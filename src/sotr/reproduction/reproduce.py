"""`sotr reproduce`: train and measure the rows of the paper's ablation tables under one recipe."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from sotr.curation.synthetic import write_synthetic
from sotr.data.coco import CocoDataset, find_data
from sotr.errors import SOTRError
from sotr.evaluation import evaluate
from sotr.files import atomic_write
from sotr.model.segmenter import load
from sotr.reproduction.costs import measure
from sotr.reproduction.report import NOTES, RowResults, table_markdown
from sotr.reproduction.tables import BASELINE, SCALES, TABLES, Scale, Table
from sotr.training import TrainingInterrupted, train
from sotr.training.recipe import Recipe

LAST_ONLY = 1_000_000
"""Epochs between validations: only the last weights are measured, for the best of many would flatter every row."""


@dataclass(frozen=True)
class ReproductionSummary:
    """Where the results are."""

    out: Path
    """Folder with all that was written."""
    reports: list[Path]
    """A Markdown file per table."""


def reproduce(
    tables: Sequence[str],
    scale: Literal["tiny", "full"] = "tiny",
    data: str | None = None,
    seeds: int = 2,
    out: str = "reproduction",
    rows: Sequence[str] | None = None,
    backbone_weights: str | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    workers: int = 0,
    quiet: bool = False,
) -> ReproductionSummary:
    """Train and measure the rows of the paper's Tables 1 to 7 under one recipe, and write the tables as Markdown.

    What is done is kept: the same command continues after an interruption, and rows that several tables share are
    trained once. OUT/table-N.md is renewed after each run. OUT/recipe.yaml and OUT/rows/ROW/model.yaml are written
    first; OUT/rows/ROW/seed-N is a row's run folder, with the result beside it as JSON. OUT/commands.sh has the
    `sotr train` command of each row and seed, for a cluster that runs them apart; give this command again to measure
    what they have trained.

    Args:
        tables: numbers of tables, 1 to 7.
        scale: full is the paper's network and schedule (ResNet-101, 300,000 iterations of 8 images: a cluster);
            tiny a small network with a schedule of minutes on a CPU core.
        data: folder of the data set, in any of the layouts of `sotr train`, with validation images. Without it, tiny
            makes synthetic images, always the same, in OUT/data.
        seeds: runs per row, with the seeds 0, 1 and so on.
        out: folder of the results.
        rows: train these rows alone, such as '[baseline, pure-twin]'; default all of the tables.
        backbone_weights: first weights of the backbones, as for `sotr train`: imagenet, or none. With weights, scale
            full takes the recipe paper-imagenet. Default: none.
        device: auto, cpu, cuda, cuda:1 or mps.
        devices: devices of that kind to train on, with a process each.
        nodes: machines, each with that many devices. With several, start the lines of OUT/commands.sh on each of them
            with torchrun or srun; give this command again to measure what they have trained.
        workers: processes that load images; 0 loads them in the main process.
        quiet: print nothing but errors.

    Raises:
        SOTRError: something in the input cannot be used, or OUT holds the results of other settings.
        TrainingInterrupted: after Ctrl-C or SIGTERM.
    """
    chosen = _chosen_tables(tables)
    if scale not in SCALES:
        raise SOTRError(f"there is no scale {scale!r}; choose one of {', '.join(SCALES)}")
    if seeds < 1:
        raise SOTRError(f"seeds is {seeds}; it must be at least 1")
    for name, value in (("devices", devices), ("nodes", nodes)):
        if value < 1:
            raise SOTRError(f"{name} is {value}; it must be at least 1")
    names = _rows(chosen)
    if unknown := sorted(set(rows or ()) - set(names)):
        raise SOTRError(f"there is no row {unknown[0]!r} in these tables; choose among {', '.join(names)}")
    console = Console(stderr=True, quiet=quiet, soft_wrap=True, highlight=False, markup=False)
    weights = None if backbone_weights == "none" else backbone_weights
    work = _Work(Path(out), SCALES[scale], data, weights, device, devices, nodes, workers, quiet)
    todo = [(row, seed) for seed in range(seeds) for row in names if rows is None or row in rows]
    work.prepare(todo)
    for number, (row, seed) in enumerate(todo, start=1):
        if not work.result_file(row, seed).is_file():
            console.print(f"run {number} of {len(todo)}: {row}, seed {seed}")
            work.run(row, seed)
        if not work.costs_file(row).is_file():
            work.measure_costs(row, seed)
        reports = work.report(chosen, seeds)
    console.print(f"written: {', '.join(map(str, reports))}")
    return ReproductionSummary(work.out, reports)


def _chosen_tables(tables: Sequence[str]) -> list[Table]:
    known = {str(number): table for number, table in TABLES.items()}
    for name in tables:
        if str(name) not in known:
            raise SOTRError(f"there is no table {name!r} to reproduce; choose among {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(map(str, tables))]


def _rows(tables: Iterable[Table]) -> list[str]:
    """The rows of the tables, each once, the baseline first."""
    names = {row.name for table in tables for row in table.rows}
    return sorted(names, key=lambda name: (name != BASELINE, name))


@dataclass(frozen=True)
class _Work:
    """A folder of results, and the settings under which they come about."""

    out: Path
    scale: Scale
    given_data: str | None
    backbone_weights: str | None
    device: str
    devices: int
    nodes: int
    workers: int
    quiet: bool

    @property
    def data(self) -> str:
        return self.given_data if self.given_data is not None else str(self.out / "data")

    @property
    def recipe_file(self) -> Path:
        return self.out / "recipe.yaml"

    def folder(self, row: str) -> Path:
        return self.out / "rows" / row

    def model_file(self, row: str) -> Path:
        return self.folder(row) / "model.yaml"

    def run_folder(self, row: str, seed: int) -> Path:
        return self.folder(row) / f"seed-{seed}"

    def result_file(self, row: str, seed: int) -> Path:
        return self.folder(row) / f"seed-{seed}.json"

    def costs_file(self, row: str) -> Path:
        return self.folder(row) / "costs.json"

    def prepare(self, todo: Sequence[tuple[str, int]]) -> None:
        """Write data, recipe, the rows' configurations and commands, or find that they are there.

        Args:
            todo: (row, seed) of the runs.
        """
        if self.given_data is None and self.scale.name != "tiny":
            raise SOTRError("only the scale tiny makes its own images; give a data set with --data")
        settings: dict[str, Any] = {
            "data": "synthetic" if self.given_data is None else str(Path(self.given_data).resolve()),
            "recipe": self._recipe().to_dict(),
            "baseline": self.scale.baseline.to_dict(),
        }
        if self.backbone_weights is not None:
            settings["backbone weights"] = self.backbone_weights
        file = self.out / "settings.json"
        if file.is_file():
            before = _read_json(file)
            different = [name for name in {**settings, **before} if settings.get(name) != before.get(name)]
            if different:
                raise SOTRError(
                    f"{self.out} holds results with another {', another '.join(different)}; give another folder with "
                    "--out"
                )
        if self.given_data is None and not Path(self.data).exists():
            write_synthetic(
                self.data, train=1200, val=200, height=96, width=96, max_objects=4, classes=2, quiet=self.quiet
            )
        self._splits()
        _write_yaml(self.recipe_file, settings["recipe"])
        _write_json(file, settings)
        for row, _ in todo:
            _write_yaml(self.model_file(row), self.scale.config(row).to_dict())
        with atomic_write(self.out / "commands.sh", "w") as commands:
            commands.writelines(shlex.join(["sotr", *self._command(row, seed)]) + "\n" for row, seed in todo)

    def _recipe(self) -> Recipe:
        name = self.scale.recipe if self.backbone_weights is None else self.scale.recipe_with_weights
        beside = Path(__file__).parent / name
        recipe = Recipe.load(beside if beside.is_file() else name)
        return replace(recipe, validate_every=LAST_ONLY)

    def run(self, row: str, seed: int) -> None:
        """Train and measure a row; what an interruption left is continued."""
        run = self.run_folder(row, seed)
        # A resumed run takes its settings from its folder.
        resume = (run / "checkpoints" / "last.ckpt").is_file()
        try:
            if self.nodes > 1:
                self._check_trained(row, seed)
            elif self.devices == 1:
                settings: dict[str, Any] = {"resume": True} if resume else self._settings(row, seed)
                train(self.data, out=str(run), device=self.device, workers=self.workers, quiet=self.quiet, **settings)
            elif code := _run([sys.executable, "-m", "sotr.cli", *self._command(row, seed, resume)]):
                if code == 2:
                    raise SOTRError(f"{row}, seed {seed}: sotr train refused its input, see above")
                raise TrainingInterrupted(f"sotr train ended with exit code {code}", code)
        except TrainingInterrupted as interrupt:
            message = f"{row}, seed {seed}, {interrupt}; or give the same command again"
            raise TrainingInterrupted(message, interrupt.exit_code) from None
        metrics = evaluate(self.data, run, device=self.device, workers=self.workers, quiet=True)
        run_settings = _read_json(run / "run.json")
        surroundings = {name: run_settings[name] for name in ("device", "precision", "versions")}
        _write_json(self.result_file(row, seed), {"row": row, "seed": seed, "metrics": metrics, **surroundings})

    def _check_trained(self, row: str, seed: int) -> None:
        if not (self.run_folder(row, seed) / "metrics.json").is_file():  # written after the model
            raise SOTRError(
                f"{row}, seed {seed} is not trained yet: start its line of {self.out / 'commands.sh'} on each of the "
                f"{self.nodes} machines with torchrun or srun, then give this command again"
            )

    def _settings(self, row: str, seed: int) -> dict[str, Any]:
        """What `train` is told of a row, beyond data and devices."""
        settings = {"model": str(self.model_file(row)), "recipe": str(self.recipe_file), "seed": seed}
        return settings if self.backbone_weights is None else settings | {"backbone_weights": self.backbone_weights}

    def _command(self, row: str, seed: int, resume: bool = False) -> list[str]:
        """The same on the command line."""
        values = {} if resume else self._settings(row, seed)
        values |= {"out": str(self.run_folder(row, seed)), "device": self.device, "devices": self.devices}
        values |= {"nodes": self.nodes, "workers": self.workers}
        flags = [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        return ["train", self.data, *flags, *(["--resume"] if resume else []), *(["--quiet"] if self.quiet else [])]

    def measure_costs(self, row: str, seed: int) -> None:
        """Measure what a trained row costs."""
        segmenter = load(self.run_folder(row, seed), self.device)
        train_data, val_data = self._splits()
        _write_json(self.costs_file(row), asdict(measure(segmenter, train_data, val_data, self._recipe())))

    def _splits(self) -> tuple[CocoDataset, CocoDataset]:
        splits = find_data(self.data)
        if splits.train is None or splits.val is None:
            raise SOTRError(f"{self.data} must have images to train on and others to validate on")
        return splits.train, splits.val

    def report(self, tables: Sequence[Table], seeds: int) -> list[Path]:
        """Write the tables as far as results are there."""
        results = {row: self._results(row, seeds) for row in _rows(tables)}
        costs = [found.costs for found in results.values() if found.costs is not None]
        batch = f" of {costs[0]['batch_size']} images" if costs else ""
        reports = []
        for table in tables:
            path = self.out / f"table-{table.number}.md"
            text = table_markdown(table, results, seeds, self._title())
            with atomic_write(path, "w") as file:
                file.write(f"{text}\n{NOTES.format(batch=batch)}")
            reports.append(path)
        return reports

    def _results(self, row: str, seeds: int) -> RowResults:
        files = {seed: self.result_file(row, seed) for seed in range(seeds)}
        costs = self.costs_file(row)
        return RowResults(
            {seed: _read_json(file)["metrics"] for seed, file in files.items() if file.is_file()},
            _read_json(costs) if costs.is_file() else None,
            self.scale.changes()[row],
            f"rows/{row}/model.yaml",
        )

    def _title(self) -> str:
        recipe = self._recipe()
        length = f"{recipe.iterations} iterations" if recipe.iterations else f"{recipe.epochs} epochs"
        return (
            f"Scale {self.scale.name}: {self.scale.baseline.backbone}, width {self.scale.baseline.width}, "
            f"{self.scale.baseline.depth} layers, shortest edge {self.scale.baseline.image_size} px; {length} of "
            f"{recipe.batch_size} images ([recipe](recipe.yaml)); data: "
            f"{'synthetic' if self.given_data is None else Path(self.given_data).name}."
        )


def _run(command: Sequence[str]) -> int:
    """The exit code of a process that is left the time to save, whatever ends this one."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal sends it to both
        return process.wait() or 130
    except SystemExit:
        process.terminate()
        process.wait()
        raise


def _write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        yaml.safe_dump(dict(values), file, sort_keys=False)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        json.dump(values, file, indent=2, ensure_ascii=False)


def _read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
