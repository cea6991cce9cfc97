"""A network and a recipe that train in a second or two."""

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

PROCESSES = multiprocessing.get_context("forkserver")
"""Starts processes that train from one that has imported what they need and has done nothing else. A fork of the tests'
own process cannot run autograd once that has started its threads, as it does after an export."""
PROCESSES.set_forkserver_preload(["sotr.training.work", "tests.training.conftest"])

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


@pytest.fixture(autouse=True, scope="module")
def one_picture() -> Iterator[None]:
    """A validation in this process shows one image: to draw and compress four takes longer than all else in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sotr.training.validation.SHOWN_PICTURES", 1)
        yield
