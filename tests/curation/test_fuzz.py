"""Damaged files of all kinds: one clear line within bounded time, or masks that pycocotools agrees with.

Seeded, so that a failure can be repeated; some minutes: `pytest -m slow tests/curation/test_fuzz.py`.
"""

import copy
import io
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as reference

from sotr.curation import check_data
from sotr.curation.convert import convert_data
from sotr.curation.synthetic import write_synthetic
from sotr.data.coco import find_data
from sotr.data.images import image_size, load_image
from sotr.errors import SOTRError
from sotr.files import read_yaml
from sotr.prediction.output import image_ids
from tests.curation.written import WHOLE

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("SOTR_FUZZ_SEED", "0"))
"""Another one damages other things."""

SECONDS = 10
"""Longest that a damaged file may take."""

GROWTH = 1_500_000
"""Kilobytes that the process may need more, at most, than before the damaged files."""

LENGTH = 1000
"""Characters of the longest message."""

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e9, -1e9, 1e308, 2**31, 2**63, 10**30, 10**400, float("nan"),
    float("inf"), "", "x", "1", "1.0", "-1", "\0", "a" * 300, "../../etc/passwd", "/etc/passwd", "C:\\x\\y.png",
    "http://[bad", "\ud800", "細胞", [], {}, [[]], [None], [1, 2, 3], [[1, 2, 3, 4]], [[0, 0, 1e9, 0, 0, 1e9]],
    {"size": [48, 64]}, {"size": [64.0, 96.0], "counts": [1]}, {"counts": "zz"}, ["a"], {"a": {"b": []}},
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a value."""
    found = [path] if path else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        found += places(entry, (*path, key))
    return found


def damaged(value: Any, rng: random.Random) -> Any:
    """A copy in which one to three values are odd, gone or twice."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        ways = places(value)
        if not ways:
            return rng.choice(ODD)
        *way, last = rng.choice(ways)
        parent = value
        for key in way:
            parent = parent[key]
        kind = rng.random()
        if kind < 0.75:
            parent[last] = copy.deepcopy(rng.choice(ODD))
        elif kind < 0.9:
            del parent[last]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        else:
            parent[f"{last}2"] = parent.pop(last)
    return value


def torn(content: bytes, rng: random.Random) -> bytes:
    """The bytes cut, or with some of them changed, dropped or doubled."""
    kind = rng.random()
    if kind < 0.3:
        return content[: rng.randrange(len(content) + 1)]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not changed:
            break
        at = rng.randrange(len(changed))
        if kind < 0.8:
            changed[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind < 0.9:
            del changed[at : at + rng.randrange(1, 9)]
        else:
            changed[at:at] = changed[at : at + rng.randrange(1, 9)]
    return bytes(changed)


def spoil(path: Path, rng: random.Random) -> None:
    """Damage a file in a way that suits it."""
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.8:
        text = json.dumps(damaged(json.loads(content), rng))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return
    path.write_bytes(torn(content, rng))


def tried(job: Callable[[], Any], label: str) -> Any:
    """The job's result, or the SOTRError that it ended with; nothing else may come of it."""
    started = time.monotonic()
    try:
        result = job()
    except SOTRError as error:
        result: Any = error
    except Exception as error:
        raise AssertionError(f"{label}: {type(error).__name__}: {error}") from error
    else:
        return result
    finally:
        assert time.monotonic() - started < SECONDS, f"{label} took {time.monotonic() - started:.0f} s"
    assert len(str(result)) <= LENGTH, f"{label}: {str(result)[:2000]}"
    assert "\n" not in str(result), label
    return result


@pytest.fixture(autouse=True)
def bounded() -> Any:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_data_sets_of_other_tools(name: str, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED} {name}")
    source = tmp_path / "source"
    source.mkdir()
    WHOLE[name](source)
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for number in range(60):
        folder, out = tmp_path / "case", tmp_path / "out"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(source, folder)
        spoil(folder / rng.choice(files), rng)
        result = tried(
            lambda: convert_data(
                str(tmp_path / "case"),
                str(tmp_path / "out"),
                val_share=0,
                skip_broken=bool(number % 2),  # noqa: B023
                quiet=True,
            ),
            f"{name} {number}",
        )
        if isinstance(result, SOTRError):
            assert not out.exists()
        else:
            agrees(out, f"{name} {number}")


def agrees(folder: Path, label: str) -> None:
    """A data set that was written loads, and its masks are those of pycocotools."""
    for data in find_data(folder):
        if data is None:
            continue
        raw = {entry["id"]: entry for entry in json.loads(data.json_path.read_text())["annotations"]}
        for index in range(len(data)):
            record = data.record(index)
            for mask, number in zip(data.masks(record), record.annotation_ids_I.tolist(), strict=True):
                segmentation = raw[number]["segmentation"]
                if isinstance(segmentation, list):
                    parts = reference.frPyObjects(segmentation, record.height, record.width)
                    segmentation = reference.merge(parts)
                elif isinstance(segmentation["counts"], list):
                    segmentation = reference.frPyObjects(segmentation, record.height, record.width)
                assert np.array_equal(reference.decode(segmentation).astype(bool), mask), label


@pytest.mark.parametrize("seed", range(4))
def test_damaged_coco(seed: int, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED} {seed}")
    sound = write_synthetic(tmp_path / "sound", train=3, val=2, height=48, width=64, max_objects=3, quiet=True)
    files = ["train.json", "train.json", "train.json", "val.json", "images/train_000001.jpg"]
    for number in range(75):
        folder, out, label = tmp_path / "case", tmp_path / "out", f"{seed} {number}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(sound, folder)
        spoil(folder / rng.choice(files), rng)
        if not isinstance(tried(lambda: find_data(tmp_path / "case"), label), SOTRError):
            agrees(folder, label)
        tried(lambda: check_data(str(tmp_path / "case"), model="sotr-nano", device="cpu", quiet=True), label)
        fix = {"model": "sotr-nano", "device": "cpu", "fix": str(out), "quiet": True}
        fixed = tried(lambda: check_data(str(tmp_path / "case"), **fix), label)  # noqa: B023
        if isinstance(fixed, SOTRError):
            assert not out.exists(), label
        else:
            agrees(out, label)
        tried(lambda: image_ids(tmp_path / "case" / "train.json", sorted((tmp_path / "case").rglob("*.jpg"))), label)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def images() -> dict[str, bytes]:
    """Small images of every format."""
    rgb = np.random.default_rng(0).integers(0, 256, (33, 41, 3), np.uint8)
    found = {}
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "AVIF"):
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, kind)
        found[kind] = buffer.getvalue()
    found["PNG of 16 bits"] = imagecodecs.png_encode(rgb.astype(np.uint16) * 200)
    found["JPEG 2000 of 16 bits"] = imagecodecs.jpeg2k_encode(rgb.astype(np.uint16) * 200, reversible=True)
    found["PGM of text"] = b"P2 # note\n3 2 4095\n0 1 2 3 4 4095\n"
    for name, options in {
        "TIFF": {},
        "TIFF tiles": {"tile": (16, 16), "compression": "zlib"},
        "TIFF LZW": {"compression": "lzw", "rowsperstrip": 4, "predictor": True},
        "BigTIFF": {"bigtiff": True, "byteorder": ">"},
        "TIFF turned": {"extratags": [(274, 3, 1, 6, True)]},
        "TIFF JPEG": {"compression": "jpeg", "tile": (16, 16)},
        "TIFF planes": {"planarconfig": "separate", "compression": "packbits"},
    }.items():
        buffer = io.BytesIO()
        own = rgb.transpose(2, 0, 1) if "planarconfig" in options else rgb
        tifffile.imwrite(buffer, own, photometric="rgb", **options)  # type: ignore[arg-type]
        found[name] = buffer.getvalue()
    return found


@pytest.mark.parametrize("kind", images())
def test_damaged_images(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, rng = images()[kind], random.Random(f"{SEED} {kind}")
    header = len(content) if len(content) < 600 else 400
    for number in range(250):
        spoiled = torn(content, rng)
        if number % 2:  # headers are small beside pixels, and hold what matters
            spoiled = torn(content[:header], rng) + content[header:]
        (tmp_path / "a.bin").write_bytes(spoiled)
        first = tried(lambda: load_image(tmp_path / "a.bin", max_pixels=10**7), f"{kind} {number}")
        second = tried(lambda: load_image(spoiled, max_pixels=10**7), f"{kind} {number}")  # noqa: B023
        assert isinstance(first, SOTRError) == isinstance(second, SOTRError), f"{kind} {number}: {first} {second}"
        if isinstance(first, np.ndarray):
            assert np.array_equal(first, second), f"{kind} {number}"
            assert tried(lambda: image_size(tmp_path / "a.bin"), kind) == first.shape[:2], f"{kind} {number}"
    assert len(capfd.readouterr().err) < 2000


def test_damaged_yaml(tmp_path: Path) -> None:
    content = b"path: &a ./x\ntrain: *a\nnames: {0: cat, 1: 'dog', 2: 2026-01-01, 3: 0b1}\nval: [a, {b: !!str c}]\n"
    rng = random.Random(SEED)
    for number in range(500):
        (tmp_path / "a.yaml").write_bytes(torn(content, rng))
        tried(lambda: read_yaml(tmp_path / "a.yaml"), f"yaml {number}")
