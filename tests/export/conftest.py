"""One exported model for all tests of this room: exporting takes seconds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sotr
from sotr.export import ExportedSegmenter, export
from sotr.model import Segmenter

MAX_OBJECTS = 12


@pytest.fixture(scope="session")
def nuclei() -> Segmenter:
    """The bundled model, for small pictures and few objects."""
    model = sotr.load("nuclei")
    assert isinstance(model, Segmenter)
    model.network.config = replace(model.config, image_size=160, max_image_size=256)
    return Segmenter(
        model.network,
        model.class_names,
        model.category_ids,
        replace(model.decode_options, max_objects=MAX_OBJECTS, max_candidates=60, max_nms=50),
        "nuclei",
    )


@pytest.fixture(scope="session")
def onnx_path(nuclei: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `sotr export` makes of it, not to be changed by tests."""
    return export(nuclei, out=tmp_path_factory.mktemp("exported") / "nuclei.onnx", quiet=True)


@pytest.fixture(scope="session")
def exported(onnx_path: Path) -> ExportedSegmenter:
    model = sotr.load(onnx_path)
    assert isinstance(model, ExportedSegmenter)
    return model


def discs(height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    """A picture of bright discs on dark ground, as nuclei look under fluorescence."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    light = np.full((height, width), 18.0)
    for _ in range(count):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(5, 9)
        inside = np.clip(radius - np.hypot(y - cy, x - cx) + 0.5, 0, 1)
        light = np.maximum(light, inside * rng.uniform(120, 230))
    noisy = light + rng.normal(0, 3, light.shape)
    return np.repeat(np.clip(noisy, 0, 255).astype(np.uint8)[..., None], 3, 2)
