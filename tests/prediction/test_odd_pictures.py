"""Images of unusual shapes and kinds, and files that only look like images, whole and in tiles."""

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.decoding import DecodeOptions
from sotr.model.segmenter import Segmenter
from sotr.prediction import predict
from sotr.prediction.ledger import LEDGER_FILE

SCORE = 0.002
TILES = [None, 64]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    network = build_network(replace(SOTRConfig.preset("sotr-nano", num_classes=2), image_size=64, max_image_size=96))
    options = DecodeOptions(cell_threshold=0.0, score_threshold=0.001, max_candidates=20, max_objects=4)
    return Segmenter(network, ["cat", "dog"], [3, 17], options, "random", engine="pytorch")


def colours(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def sizes(out: Path) -> list[tuple[int, int]]:
    images = json.loads((out / "predictions.json").read_text())["images"]
    return [(image["height"], image["width"]) for image in images]


@pytest.mark.parametrize("tile", TILES)
def test_every_kind_of_picture_is_segmented(tmp_path: Path, segmenter: Segmenter, tile: int | None) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    colours(1, 1).save(folder / "a.png")
    colours(1, 200).save(folder / "b.png")
    colours(200, 1).save(folder / "c.png")
    colours(40, 60).convert("CMYK").save(folder / "d.jpg")
    colours(40, 60).save(folder / "e.gif", save_all=True, append_images=[colours(40, 60).rotate(90)], duration=50)
    colours(40, 60).convert("I;16").save(folder / "f.tif")
    summary = predict([folder], segmenter, out, score=SCORE, tile=tile, masks=True, csv=True, quiet=True)
    assert (summary.pictures, summary.failures) == (6, [])
    assert sizes(out) == [(1, 1), (1, 200), (200, 1), (40, 60), (40, 60), (40, 60)]
    assert len(list(out.glob("*.overlay.png"))) == 6
    assert summary.objects > 6


@pytest.mark.parametrize("tile", TILES)
def test_a_line_of_20000_pixels(tmp_path: Path, segmenter: Segmenter, tile: int | None) -> None:
    tile = tile and 4000
    colours(1, 20_000).save(tmp_path / "a.png")
    summary = predict(
        [tmp_path / "a.png"], segmenter, tmp_path / "out", score=SCORE, tile=tile, overlays=not tile, quiet=True
    )
    assert summary.failures == []
    assert sizes(tmp_path / "out") == [(1, 20_000)]


@pytest.mark.parametrize("tile", TILES)
def test_rotated_photos_are_segmented_upright(tmp_path: Path, segmenter: Segmenter, tile: int | None) -> None:
    upright = colours(40, 70)
    ways = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = upright.transpose(ways[orientation]) if orientation > 1 else upright
        stored.save(tmp_path / f"{orientation}.png", exif=exif)
    files = [tmp_path / f"{orientation}.png" for orientation in range(1, 9)]
    predict(files, segmenter, tmp_path / "out", score=SCORE, tile=tile, overlays=False, quiet=True)
    data = json.loads((tmp_path / "out" / "predictions.json").read_text())
    expected = segmenter.predict(upright, score=SCORE, tile=tile)
    assert len(expected) > 0
    for image in data["images"]:
        masks = [entry["segmentation"] for entry in data["annotations"] if entry["image_id"] == image["id"]]
        assert (image["height"], image["width"]) == (40, 70)
        assert masks == list(expected.rles)


@pytest.mark.parametrize("tile", TILES)
def test_what_is_no_picture_is_listed(tmp_path: Path, segmenter: Segmenter, tile: int | None) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    (folder / "bomb.png").write_bytes(png_header(60_000, 60_000))
    colours(60, 80).save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    (folder / "empty.tif").write_bytes(b"")
    (folder / "text.png").write_text("this is no image")
    summary = predict([folder], segmenter, out, score=SCORE, tile=tile, quiet=True)
    assert summary.pictures == 1
    reasons = {Path(name).name: reason for name, reason in summary.failures}
    assert list(reasons) == ["bomb.png", "cut.jpg", "empty.tif", "text.png"]
    assert reasons["bomb.png"].startswith(
        f"60000 x 60000 is 3600 megapixels, over the limit of {200 if tile is None else 1000}; "
    )
    assert "damaged" in reasons["cut.jpg"]
    assert not any("\n" in reason for reason in reasons.values())
    files = sorted(path.name for path in out.iterdir() if path.name != LEDGER_FILE)
    assert files == ["predictions.json", "results.json", "whole.overlay.png"]


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG file that claims a size; there is nothing behind it."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">II4s", zlib.crc32(head), 100, b"IDAT")
