"""A training step whose loss was not finite: kept in a folder, and done again to see where it went wrong."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sotr.config import SOTRConfig
from sotr.data.batches import Batch
from sotr.errors import SOTRError
from sotr.files import atomic_write
from sotr.learning import Assignment, Targets
from sotr.model.segmenter import choose_device
from sotr.training.module import LossNotFinite, SOTRModule, seed_step
from sotr.training.recipe import Recipe

STEP_FILE, WEIGHTS_FILE, BATCH_FILE = "step.json", "weights.safetensors", "batch.safetensors"


@dataclass(frozen=True)
class ReplayedStep:
    """What a step that was done again gave."""

    losses: dict[str, float]
    """By name; "loss" is their sum."""
    first_not_finite: str | None
    """The first tensor, in the order of the computation, with an infinite value or one that is not a number."""


def keep_step(folder: Path, module: SOTRModule, failure: LossNotFinite, precision: str) -> None:
    """Write all that the failed step depends on: weights, batch, settings, and the position of its random numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    batch = failure.batch
    tensors = dict(_tensors_of(batch))
    for name, content in ((WEIGHTS_FILE, module.network.state_dict()), (BATCH_FILE, tensors)):
        save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, folder / name)
    step = {
        "config": module.network.config.to_dict(),
        "recipe": module.recipe.to_dict(),
        "precision": precision,
        "seed": module.seed,
        "step": module.global_step,
        "rank": module.global_rank,
        "losses": {name: str(float(value)) for name, value in failure.losses.items()},
        "image_ids": batch.image_ids,
        "file_names": batch.file_names,
        "image_sizes": batch.image_sizes,
        "original_sizes": batch.original_sizes,
        "counts": batch.assignment.counts,
        "positives": batch.assignment.positives,
    }
    with atomic_write(folder / STEP_FILE, "w") as file:
        json.dump(step, file, indent=2, ensure_ascii=False)


def _tensors_of(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    yield "images_B3HW", batch.images_B3HW
    for name in ("labels_BK", "cells_P", "objects_P"):
        yield name, getattr(batch.assignment, name)
    for picture, targets in enumerate(batch.targets):
        for field in fields(Targets):
            yield f"{picture}.{field.name}", getattr(targets, field.name)


def replay(folder: str | Path, device: str, console: Console) -> ReplayedStep:
    """Do the step in `folder` again, forward and backward, and print its losses and where it first went wrong.

    Raises:
        SOTRError: the folder does not hold a step.
    """
    chosen = choose_device(device)
    module, batch, step = _read_step(Path(folder))
    module.to(chosen).train()
    batch = batch.to(chosen)
    precision = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(step["precision"])
    seed_step(step["seed"], step["step"], step["rank"])
    with _watching(module.network, batch) as found:
        with torch.autocast(chosen.type, dtype=precision, enabled=precision is not None):
            losses = module.losses(batch)
        for name, value in losses.items():
            found.look(name, value)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
    for name, parameter in module.network.named_parameters():
        found.look(f"the gradient of {name}", parameter.grad)

    values = {"loss": float(loss.detach())} | {name: float(value.detach()) for name, value in losses.items()}
    console.print(f"step {step['step'] + 1} with {', '.join(step['file_names'])}, {step['precision']}, on {chosen}")
    for name, number in values.items():
        console.print(f"  {name}: {number:g} (when it failed: {step['losses'].get(name, 'not recorded')})")
    console.print(f"  first tensor that is not finite: {found.first or 'none'}")
    return ReplayedStep(values, found.first)


class _Finder:
    """Remembers the first tensor it is shown that is not finite."""

    def __init__(self) -> None:
        self.first: str | None = None

    def look(self, name: str, value: Any) -> None:
        if isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                self.look(f"{name}[{index}]", item)
        elif isinstance(value, Tensor) and self.first is None and value.is_floating_point():
            finite = value.isfinite()
            if not bool(finite.all()):
                self.first = f"{name}, {int((~finite).sum())} of {value.numel()} values"


@contextmanager
def _watching(network: nn.Module, batch: Batch) -> Iterator[_Finder]:
    """Shows a finder the batch, the weights, and in the block the output of each module as it is computed."""
    finder = _Finder()
    for name, value in _tensors_of(batch):
        finder.look(f"{name} of the batch", value)
    for name, value in network.state_dict().items():
        finder.look(f"the weight {name}", value)
    handles = [
        part.register_forward_hook(
            lambda part, _, output, name=name: finder.look(f"the output of {name} ({type(part).__name__})", output)
        )
        for name, part in network.named_modules()
        if name
    ]
    try:
        yield finder
    finally:
        for handle in handles:
            handle.remove()


def _read_step(folder: Path) -> tuple[SOTRModule, Batch, dict[str, Any]]:
    try:
        step = json.loads((folder / STEP_FILE).read_text(encoding="utf-8"))
        weights, tensors = load_file(folder / WEIGHTS_FILE), load_file(folder / BATCH_FILE)
        module = SOTRModule(SOTRConfig.from_dict(step["config"]), Recipe.from_dict(step["recipe"]), 1, step["seed"])
        module.network.load_state_dict(weights)
        targets = [
            Targets(**{field.name: tensors[f"{picture}.{field.name}"] for field in fields(Targets)})
            for picture in range(len(step["image_ids"]))
        ]
        batch = Batch(
            images_B3HW=tensors["images_B3HW"],
            image_ids=step["image_ids"],
            file_names=step["file_names"],
            image_sizes=[(h, w) for h, w in step["image_sizes"]],
            original_sizes=[(h, w) for h, w in step["original_sizes"]],
            targets=targets,
            assignment=Assignment(
                tensors["labels_BK"],
                tensors["cells_P"],
                tensors["objects_P"],
                counts=tuple(step["counts"]),
                positives=step["positives"],
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, SOTRError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SOTRError(
            f"{folder} does not hold a failed training step ({reason}); name the folder that the failed run printed"
        ) from None
    return module, batch, step
