"""What biologists ask of `predict`: stacks, labels, regions, measurements, and nothing that is left of another run."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from sotr.cli import run
from sotr.data.traits import Domain, Traits
from sotr.errors import SOTRError
from sotr.prediction import predict
from sotr.prediction.ledger import LEDGER_FILE
from sotr.results.instances import Instances
from tests.prediction.blobs import Blobs

PIXEL = 0.25
ALL = {"labels": True, "rois": True, "geojson": True, "crops": True, "csv": True, "masks": True}


def plane(seed: int, most: int) -> np.ndarray:
    """Three bright blobs, one of which is a ring, on a dark ground."""
    image = np.zeros((90, 120), np.float32)
    shift = 3 * seed
    cv2.circle(image, (25 + shift, 30), 14, 1.0, 6)
    cv2.rectangle(image, (60, 10 + shift), (95, 40 + shift), 0.9, -1)
    cv2.ellipse(image, (40, 70), (20, 9), 30, 0, 360, 0.8, -1)
    return (image * most).astype(np.uint16)


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """Three planes of two channels, the second of which shows the objects."""
    (tmp_path / "in").mkdir()
    planes = np.stack([np.stack([plane(0, 900) // 7, plane(z, 4000)]) for z in range(3)])
    metadata = {"axes": "ZCYX", "Channel": {"Name": ["GFP", "DAPI"]}}
    metadata |= {f"PhysicalSize{axis}{unit}": value for axis in "XY" for unit, value in (("", PIXEL), ("Unit", "µm"))}
    path = tmp_path / "in" / "cells.ome.tif"
    tifffile.imwrite(path, planes, ome=True, photometric="minisblack", metadata=metadata)
    return path


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "objects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def instances_in(out: Path, image: int | str) -> Instances:
    return Instances.from_coco(out / "predictions.json", image)


def names_below(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {LEDGER_FILE}


def test_all_planes_become_images_of_their_own(stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    summary = predict([stack], Blobs(), out, channel="DAPI", plane="all", labels=True, csv=True)
    assert (summary.pictures, summary.objects, summary.failures) == (3, 9, [])
    assert "1 file of 3 planes (Z), 2 channels (1 GFP, 2 DAPI)" in capsys.readouterr().out
    stored = tifffile.imread(stack)
    rows = rows_of(out)
    for z in range(3):
        found = instances_in(out, f"cells.ome.tif#{z + 1}")
        np.testing.assert_array_equal(found.masks_IHW.any(0), stored[z, 1] > 0)
        with tifffile.TiffFile(out / "labels" / f"cells.ome-p{z + 1:04d}.tif") as file:
            np.testing.assert_array_equal(file.asarray(), found.label_image())
        own = [row for row in rows if row["picture"] == f"cells.ome.tif#{z + 1}"]
        for row, mask in zip(own, found.masks_IHW, strict=True):
            for channel in (1, 2):
                inside = stored[z, channel - 1][mask]
                assert float(row[f"c{channel}_mean"]) == pytest.approx(inside.mean(), abs=1e-3)
                assert int(row[f"c{channel}_sum"]) == inside.sum()
            assert float(row["area_um2"]) == pytest.approx(mask.sum() * PIXEL**2)


def test_one_plane_and_the_brightest_in_tiles_too(stack: Path, tmp_path: Path) -> None:
    stored = tifffile.imread(stack)[:, 1]
    for settings, expected in (({"plane": 2}, stored[1]), ({"plane": "max"}, stored.max(0))):
        for tile in (None, 128):
            out = tmp_path / f"{settings['plane']}-{tile}"
            predict([stack], Blobs(), out, channel=2, tile=tile, quiet=True, **settings)
            np.testing.assert_array_equal(instances_in(out, 1).masks_IHW.any(0), expected > 0)


def test_without_a_choice_stacks_are_listed_and_so_are_microscopes_files(
    stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stack.parent / "raw.CZI").write_bytes(b"ZISRAWFILE" + bytes(50))
    summary = predict([stack.parent], Blobs(), tmp_path / "out", quiet=True)
    assert {Path(path).name: reason for path, reason in summary.failures} == {
        "cells.ome.tif": "has 3 planes (Z), 2 channels (1 GFP, 2 DAPI); say which channel is meant "
        "(sotr predict --channel NUMBER), or save it alone",
        "raw.CZI": "is in a microscope's own format; export it as OME-TIFF",
    }
    assert (
        run(["predict", str(stack), "--plane", "9999", "--channel", "x", "--out", str(tmp_path / "o"), "--quiet"]) == 1
    )
    assert "none that is called 'x'" in capsys.readouterr().err
    for bad in (["--plane", "some"], ["--intensity-range", "5"], ["--channel", "0"]):
        assert run(["predict", str(stack), *bad, "--out", str(tmp_path / "bad")]) == 2
    assert not (tmp_path / "bad").exists()
    with pytest.raises(SOTRError, match="shards are of images with one plane"):
        predict([stack], Blobs(), tmp_path / "bad", plane="all", shards=2, shard=0)


def test_labels_are_read_by_imagej_with_the_size_of_a_pixel(stack: Path, tmp_path: Path) -> None:
    predict([stack], Blobs(), tmp_path, channel=2, plane=1, labels=True, quiet=True)
    with tifffile.TiffFile(tmp_path / "labels" / "cells.ome.tif") as file:
        page, notes = file.pages.first, file.imagej_metadata
        assert (page.dtype, page.compression.name, notes["unit"]) == (np.uint16, "ADOBE_DEFLATE", "um")
        numerator, denominator = page.tags["XResolution"].value
        assert denominator / numerator == pytest.approx(PIXEL)
    back = Instances.from_labels(tifffile.imread(tmp_path / "labels" / "cells.ome.tif"))
    np.testing.assert_array_equal(back.masks_IHW, instances_in(tmp_path, 1).masks_IHW)


def test_regions_of_imagej_are_the_masks(stack: Path, tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile")
    predict([stack], Blobs(), tmp_path, channel=2, plane=1, rois=True, quiet=True)
    found = instances_in(tmp_path, 1)
    regions = roifile.roiread(tmp_path / "rois" / "cells.ome.zip")
    assert [region.name for region in regions] == [
        f"{i + 1:05d}-{found.class_names[label]}" for i, label in enumerate(found.labels_I)
    ]
    assert any(region.composite for region in regions)  # the ring
    for region, mask in zip(regions, found.masks_IHW, strict=True):
        drawn = np.zeros(mask.shape, int)
        for ring in region.coordinates(multi=True) if region.composite else [region.coordinates()]:
            drawn += inside(np.asarray(ring, float), mask.shape)
        np.testing.assert_array_equal(drawn % 2, mask)


def test_geojson_has_the_masks_and_what_qupath_knows(stack: Path, tmp_path: Path) -> None:
    predict([stack], Blobs(), tmp_path, channel=2, plane=1, geojson=True, quiet=True)
    found = instances_in(tmp_path, 1)
    content = json.loads((tmp_path / "geojson" / "cells.ome.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    for number, (feature, mask) in enumerate(zip(content["features"], found.masks_IHW, strict=True), 1):
        assert feature["properties"]["objectType"] == "detection"
        assert feature["properties"]["measurements"]["label"] == number
        shape = feature["geometry"]
        assert shape["type"] == "Polygon"
        assert all(ring[0] == ring[-1] for ring in shape["coordinates"])
        drawn = sum(inside(np.array(ring[:-1]), mask.shape) for ring in shape["coordinates"])
        np.testing.assert_array_equal(drawn % 2, mask)


def inside(ring: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """1 where the centers of pixels lie inside a ring."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    odd = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return odd.astype(int)


def test_crops_are_transparent_outside(stack: Path, tmp_path: Path) -> None:
    predict([stack], Blobs(), tmp_path, channel=2, plane=1, crops=True, overlays=False, quiet=True)
    found = instances_in(tmp_path, 1)
    assert not (tmp_path / "cells.ome.overlay.png").exists()
    for i, one in enumerate(found):
        crop = np.array(Image.open(tmp_path / "crops" / "cells.ome" / f"{i:03d}.png"))
        mask, _, _ = one.mask_crop(0)
        np.testing.assert_array_equal(crop[..., 3], mask * 255)
        assert (crop[..., 0][mask] > 100).all()


class Overlapping(Blobs):
    """Every object twice, the second time larger and with a lower score."""

    def predict(self, pictures: Any, **settings: Any) -> list[Instances]:
        found = []
        for each in super().predict(pictures, **settings):
            grown = np.array([cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) for mask in each.masks_IHW]) > 0
            masks, labels = np.concatenate([each.masks_IHW, grown]), np.tile(each.labels_I, 2)
            scores = np.concatenate([each.scores_I, each.scores_I / 2])
            found.append(Instances.from_masks(scores, labels, masks, self.class_names, self.category_ids))
        return found


def test_no_overlap_leaves_each_pixel_to_one_object(stack: Path, tmp_path: Path) -> None:
    shared = predict([stack], Overlapping(), tmp_path / "a", channel=2, plane=1, labels=True, quiet=True)
    apart = predict(
        [stack], Overlapping(), tmp_path / "b", channel=2, plane=1, labels=True, no_overlap=True, quiet=True
    )
    assert shared.objects == apart.objects == 6
    assert instances_in(tmp_path / "a", 1).masks_IHW.sum(0).max() == 2
    assert instances_in(tmp_path / "b", 1).masks_IHW.sum(0).max() == 1
    labels = [tifffile.imread(tmp_path / name / "labels" / "cells.ome.tif") for name in "ab"]
    np.testing.assert_array_equal(*labels)


def test_a_used_folder_holds_what_the_last_run_wrote_and_what_is_not_ours(stack: Path, tmp_path: Path) -> None:
    pytest.importorskip("roifile")
    out = tmp_path / "out"
    other = stack.with_name("other.tif")
    tifffile.imwrite(other, plane(1, 250).astype(np.uint8))
    predict([other], Blobs(), out, labelme=True, quiet=True, **ALL)
    (out / "notes.txt").write_text("mine")
    (out / "labelme" / "other.json").write_text("corrected by hand")
    predict([stack], Blobs(), out, channel=2, plane=1, overlays=False, quiet=True)
    kept = {"notes.txt", "labelme/other.json"}
    assert names_below(out) == {"predictions.json", "results.json"} | kept
    assert not (out / "masks").exists()
    # The same again changes nothing, and a run that fails removes nothing.
    predict([other], Blobs(), out, quiet=True, **ALL)
    before = names_below(out)
    with pytest.raises(SOTRError):
        predict([other], Blobs(), out, ids_from="nowhere.json", quiet=True)
    assert names_below(out) == before
    predict([other], Blobs(), out, quiet=True, **ALL)
    assert names_below(out) == before


def test_a_list_that_names_files_elsewhere_removes_none(stack: Path, tmp_path: Path) -> None:
    out, precious = tmp_path / "out", tmp_path / "precious.txt"
    out.mkdir()
    precious.write_text("x")
    state = precious.stat()
    lines = [[name, state.st_size, state.st_mtime_ns] for name in ("../precious.txt", str(precious))]
    (out / LEDGER_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines) + "[1, broken")
    predict([stack], Blobs(), out, channel=2, plane=1, quiet=True)
    assert precious.exists()


def test_dim_images_and_images_of_another_kind_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = np.repeat(plane(0, 240).astype(np.uint8)[..., None], 3, 2)
    photo = np.full((90, 120, 3), (200, 140, 90), np.uint8)
    for name, image in (("good", grey), ("dim", grey // 12), ("photo", photo)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")

    def printed(model: Blobs, *names: str, **settings: Any) -> str:
        predict([tmp_path / f"{name}.png" for name in names], model, tmp_path / "out", **settings)
        return capsys.readouterr().out

    unknown, known = Blobs(), Blobs()
    # Of few images a model knows little: only far-away ones are unlike.
    known.domain = Domain.of([Traits.of(grey), Traits.of(grey // 2)])
    assert "unlike" not in printed(known, "photo")
    known.domain = replace(known.domain, images=500)
    text = printed(unknown, "good", "dim", "photo")
    assert "(dim.png): objects may be missed; try --intensity-range 0%,99.9%" in text
    text = printed(known, "good", "dim", "photo")
    assert "1 image with a small part of the range of values in use (dim.png)" in text
    assert "1 image unlike the model's training images in brightness, color, contrast" in text
    assert "(photo.png): what was found there may mean nothing" in text
    assert "unlike" not in printed(known, "good")
    assert "small part" not in printed(known, "dim", intensity_range="0%,99.9%")
