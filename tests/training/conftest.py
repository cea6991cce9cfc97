"""A network and a recipe that train in a second or two."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sotr.training import report
from sotr.training.html_report import write_report

CONFIG: dict[str, Any] = {
    "backbone": "test_resnet",
    "width": 32,
    "depth": 1,
    "heads": 2,
    "mlp_ratio": 1.0,
    "grids": [12, 8, 6, 4, 2],
    "mask_stage_channels": 32,
    "mask_channels": 32,
    "image_size": 64,
    "max_image_size": 128,
}
RECIPE: dict[str, Any] = {
    "lr": 0.001,
    "batch_size": 3,
    "epochs": 2,
    "precision": "32-true",
    "ema_decay": 0.9,
    "clip_norm": 1.0,
    "augmentation": {"scale": [0.8, 1.2], "crop": 64, "color": 0.2},
}


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[..., str]:
    """write_yaml(name, values, **changes) -> the path of a YAML file."""

    def write(name: str, values: dict[str, Any], **changes: Any) -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**values, **changes}))
        return str(path)

    return write


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bit-for-bit comparisons need the same order of additions, and quick tests no other process's cores."""
    torch.set_num_threads(1)


DRAWN = {"draw_curves": report.draw_curves, "draw_validation": report.draw_validation, "write_report": write_report}
"""What a run draws of itself at its end."""


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Runs in this process draw neither images nor curves nor the report, which takes four fifths of so short a run."""
    patch.setattr("sotr.training.validation.SHOWN_PICTURES", 0)
    for name in DRAWN:
        patch.setattr(f"sotr.training.work.{name}", lambda *_, **__: None)


@pytest.fixture(autouse=True, scope="module")
def _nothing_drawn() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test draw what they draw for users, but for the loggers one image alone."""
    monkeypatch.setattr("sotr.training.validation.SHOWN_PICTURES", 1)
    for name, function in DRAWN.items():
        monkeypatch.setattr(f"sotr.training.work.{name}", function)
