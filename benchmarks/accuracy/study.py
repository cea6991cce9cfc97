"""What is compared and how, and the folder that keeps it: a file per row, so that nothing is trained twice."""

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sotr.config import SOTRConfig
from sotr.data.coco import CocoDataset, load_coco
from sotr.errors import SOTRError
from sotr.files import atomic_write
from sotr.training.recipe import Recipe

SHARES = (0.25, 0.5, 0.75)
"""Shares of the budget after which AP is measured, besides the end."""

MOST_LOSSES = 40
"""Points that a row keeps of its loss curve."""


@dataclass(frozen=True)
class Plan:
    """One training."""

    competitor: str
    budget_s: float
    """Processor seconds."""
    lr: float
    seed: int

    @property
    def key(self) -> str:
        """The name of its files."""
        return f"{self.competitor}-{self.budget_s:g}s-lr{self.lr:g}-seed{self.seed}"


@dataclass(frozen=True)
class Point:
    """AP with the averaged weights in the middle of a training, or at its end."""

    used_s: float
    """Processor seconds of training so far."""
    steps: int
    AP: float
    AP50: float


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    """Images of the epoch that are done."""
    used_s: float = 0.0
    """Processor seconds of training, without measuring."""
    wall_s: float = 0.0
    """Seconds on the clock of the same."""
    skipped: int = 0
    """Steps left out because the gradient was not finite."""
    measured: int = 0
    """How many of `SHARES` are measured."""
    losses: list[list[float]] = field(default_factory=list)
    """Processor seconds and loss of each step."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """`Point`s as plain values."""


@dataclass(frozen=True)
class Trained:
    """A training with what its network found in the validation images."""

    progress: Progress
    parameters: int
    results: list[dict[str, Any]]
    infer_s: float


@dataclass(frozen=True)
class Row:
    """A competitor after a budget."""

    competitor: str
    lr: float
    seed: int
    budget_s: float
    """Processor seconds (user and system) of training; measuring is not in it."""
    steps: int
    skipped: int
    """Steps that were left out because their gradient was not finite."""
    wall_s: float
    """Seconds on the clock of training. Far more than `budget_s` means that the machine was busy."""
    parameters: int
    AP: float
    AP50: float
    AP75: float
    AP_S: float | None
    AP_M: float | None
    AP_L: float | None
    found: float
    """Share of the true objects that some detection covers with IoU 0.5, of whatever class."""
    named: float
    """Of those, the share whose best such detection has the right class."""
    found_small: float | None
    """`found` of the objects below 32 x 32 pixels."""
    infer_s: float
    """Processor seconds per image of finding objects on one thread in plain PyTorch, files included."""
    errors: Mapping[str, float]
    """AP50 gained if all errors of a kind were repaired (`tide.KINDS`)."""
    curve: Sequence[Mapping[str, Any]]
    """`Point`s as plain values."""
    losses: Sequence[Sequence[float]]
    """Processor seconds and mean loss since the point before, `MOST_LOSSES` points at most."""

    @property
    def plan(self) -> Plan:
        """What was trained."""
        return Plan(self.competitor, self.budget_s, self.lr, self.seed)

    def summary(self) -> dict[str, Any]:
        """Plain values without the curves."""
        return {key: value for key, value in asdict(self).items() if key not in ("curve", "losses")}


@dataclass(frozen=True)
class Study:
    """What all trainings have in common, and the folder of their rows.

    In the folder are `settings.json`, `rows/` and `results/` (COCO results, compressed) with a file per training, and
    `checkpoints/` of those that are not complete.
    """

    folder: Path
    train: CocoDataset
    val: CocoDataset
    recipe: Recipe
    image_size: int
    max_dets: int
    weights: str | None
    """File of the backbone's first weights."""
    yolo_python: str | None

    def checkpoint(self, plan: Plan) -> Path:
        """The file, or for YOLO the folder, of a training that is not complete."""
        return self.folder / "checkpoints" / plan.key

    def row(self, plan: Plan) -> Row | None:
        """The row of a training that is complete."""
        path = self.folder / "rows" / f"{plan.key}.json"
        return _read_row(path) if path.is_file() else None

    def rows(self) -> list[Row]:
        """All rows, in the order of their names."""
        return [_read_row(path) for path in sorted((self.folder / "rows").glob("*.json"))]

    def results(self, plan: Plan) -> list[dict[str, Any]]:
        """The COCO results of a training that is complete."""
        with gzip.open(self.folder / "results" / f"{plan.key}.json.gz", "rt", encoding="utf-8") as file:
            return json.load(file)

    def keep(self, row: Row, results: Sequence[Mapping[str, Any]]) -> None:
        """Write a row and its results; the row comes last, so that where it is, the results are."""
        with atomic_write(self.folder / "results" / f"{row.plan.key}.json.gz") as file:
            file.write(gzip.compress(json.dumps(results).encode(), mtime=0))
        with atomic_write(self.folder / "rows" / f"{row.plan.key}.json", "w") as file:
            json.dump(asdict(row), file)

    def settle(self, models: Mapping[str, SOTRConfig], command: str) -> dict[str, Any]:
        """Write `settings.json`, or compare it with these settings; returns them with all commands so far.

        Raises:
            SOTRError: the folder's rows were made with other settings.
        """
        path = self.folder / "settings.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"commands": [], "models": {}}
        now = {
            "train": _digest(self.train.json_path),
            "val": _digest(self.val.json_path),
            "train_images": len(self.train),
            "val_images": len(self.val),
            "weights": _digest(Path(self.weights)) if self.weights else None,
            "image_size": self.image_size,
            "max_dets": self.max_dets,
            "recipe": self.recipe.to_dict(),
        }
        plain = {name: config.to_dict() for name, config in models.items()}
        differing = [key for key in now if key in before and before[key] != now[key]]
        differing += [name for name in plain if before["models"].get(name, plain[name]) != plain[name]]
        if differing:
            raise SOTRError(
                f"{self.folder} was made with other settings ({', '.join(differing)}); name another folder with --out"
            )
        commands = list(dict.fromkeys([*before["commands"], command]))
        now |= {"models": before["models"] | plain, "commands": commands, "data": self.val.json_path.parent.name}
        with atomic_write(path, "w") as file:
            json.dump(now, file, indent=2)
        return now


HELD_OUT = 5
"""A search of learning rates holds out every fifth training image, in the order of ids."""


def held_out(study: Study) -> Study:
    """The study in the folder `search`: four fifths of the training images, measured on the rest of them.

    Raises:
        SOTRError: there are too few training images.
    """
    truth, folder = study.train.truth(), study.folder / "search"
    ids = sorted(image["id"] for image in truth["images"])
    if len(ids) < HELD_OUT:
        raise SOTRError(f"{study.train.json_path} has {len(ids)} images; a search needs at least {HELD_OUT}")
    measured = set(ids[::HELD_OUT])
    splits = {}
    for name, inside in (("train", False), ("val", True)):
        chosen = [image for image in truth["images"] if (image["id"] in measured) is inside]
        kept = {image["id"] for image in chosen}
        own = [each for each in truth["annotations"] if each["image_id"] in kept]
        with atomic_write(folder / f"{name}.json", "w") as file:
            json.dump({**truth, "images": chosen, "annotations": own}, file)
        splits[name] = load_coco(folder / f"{name}.json", study.train.images_dir)
    return replace(study, folder=folder, train=splits["train"], val=splits["val"])


def _read_row(path: Path) -> Row:
    try:
        return Row(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SOTRError(f"{path} is no row of this version ({error}); remove it to train anew") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:20]


def thinned(losses: Sequence[Sequence[float]], most: int = MOST_LOSSES) -> list[list[float]]:
    """At most so many points of a loss curve, each the mean of as many steps."""
    each = -(-len(losses) // most) or 1
    parts = [losses[start : start + each] for start in range(0, len(losses), each)]
    return [[part[-1][0], sum(loss for _, loss in part) / len(part)] for part in parts]
