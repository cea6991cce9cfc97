"""`sotr.predict`: what it writes, skips and says."""

import copy
import csv
import json
import os
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sotr.building import build_network
from sotr.cli import build_parser, run
from sotr.config import SOTRConfig
from sotr.data.traits import Domain, Traits
from sotr.decoding import DecodeOptions
from sotr.errors import SOTRError
from sotr.model.segmenter import Segmenter
from sotr.prediction import predict
from sotr.prediction.ledger import LEDGER_FILE
from sotr.prediction.output import output_names, relative_names, result_files
from sotr.results.instances import Instances
from tests.support.slow_files import jpeg_of_scans

SCORE = 0.002
"""A random network scores everything low."""


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    network = build_network(replace(SOTRConfig.preset("sotr-nano", num_classes=3), image_size=96, max_image_size=128))
    options = DecodeOptions(cell_threshold=0.0, score_threshold=0.001, max_candidates=40, max_objects=6)
    return Segmenter(network, ["cat", "dog", "bird"], [3, 17, 90], options, "random", engine="pytorch")


def save_picture(path: Path, seed: int = 0, size: tuple[int, int] = (80, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
    Image.fromarray(pixels).resize(size).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, two of which have the same stem."""
    folder = tmp_path / "pictures"
    for seed, name in enumerate(("a.png", "b.jpg", "deeper/a.png")):
        save_picture(folder / name, seed, (80 + 8 * seed, 64))
    return folder


def test_only_the_classes_that_are_named(folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    whole = [segmenter.predict(folder / name, score=SCORE) for name in ("a.png", "b.jpg", "deeper/a.png")]
    counts = Counter(name for found in whole for name in (found.class_names[label] for label in found.labels_I))
    assert len(counts) > 1
    common, rest = counts.most_common()[0][0], [name for name in ("cat", "dog", "bird") if counts[name]][:2]
    for number, (classes, names) in enumerate(((common, [common]), (",".join(rest), rest), (rest, rest))):
        summary = predict([folder], segmenter, tmp_path / str(number), score=SCORE, classes=classes, quiet=True)
        assert summary.objects == sum(counts[name] for name in names)
        data = COCO(str(tmp_path / str(number) / "predictions.json"))
        assert {data.cats[each["category_id"]]["name"] for each in data.anns.values()} == set(names)
    with pytest.raises(SOTRError, match=r"no class 'caat', did you mean 'cat'\?; the classes are cat, dog, bird"):
        predict([folder], segmenter, tmp_path / "new", classes="dog,caat", quiet=True)
    assert not (tmp_path / "new").exists()


def files_below(folder: Path) -> list[str]:
    """All but the list of them."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != LEDGER_FILE]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def test_a_folder_gives_all_results(folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    out = tmp_path / "out"
    summary = predict([str(folder)], segmenter, out, score=SCORE, masks=True, csv=True, quiet=True)
    expected = {name: segmenter.predict(folder / name, score=SCORE) for name in ("a.png", "b.jpg", "deeper/a.png")}
    assert (summary.pictures, summary.failures, summary.out) == (3, [], out)
    assert summary.objects == sum(map(len, expected.values())) > 0

    # A COCO data set that pycocotools reads, with the original category ids.
    data = COCO(str(out / "predictions.json"))
    assert data.cats == {3: {"id": 3, "name": "cat"}, 17: {"id": 17, "name": "dog"}, 90: {"id": 90, "name": "bird"}}
    assert {image["file_name"] for image in data.imgs.values()} == set(expected)
    assert data.dataset["info"]["model"] == "random"
    assert data.dataset["info"]["score"] == SCORE
    assert Path(data.dataset["info"]["images_root"]) == folder
    for image_id, image in data.imgs.items():
        instances = expected[image["file_name"]]
        annotations = data.imgToAnns[image_id]
        assert (image["height"], image["width"]) == instances.image_size
        assert [a["score"] for a in annotations] == pytest.approx(instances.scores_I.tolist(), abs=1e-6)
        assert [a["area"] for a in annotations] == instances.areas_I.tolist()
        for annotation, mask_HW in zip(annotations, instances.masks_IHW, strict=True):
            assert np.array_equal(data.annToMask(annotation).astype(bool), mask_HW)
    assert sorted(data.anns) == list(range(1, summary.objects + 1))

    # The plain list that evaluation tools read, aligned with it.
    results = json.loads((out / "results.json").read_text())
    assert len(results) == summary.objects
    assert set(results[0]) == {"image_id", "category_id", "bbox", "segmentation", "score"}
    assert len(data.loadRes(results).anns) == summary.objects

    # One overlay and one folder of masks per image, also for the two of one stem.
    names = {"a.png": "a", "b.jpg": "b", "deeper/a.png": "deeper-a"}
    masks = [f"masks/{names[name]}/{i:03d}.png" for name, found in expected.items() for i in range(len(found))]
    overlays = [f"{name}.overlay.png" for name in names.values()]
    assert files_below(out) == sorted([*masks, *overlays, "objects.csv", "predictions.json", "results.json"])
    for name, instances in expected.items():
        overlay = np.array(Image.open(out / f"{names[name]}.overlay.png"))
        assert np.array_equal(overlay, instances.draw(folder / name))
        for i, mask_HW in enumerate(instances.masks_IHW):
            mask = np.array(Image.open(out / "masks" / names[name] / f"{i:03d}.png"))
            assert np.array_equal(mask, mask_HW * 255)

    with (out / "objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["picture"] for row in rows) == {name: len(found) for name, found in expected.items() if found}
    assert [float(row["score"]) for row in rows if row["picture"] == "b.jpg"] == pytest.approx(
        expected["b.jpg"].scores_I.tolist(), abs=1e-6
    )


def test_switches(folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    out = tmp_path / "out"
    predict([folder / "a.png"], segmenter, out, score=SCORE, overlays=False, quiet=True)
    assert files_below(out) == ["predictions.json", "results.json"]
    summary = predict([folder], segmenter, out, score=SCORE, overlays=False, max_objects=1, batch_size=2, quiet=True)
    assert summary.objects == 3


def test_no_objects_still_make_valid_files(folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    summary = predict([folder], segmenter, tmp_path / "out", score=0.99, masks=True, csv=True, quiet=True)
    assert (summary.pictures, summary.objects) == (3, 0)
    data = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (len(data["images"]), data["annotations"]) == (3, [])
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []
    assert (tmp_path / "out" / "objects.csv").read_text().count("\n") == 1
    assert not (tmp_path / "out" / "masks").exists()


def test_unreadable_pictures_are_listed_and_skipped(
    folder: Path, tmp_path: Path, segmenter: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "text.png").write_text("this is no image")
    (folder / "cut.jpg").write_bytes((folder / "b.jpg").read_bytes()[:400])
    summary = predict([folder], segmenter, tmp_path / "out", score=SCORE, batch_size=4, quiet=True)
    assert summary.pictures == 3
    assert [Path(path).name for path, _ in summary.failures] == ["cut.jpg", "text.png"]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "2 images could not be read:" in printed.err
    for path, reason in summary.failures:
        assert f"{path}: {reason}" in printed.err
        assert str(path) not in reason[: len(str(path))]
    images = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert [image["id"] for image in images] == [1, 2, 3]
    assert not any("text" in image["file_name"] for image in images)


@pytest.mark.parametrize("tile", [None, 64])
def test_files_that_take_too_long_are_listed_and_skipped(
    folder: Path, tmp_path: Path, segmenter: Segmenter, tile: int | None
) -> None:
    (folder / "many.jpg").write_bytes(jpeg_of_scans(20_000, 64))
    (folder / "slow.jpg").write_bytes(jpeg_of_scans(240, 6000))
    summary = predict(
        [folder], segmenter, tmp_path / "out", score=SCORE, overlays=False, quiet=True, tile=tile, file_seconds=1.5
    )
    assert summary.pictures == 3
    (many, first), (slow, second) = summary.failures
    assert (Path(many).name, Path(slow).name) == ("many.jpg", "slow.jpg")
    assert first.startswith("has more than 256 scans")
    assert second.startswith("takes longer than 1.5 s to decode")


def test_that_an_image_was_shrunk_much_is_said(
    tmp_path: Path, segmenter: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    edge = segmenter.edges[0]
    Image.new("RGB", (5 * edge, 5 * edge)).save(tmp_path / "large.png")
    Image.new("RGB", (edge, edge)).save(tmp_path / "small.png")
    predict([tmp_path], segmenter, tmp_path / "out", score=SCORE)
    words = "1 image shrunk by a factor of up to 5.0 to fit the size of the model's training images"
    assert words in capsys.readouterr().out
    predict([tmp_path], segmenter, tmp_path / "out", score=SCORE, tile="auto")
    assert "shrunk by" not in capsys.readouterr().out
    known = copy.copy(segmenter)
    known.domain = Domain.of([Traits(0.0, 0.0, 0.0, 0.0, 0.0)], (5 * edge, 5 * edge))
    predict([tmp_path], known, tmp_path / "known", score=SCORE)
    assert "shrunk by" not in capsys.readouterr().out
    assert build_parser("predict")[0].parse_args(["predict", "a.png", "--tile", "auto"]).predict.tile == "auto"
    assert build_parser("predict")[0].parse_args(["predict", "a.png", "--tile", "512"]).predict.tile == 512


def test_standard_error_is_for_failures(
    folder: Path, tmp_path: Path, segmenter: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    predict([folder], segmenter, tmp_path / "out", score=SCORE)
    assert capsys.readouterr().err == ""
    (folder / "text.png").write_text("this is no image")
    predict([folder / "text.png"], segmenter, tmp_path / "out", score=SCORE)
    printed = capsys.readouterr()
    assert printed.err.startswith("1 image could not be read:")
    # No table of nothing.
    assert printed.out.startswith("0 of 1 image in ")


def test_exit_code_of_the_command(folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    segmenter.save(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--quiet", "--device", "cpu"]
    assert run(["predict", str(folder / "a.png"), *arguments]) == 0
    (folder / "text.png").write_text("this is no image")
    assert run(["predict", str(folder), *arguments]) == 1
    assert run(["predict", str(folder / "absent.png"), *arguments]) == 2
    assert run(["predict", str(folder), *arguments, "--score", "7"]) == 2


def test_results_inside_the_input_are_not_segmented_again(folder: Path, segmenter: Segmenter) -> None:
    out = folder / "predictions"
    first = predict([folder], segmenter, out, score=SCORE, masks=True, quiet=True)
    contents = {name: (out / name).read_bytes() for name in files_below(out)}
    again = predict([folder], segmenter, out, score=SCORE, masks=True, quiet=True)
    assert again == first
    assert {name: (out / name).read_bytes() for name in files_below(out)} == contents
    with pytest.raises(SOTRError, match="only results of an earlier run"):
        predict([out], segmenter, out, quiet=True)


def test_an_overlay_that_is_named_is_an_input_and_survives(folder: Path, segmenter: Segmenter) -> None:
    predict([folder / "a.png"], segmenter, folder, score=SCORE, quiet=True)
    overlay = folder / "a.overlay.png"
    before = overlay.read_bytes()
    summary = predict([overlay, folder / "a.png"], segmenter, folder, score=SCORE, quiet=True)
    assert summary.pictures == 2
    assert overlay.read_bytes() == before
    assert (folder / "a-2.overlay.png").exists()
    assert (folder / "a.overlay.overlay.png").exists()


def test_masks_of_an_earlier_run_go(folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    out = tmp_path / "out"
    first = predict([folder / "a.png"], segmenter, out, score=SCORE, masks=True, quiet=True)
    assert len(list((out / "masks" / "a").iterdir())) == first.objects > 1
    (out / "masks" / "a" / "notes.txt").write_text("mine")
    predict([folder / "a.png"], segmenter, out, score=SCORE, masks=True, max_objects=1, quiet=True)
    assert sorted(path.name for path in (out / "masks" / "a").iterdir()) == ["000.png", "notes.txt"]


def test_a_table_of_objects_for_one_picture(
    folder: Path, tmp_path: Path, segmenter: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = predict([folder / "a.png"], segmenter, tmp_path / "out", score=SCORE)
    found = segmenter.predict(folder / "a.png", score=SCORE)
    printed = capsys.readouterr().out
    assert "a.png" in printed
    assert f"{summary.objects} objects" in printed
    for row in found.to_rows():
        assert f"{row['score']:.2f}" in printed
        assert f"{row['area']:,}" in printed
    assert "1 of 1 image in" in printed


def test_a_table_of_pictures_is_capped_and_totalled(
    tmp_path: Path, segmenter: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(33):
        save_picture(tmp_path / "many" / f"{number:02d}.png", number, (32, 32))
    summary = predict([tmp_path / "many"], segmenter, tmp_path / "out", score=SCORE, overlays=False, max_objects=1)
    printed = capsys.readouterr().out
    assert "29.png" in printed
    assert "30.png" not in printed
    assert "... and 3 more" in printed
    assert "33 images" in printed
    assert f" {summary.objects} " in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pictures": ["nowhere/*.png"]}, "nowhere"),
        ({"pictures": []}, "no images"),
        (
            {"pictures": ["https://example.org/a.png"]},
            "is a URL; download it first: curl --remote-name https://example",
        ),
        ({"score": -0.1}, "score is -0.1"),
        ({"max_objects": 0}, "max_objects"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"model": "no such model"}, "there is no model"),
    ],
)
def test_bad_settings_write_nothing(
    folder: Path, tmp_path: Path, segmenter: Segmenter, arguments: dict, message: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SOTRError, match=message) as caught:
        predict(**({"pictures": [folder], "model": segmenter, "out": out, "quiet": True} | arguments))
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_place_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SOTRError, match=r"file is a file; give a folder for the results with --out"):
        predict([folder], segmenter, tmp_path / "file", quiet=True)
    with pytest.raises(SOTRError, match=r"cannot write to .*choose another folder with --out"):
        predict([folder], segmenter, tmp_path / "file" / "out", quiet=True)
    # A folder where the overlay should go: no half-written JSON is left behind.
    out = tmp_path / "out"
    (out / "a.overlay.png").mkdir(parents=True)
    with pytest.raises(SOTRError, match="cannot write to"):
        predict([folder / "a.png"], segmenter, out, score=SCORE, quiet=True)
    assert files_below(out) == []


def test_names_that_are_not_utf8(folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    strange = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")
    try:
        save_picture(Path(strange))
    except (OSError, UnicodeError):
        pytest.skip("this file system wants UTF-8 names")
    summary = predict([strange], segmenter, tmp_path / "out", score=SCORE, csv=True, quiet=True)
    assert summary.pictures == 1
    images = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))["images"]
    assert images[0]["file_name"] == "caf?.png"


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((20, 60, 60)) < 0.5
    instances = Instances.from_masks(np.linspace(1, 0, 20), np.zeros(20), masks, ["x"], [1])

    def peak(pictures: int) -> int:
        tracemalloc.start()
        with result_files(tmp_path, {}, ["x"], [1]) as files:
            for number in range(pictures):
                files.add(f"{number}.png", instances)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)
    assert peak(60) < peak(6) + 100_000
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == 6 * 20 or len(results) == 60 * 20
    assert coco_mask.area(results[0]["segmentation"]) == masks[0].sum()


part = st.text("ab-2", min_size=1, max_size=3)
files = st.tuples(st.lists(part, max_size=2), part, st.sampled_from([".png", ".PNG", ".jpg", ".overlay.png", ""]))


@settings(deadline=None)
@given(st.lists(files, min_size=1, max_size=8))
def test_names_never_collide_nor_hit_an_input(parts: list[tuple[list[str], str, str]]) -> None:
    paths = list(dict.fromkeys(Path("/data", *folders, stem + suffix) for folders, stem, suffix in parts))
    root, file_names = relative_names(paths)
    assert [root / name for name in file_names] == paths
    for out in (Path("/data"), Path("/elsewhere")):
        names = output_names(paths, file_names, out)
        assert len({name.casefold() for name in names}) == len(paths)
        assert not {out / f"{name}.overlay.png" for name in names} & set(paths)
        assert not any("/" in name for name in names)


def test_very_large_pictures_get_no_masks_and_that_is_said(
    tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("large.png", (80, 64)), ("small.png", (64, 48))):
        save_picture(tmp_path / "in" / name, size=size)
    monkeypatch.setattr(sys.modules["sotr.prediction.predict"], "MAX_PIXELS", 64 * 48)
    predict([tmp_path / "in"], segmenter, tmp_path / "out", score=SCORE, masks=True)
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["small"]
    assert "no masks of 1 image of more than" in capsys.readouterr().out
