"""Fixtures that every room's tests may use."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# No test reaches for the network: the hub's library reads this when it is imported, here and in processes of tests.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from filelock import FileLock
from PIL import Image

if TYPE_CHECKING:
    from sotr.export import ExportedSegmenter
    from sotr.model.segmenter import Segmenter

CATEGORIES = [{"id": 90, "name": "bar"}, {"id": 3, "name": "disc"}, {"id": 17, "name": "box"}]
COLORS = {3: (220, 60, 50), 17: (60, 190, 80), 90: (70, 90, 230)}


QUICK = (
    "acceleration/cuda",
    "data/test_sampling.py",
    "data/test_transforms.py",
    "decoding",
    "learning",
    "masks",
    "model/test_tensors.py",
    "network",
    "results",
    "test_config.py",
    "test_decode_options.py",
    "test_files.py",
    "test_laws.py",
    "training/test_recipe.py",
    "training/test_verdict.py",
)
"""Files and folders of unit tests that take no time: `make test-quick` runs these."""


def is_quick(path: Path) -> bool:
    """Whether a file is one of the quick ones."""
    places = [Path(__file__).parent / place for place in QUICK]
    return any(path == place or place in path.parents for place in places)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m quick...` do not even import the other files, which takes longer than the quick tests run."""
    only_quick = str(config.option.markexpr).startswith("quick")
    return True if only_quick and collection_path.suffix == ".py" and not is_quick(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick tests by where they are."""
    for item in items:
        if is_quick(item.path):
            item.add_marker("quick")


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a run of the tests share."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither use nor fill the user's cache folder; processes that they start inherit this. The engine of the
    bundled model is made once for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOTR_CACHE", str(run_folder(tmp_path_factory) / "cache"))
        yield


@contextmanager
def full_disk() -> Iterator[None]:
    """In the block whatever this process would write to a file fails, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # Python ignores the signal, so that the write fails
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` beside the checkout, with real data sets and reference results."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"the folder {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set: `train.json` (8 images), `val.json` (4) and `images/`; not to be changed by tests.

    Images are 96 to 160 px a side with 0 to 6 colored, overlapping shapes of three classes with ids 3, 17 and 90.
    Discs are compressed RLE, boxes polygons (some of two parts), bars uncompressed RLE. The first training image has
    no objects, the second has a crowd.
    """
    folder = tmp_path_factory.mktemp("coco")
    (folder / "images").mkdir()
    rng = np.random.default_rng(20)
    for split, first, count in (("train", 1, 8), ("val", 101, 4)):
        images, annotations = [], []
        for number in range(count):
            width, height = (int(side) for side in rng.integers(96, 161, 2))
            picture = rng.integers(0, 40, (height, width, 3), np.uint8)
            objects = 0 if split == "train" and number == 0 else int(rng.integers(2, 7))
            image_id = first + 10 * number
            for index in range(objects):
                category_id = (3, 17, 90)[(number + index) % 3]
                crowd = split == "train" and number == 1 and index == 0
                segmentation, mask = _shape(rng, category_id, height, width)
                picture[mask] = COLORS[category_id]
                rows, columns = np.nonzero(mask)
                left, top = int(columns.min()), int(rows.min())
                annotations.append(
                    {
                        "id": 1000 * first + len(annotations),
                        "image_id": image_id,
                        "category_id": category_id,
                        "segmentation": segmentation,
                        "iscrowd": int(crowd),
                        "area": int(mask.sum()),
                        "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
                    }
                )
            name = f"{split}_{number}.png"
            Image.fromarray(picture).save(folder / "images" / name)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def _shape(rng: np.random.Generator, category_id: int, height: int, width: int) -> tuple[Any, np.ndarray]:
    """A random shape of a category as a COCO segmentation and as a mask."""
    y, x = np.mgrid[:height, :width]
    cy, cx, radius = rng.uniform(20, height - 20), rng.uniform(20, width - 20), rng.uniform(8, 18)
    if category_id == 3:
        mask = (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
        encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        counts = encoded["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        return {"size": [height, width], "counts": text}, mask
    if category_id == 90:
        mask = (abs(x - cx) <= radius / 3) & (abs(y - cy) <= radius)
        flat = mask.ravel(order="F").astype(np.int8)
        edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
        return {"size": [height, width], "counts": np.diff([0, *edges, mask.size]).tolist()}, mask
    parts = [_box(round(cx), round(cy), round(radius))]
    if rng.random() < 0.5:
        parts.append(_box(round(width - cx), round(height - cy), 7))
    encoded = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
    return parts, coco_mask.decode(encoded).astype(bool)


def _box(cx: int, cy: int, half: int) -> list[float]:
    return [float(v) for v in (cx - half, cy - half, cx + half, cy - half, cx + half, cy + half, cx - half, cy + half)]


@pytest.fixture(scope="session")
def nuclei() -> "Segmenter":
    """The bundled model, for small images and at most twelve objects."""
    from sotr.model.segmenter import Segmenter, load

    model = load("nuclei", engine="pytorch")
    model.network.config = replace(model.config, image_size=256, max_image_size=416)
    options = replace(model.decode_options, score_threshold=0.25, max_objects=12, max_candidates=60, max_nms=50)
    return Segmenter(model.network, model.class_names, model.category_ids, options, "nuclei", engine="pytorch")


@pytest.fixture(scope="session")
def onnx_path(nuclei: "Segmenter", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `sotr export` makes of it, not to be changed by tests: once for all processes that run them, for it
    takes half a minute."""
    from sotr.export import export

    folder = run_folder(tmp_path_factory)
    path = folder / "exported" / "nuclei.onnx"
    with FileLock(folder / "exported.lock"):
        return path if path.is_file() else export(nuclei, out=path, quiet=True)


@pytest.fixture(scope="session")
def exported(onnx_path: Path) -> "ExportedSegmenter":
    """That file, opened."""
    from sotr.export import ExportedSegmenter

    return ExportedSegmenter.load_file(onnx_path)
