"""What `train` is told, in two groups: what decides a run, and how it is computed."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from sotr.errors import SOTRError


@dataclass(frozen=True)
class RunArguments:
    """Arguments of `train` that decide a run. A resumed run takes from its folder what is left at its default."""

    model: str = "sotr-r50"
    backbone_weights: str | None = None
    recipe: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    image_size: int | None = None
    suggest: bool = True
    early_stop: int | None = None
    max_time: str | None = None
    seed: int = 0
    max_dets: int = 100
    """`max_objects` of `train`; runs keep the name that it had."""
    train_json: str | None = None
    val_json: str | None = None
    images: str | None = None
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise SOTRError(f"image_size is {self.image_size}; it must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise SOTRError(f"seed is {self.seed}; it must be a whole number from 0 on, below 2^63")
        if self.max_dets < 1:
            raise SOTRError(f"max_objects is {self.max_dets}; it must be at least 1")

    def changes(self, recorded: "RunArguments") -> dict[str, Any]:
        """What was given and differs from a recorded run, by name."""
        usual, before, now = RunArguments(), asdict(recorded), asdict(self)
        return {n: value for n, value in now.items() if value != getattr(usual, n) and value != before[n]}


@dataclass(frozen=True)
class Means:
    """Arguments of `train` that decide how a run is computed. A resumed run may have others."""

    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    compile: bool = False
    logger: str | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise SOTRError(f"workers is {self.workers}; it must be 0 or more")


def usual_values() -> dict[str, Any]:
    """Argument -> default, of both groups."""
    return {field.name: field.default for group in (RunArguments, Means) for field in fields(group)}
