"""What is wrong with a data set is found, named and repaired, and training never meets it in the middle of an epoch."""

import copy
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sotr.config import SOTRConfig
from sotr.curation import check_data, show_data
from sotr.curation import image_files as pictures_module
from sotr.curation.checks import verify
from sotr.curation.findings import KINDS
from sotr.curation.image_files import identical_pairs, open_pictures, similar_pairs
from sotr.curation.synthetic import SyntheticShapes, write_synthetic
from sotr.data.coco import find_data
from sotr.errors import SOTRError
from sotr.masks import run_lengths as rle

Content = dict[str, Any]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set without a fault."""
    folder = tmp_path_factory.mktemp("sound") / "data"
    return write_synthetic(folder, train=6, val=3, height=64, width=80, min_objects=2, max_objects=4, quiet=True)


@pytest.fixture
def data(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(sound, tmp_path / "data"))


def edit(data: Path, change: Callable[[Content], Any], split: str = "train") -> None:
    path = data / f"{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def kinds(data: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for finding in check_data(str(data), model="sotr-nano", device="cpu", quiet=True).findings:
        found[finding.kind] = found.get(finding.kind, 0) + 1
    return found


def verified(data: Path) -> list[str]:
    train, val = find_data(data)
    assert train is not None
    return [f.kind for f in verify({"train": train} | ({} if val is None else {"val": val}), SOTRConfig(), QUIET)]


def test_nothing_is_wrong_with_a_sound_data_set(sound: Path) -> None:
    assert kinds(sound) == {}
    assert verified(sound) == []


def test_training_is_told_of_objects_that_it_would_not_learn(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, _ = find_data(sound)
    assert train is not None
    gap = replace(SOTRConfig(), image_size=64, scale_ranges=((1, 2), (2, 3), (3, 4), (4, 5), (5, 6)))
    found = verify({"train": train}, gap, Console(file=sys.stdout, width=1000))
    assert {finding.kind for finding in found} == {"no level"}
    assert len(found) == len(train.labels)
    assert (
        f"data: {KINDS['no level'].title}: {len(found)} (train: train_000000.jpg annotation" in capsys.readouterr().out
    )


def test_an_architecture_of_ones_own(sound: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("grids: [9, 7, 5, 3, 2]\n")
    report = check_data(str(sound), model=str(own), quiet=True)
    assert [level["grid"] for level in report.fit["levels"]] == [9, 7, 5, 3, 2]
    own.write_text("grid: 9\n")
    with pytest.raises(SOTRError, match=r"own\.yaml: unknown setting grid"):
        check_data(str(sound), model=str(own), quiet=True)


def annotation(**changes: Any) -> Callable[[Path], None]:
    return lambda data: edit(data, lambda content: content["annotations"][0].update(changes))


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def cut_off(data: Path) -> None:
    path = data / "images" / "train_000002.jpg"
    path.write_bytes(path.read_bytes()[:-700])


def other_size(data: Path) -> None:
    path = data / "images" / "train_000002.jpg"
    Image.open(path).resize((160, 128)).save(path)


def turned(data: Path) -> None:
    path = data / "images" / "train_000002.jpg"
    picture = Image.open(path)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)


def another_shape(data: Path) -> None:
    Image.new("RGB", (30, 90)).save(data / "images" / "train_000002.jpg")


def again(kind: str, **changes: Any) -> Callable[[Path], None]:
    return lambda data: edit(data, lambda content: content[kind].append({**content[kind][0], **changes}))


def copied(source: str, target: str) -> Callable[[Path], None]:
    return lambda data: shutil.copyfile(data / "images" / source, data / "images" / target)


def saved_otherwise(source: str, target: str) -> Callable[[Path], None]:
    def save(data: Path) -> None:
        Image.open(data / "images" / source).save(data / "images" / target, quality=97)

    return save


def exchanged(data: Path) -> None:
    def change(content: Content) -> None:
        image = content["images"][2]
        image["width"], image["height"] = image["height"], image["width"]

    edit(data, change)


def polygon_crowd(data: Path) -> None:
    annotation(iscrowd=1, segmentation=[square(5, 5, 20)], area=400)(data)


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("cut off image", cut_off, "unreadable"),
    ("missing image", lambda data: (data / "images" / "train_000003.jpg").unlink(), "missing"),
    ("empty file", lambda data: (data / "images" / "train_000003.jpg").write_bytes(b""), "unreadable"),
    ("other size", other_size, "size"),
    ("EXIF rotation", turned, "size"),
    ("another shape", another_shape, "size"),
    ("2 points", annotation(segmentation=[[1, 2, 3, 4]]), "polygon"),
    ("one broken part", annotation(segmentation=[square(5, 5, 20), [1, 2, 3, 4]], area=400), "polygon"),
    ("NaN", annotation(segmentation=[[1, 2, 3, float("nan"), 5, 6]]), "polygon"),
    ("far outside", annotation(segmentation=[square(5e6, 5, 20)]), "far outside"),
    ("RLE too short", annotation(segmentation={"size": [64, 80], "counts": [3, 4]}), "rle"),
    ("RLE garbage", annotation(segmentation={"size": [64, 80], "counts": "zz%"}), "rle"),
    ("no mask", annotation(segmentation=[]), "no mask"),
    ("iscrowd 2", annotation(iscrowd=2), "iscrowd"),
    ("duplicate id", again("annotations", segmentation=[square(50, 40, 15)], area=225, category_id=2), "duplicate id"),
    ("unknown image", annotation(image_id=77), "unknown image"),
    ("unknown category", annotation(category_id=77), "unknown category"),
    ("no image id", lambda data: edit(data, lambda c: c["annotations"][0].pop("image_id")), "entry"),
    ("image twice", again("images", id=99), "duplicate image"),
    ("height 0", lambda data: edit(data, lambda c: c["images"][1].update(height=0)), "entry"),
    ("empty mask", annotation(segmentation=[[1.0, 1.0] * 3], area=0), "empty mask"),
    ("outside", annotation(segmentation=[square(-10, 5, 30)], area=600), "outside"),
    ("area", annotation(area=9999), "area"),
    ("object twice", again("annotations", id=1000), "duplicate object"),
    ("object as two classes", again("annotations", id=1000, category_id=5), "duplicate object"),
    ("crowd as polygon", polygon_crowd, "crowd polygon"),
    ("empty image", lambda data: edit(data, lambda c: c["annotations"].clear(), "val"), "empty image"),
    ("copy in a split", copied("train_000001.jpg", "train_000002.jpg"), "identical images"),
    ("copy in the other split", copied("train_000001.jpg", "val_000001.jpg"), "shared between splits"),
    ("saved otherwise", saved_otherwise("train_000001.jpg", "train_000002.jpg"), "similar images"),
    ("otherwise in the other split", saved_otherwise("train_000001.jpg", "val_000001.jpg"), "similar across splits"),
    (
        "only crowds to learn",
        lambda data: edit(data, lambda c: [a.update(iscrowd=1) for a in c["annotations"]]),
        "no objects",
    ),
    ("categories differ", lambda data: edit(data, lambda c: c["categories"].pop(), "val"), "categories"),
    ("no JSON", lambda data: (data / "val.json").write_text("{"), "file"),
]
STAY = {"similar images", "similar across splits", "empty image", "no objects", "categories", "file"}
"""What needs judgement, and is not repaired."""


@pytest.mark.parametrize(("breakage", "kind"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_each_fault_is_found_stops_training_or_is_counted_and_is_repaired(
    data: Path, tmp_path: Path, breakage: Callable[[Path], Any], kind: str
) -> None:
    breakage(data)
    report = check_data(str(data), model="sotr-nano", device="cpu", quiet=True)
    found = [finding for finding in report.findings if finding.kind == kind]
    assert found, [finding.kind for finding in report.findings]
    assert all("\n" not in finding.message for finding in report.findings)
    assert bool(report.failures) == KINDS[kind].harmful

    if KINDS[kind].harmful:
        with pytest.raises(SOTRError) as stopped:
            verified(data)
        if found[0].annotation_id is not None:
            assert f"annotation {found[0].annotation_id}" in str(stopped.value)
        elif found[0].file is not None:
            assert Path(found[0].file).name in str(stopped.value) or f"image {found[0].image_id}" in str(stopped.value)
        assert str(data) in str(stopped.value)
    else:
        assert kind in verified(data)

    if kind in ("file", "categories"):
        with pytest.raises(SOTRError, match="needs your judgement"):
            check_data(str(data), model="sotr-nano", device="cpu", fix=str(tmp_path / "fixed"), quiet=True)
        assert not (tmp_path / "fixed").exists()
        return
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    check_data(str(data), model="sotr-nano", device="cpu", fix=str(tmp_path / "fixed"), quiet=True)
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    left = kinds(tmp_path / "fixed")
    assert set(left) <= STAY, left
    if kind != "no objects":
        verified(tmp_path / "fixed")


def test_findings_name_what_they_are_about(data: Path) -> None:
    cut_off(data)
    annotation(segmentation=[[1, 2, 3, 4]])(data)
    first, second = check_data(str(data), model="sotr-nano", device="cpu", quiet=True).failures
    assert (first.kind, first.split, first.file, first.annotation_id) == ("polygon", "train", "train_000000.jpg", 1)
    assert (second.kind, second.file, second.image_id) == ("unreadable", "train_000002.jpg", 3)


def test_a_scaled_picture_keeps_its_objects(data: Path, tmp_path: Path) -> None:
    before = find_data(data).train
    assert before is not None
    areas = before.record(2).areas_I
    other_size(data)
    check_data(str(data), model="sotr-nano", device="cpu", fix=str(tmp_path / "fixed"), quiet=True)
    after = find_data(tmp_path / "fixed").train
    assert after is not None
    assert after.sizes_N2[2].tolist() == [128, 160]
    np.testing.assert_allclose(after.record(2).areas_I, 4 * areas)


def words(kind: str, key: str, change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    """Another way to write a value, in both splits."""

    def edited(content: Content) -> None:
        for entry in content[kind]:
            if key in entry:
                entry[key] = change(entry[key])

    return lambda data: [edit(data, edited, split) for split in ("train", "val")]


def words_for_both(kind: str, key: str, change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    """The same of ids and of what refers to them."""
    first = words(kind, "id", change)
    second = words("annotations", key, change)
    return lambda data: [first(data), second(data)]


def flat(segmentation: Any) -> Any:
    return segmentation[0] if isinstance(segmentation, list) and len(segmentation) == 1 else segmentation


def float_size(segmentation: Any) -> Any:
    return {**segmentation, "size": [64.0, 80.0]} if isinstance(segmentation, dict) else segmentation


def without(kind: str, key: str) -> Callable[[Path], None]:
    return lambda data: edit(data, lambda content: [entry.pop(key, None) for entry in content[kind]])


KEPT: dict[str, Callable[[Path], Any]] = {
    "category ids in quotes": words("annotations", "category_id", str),
    "all category ids in quotes": words_for_both("categories", "category_id", str),
    "image ids in quotes": words_for_both("images", "image_id", str),
    "image ids are words": words_for_both("images", "image_id", lambda number: f"image-{number:x}z"),
    "image ids are huge": words_for_both("images", "image_id", lambda number: 10**30 + number),
    "ids as 1.0": words("annotations", "id", float),
    "backslashes": words("images", "file_name", lambda name: f"images\\{name}"),
    "absolute names": words("images", "file_name", lambda name: f"/home/bob/{name}"),
    "no width": without("images", "width"),
    "sizes of -1": words("images", "height", lambda _: -1),
    "sizes in quotes": words("images", "height", str),
    "flat polygons": words("annotations", "segmentation", flat),
    "float sizes": words("annotations", "segmentation", float_size),
    "iscrowd null": words("annotations", "iscrowd", lambda _: None),
    "iscrowd false": words("annotations", "iscrowd", bool),
    "iscrowd in quotes": words("annotations", "iscrowd", str),
    "no iscrowd": without("annotations", "iscrowd"),
}


@pytest.mark.parametrize("breakage", KEPT.values(), ids=KEPT)
def test_what_other_tools_write_is_repaired_without_a_loss(
    data: Path, tmp_path: Path, breakage: Callable[[Path], Any]
) -> None:
    before = find_data(data)
    breakage(data)
    check_data(str(data), model="sotr-nano", device="cpu", fix=str(tmp_path / "fixed"), quiet=True)
    after = find_data(tmp_path / "fixed")
    assert kinds(tmp_path / "fixed") == {}
    for old, new in zip(before, after, strict=True):
        assert old is not None
        assert new is not None
        assert [Path(name).name for name in new.file_names] == list(old.file_names)
        for field in ("sizes_N2", "offsets", "labels", "iscrowd", "annotation_ids", "rle_text", "areas"):
            np.testing.assert_array_equal(getattr(new, field), getattr(old, field), err_msg=field)


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": None},
        {"category_id": []},
        {"category_id": {"a": 1}},
        {"segmentation": "none"},
    ],
    ids=str,
)
def test_a_copy_without_annotations_is_not_written(data: Path, tmp_path: Path, change: Content) -> None:
    edit(data, lambda content: [entry.update(change) for entry in content["annotations"]])
    with pytest.raises(SOTRError, match="no annotation of it can be repaired without your judgement"):
        check_data(str(data), model="sotr-nano", device="cpu", fix=str(tmp_path / "fixed"), quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


UNUSABLE: dict[str, Content] = {
    "no names": {"file_name": None},
    "ids are lists": {"id": []},
    "sizes are words": {"height": "high"},
}


@pytest.mark.parametrize("change", UNUSABLE.values(), ids=UNUSABLE)
def test_a_split_without_a_usable_image_is_a_finding(data: Path, tmp_path: Path, change: Content) -> None:
    edit(data, lambda content: [entry.update(change) for entry in content["images"]])
    found = kinds(data)
    assert found["no images"] == 1
    assert found["entry"] >= 6
    (data / "val.json").unlink()
    assert "no images" in kinds(data)


@pytest.mark.parametrize(
    "categories", [[], [{}], [None], [{"id": [], "name": "a"}], [{"id": 1, "name": None}]], ids=str
)
def test_damaged_categories_are_findings(data: Path, categories: list[Any]) -> None:
    edit(data, lambda content: content.update(categories=categories))
    assert kinds(data)["file"] == 1


@pytest.mark.parametrize(
    "breakage",
    [
        lambda data: edit(data, lambda content: [a.update(id=f"a{a['id']}") for a in content["annotations"]]),
        lambda data: edit(data, lambda content: [a.pop("id") for a in content["annotations"]]),
        exchanged,
    ],
    ids=["ids in words", "no ids", "width and height exchanged"],
)
def test_what_can_be_kept_is_kept(data: Path, tmp_path: Path, breakage: Callable[[Path], Any]) -> None:
    before = find_data(data).train
    assert before is not None
    breakage(data)
    check_data(str(data), model="sotr-nano", device="cpu", fix=str(tmp_path / "fixed"), quiet=True)
    after = find_data(tmp_path / "fixed").train
    assert after is not None
    np.testing.assert_array_equal(after.sizes_N2, before.sizes_N2)
    assert len(set(after.annotation_ids.tolist())) == len(before.annotation_ids)
    for picture in range(len(before)):
        np.testing.assert_array_equal(after.record(picture).areas_I, before.record(picture).areas_I)


def test_exchanged_sizes_cost_no_mask_that_fits(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever the findings say of masks, which were held against the wrong size; and one broken mask is one mask."""
    exchanged(data)
    wide, broken = [square(60, 5, 15)], [[1, 2, 3, 4]]  # the first leaves an image of the recorded 64 x 80

    def change(content: Content) -> None:
        own = [entry for entry in content["annotations"] if entry["image_id"] == content["images"][2]["id"]]
        for entry, segmentation in zip(own, (wide, broken), strict=False):
            entry.update(segmentation=segmentation, area=225)

    edit(data, change)
    before = json.loads((data / "train.json").read_text())["annotations"]
    check_data(str(data), model="sotr-nano", device="cpu", fix=str(tmp_path / "fixed"), quiet=False)
    after = json.loads((tmp_path / "fixed" / "train.json").read_text())
    assert [image["width"] for image in after["images"]] == [80] * 6
    assert after["annotations"] == [entry for entry in before if entry["segmentation"] != broken]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("train.json: ")]
    assert [line.split(": ", 2)[2] for line in said] == [
        "width and height were exchanged; now 80 x 64",
        "left out: it has a polygon with fewer than 3 points; give at least 3 or drop the polygon",
    ]


def test_exchanged_sizes_that_no_mask_fits_cost_the_picture(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exchanged(data)

    def change(content: Content) -> None:
        for entry in content["annotations"]:
            if entry["image_id"] == content["images"][2]["id"]:
                entry.update(segmentation=[square(5, 66, 10)], area=100)

    edit(data, change)
    check_data(str(data), model="sotr-nano", device="cpu", fix=str(tmp_path / "fixed"), quiet=False)
    assert len(json.loads((tmp_path / "fixed" / "train.json").read_text())["images"]) == 5
    assert "train_000002.jpg: left out: it is 80 x 64, recorded as 64 x 80" in capfd.readouterr().err


def test_json_output_is_one_object(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_data(str(sound), model="sotr-nano", device="cpu", json=True, quiet=True)
    printed = json.loads(capsys.readouterr().out)
    train = printed["splits"]["train"]
    content = json.loads((sound / "train.json").read_text())
    assert (train["pictures"], train["objects"]) == (6, len(content["annotations"]))
    assert sum(train["classes"].values()) == train["objects"]
    assert printed["fit"]["objects"] == train["objects"]
    assert printed["harmful"] == 0
    assert printed["advice"]["image_size"] > 0


def test_tables_and_page(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut_off(data)
    check_data(str(data), model="sotr-nano", device="cpu", report=str(tmp_path / "page.html"), quiet=False)
    text = capsys.readouterr().out
    assert "images that cannot be decoded: 1 (train: train_000002.jpg)" in text
    assert "training would stop at once" in text
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 5
    assert page.count("data:image/jpeg;base64") >= 8
    assert "1 harmful finding" in page
    assert "http" not in page.replace("https://www.w3.org", "")


def test_contact_sheet(sound: Path, tmp_path: Path) -> None:
    path = show_data(str(sound), out=str(tmp_path / "sheet.png"), count=5, columns=3, tile=100, quiet=True)
    with Image.open(path) as sheet:
        assert sheet.width == 3 * 112 + 12
        assert np.asarray(sheet).std() > 20
    with pytest.raises(SOTRError, match=r"sheet\.gif: give a file that ends in"):
        show_data(str(sound), out=str(tmp_path / "sheet.gif"))


def test_unchanged_pictures_are_not_opened_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = find_data(data).train
    assert train is not None
    first = open_pictures(train, QUIET)
    opened: list[Path] = []
    real = pictures_module.open_file

    def note(path: Path) -> Any:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(pictures_module, "open_file", note)
    second = open_pictures(train, QUIET)
    assert opened == []
    for name in ("sizes_N2", "digests_N", "thumbnails_NP"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    other_size(data)
    third = open_pictures(train, QUIET)
    assert [path.name for path in opened] == ["train_000002.jpg"]
    assert third.sizes_N2[2].tolist() == [128, 160]


def test_processes_find_the_same(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cut_off(data)
    train = find_data(data).train
    assert train is not None
    alone = open_pictures(train, QUIET, processes=1)
    monkeypatch.setattr(pictures_module, "ALONE_UP_TO", 0)
    monkeypatch.setenv("SOTR_CACHE", str(tmp_path / "other"))
    together = open_pictures(train, QUIET, processes=2)
    assert list(alone.errors) == list(together.errors)
    assert "train_000002.jpg" in together.errors[2]
    np.testing.assert_array_equal(alone.digests_N, together.digests_N)


def test_pairs() -> None:
    digests = np.array([5, 7, 5, 0, 0, 5], np.uint64)
    assert identical_pairs(digests).tolist() == [[0, 2], [0, 5]]
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 256, (50, 256)).astype(np.uint8)
    assert similar_pairs(thumbnails).tolist() == []
    thumbnails[40] = np.clip(thumbnails[3].astype(int) + rng.integers(-1, 2, 256), 0, 255)
    thumbnails[7] = thumbnails[8] = 100  # flat images look alike without being copies
    assert similar_pairs(thumbnails).tolist() == [[3, 40]]
    assert similar_pairs(thumbnails[:1]).shape == (0, 2)


def test_centres_of_mass_are_those_of_the_pixels() -> None:
    picture = SyntheticShapes(50, 70, 6, 6)[0]
    masks = np.concatenate([picture.masks_IHW, np.zeros((1, 50, 70), np.bool_)])
    from sotr.results.instances import encode_masks

    runs = rle.runs_of([entry["counts"].encode() for entry in encode_masks(masks)], 50)
    centers = rle.centers(runs)
    for mask, (x, y) in zip(masks[:-1], centers, strict=False):
        rows, columns = np.nonzero(mask)
        assert (x, y) == (pytest.approx(columns.mean() + 0.5), pytest.approx(rows.mean() + 0.5))
    assert centers[-1].tolist() == [0, 0]


def test_unreadable_pictures_of_a_large_split_name_the_first(data: Path) -> None:
    cut_off(data)
    other = copy.copy(data)
    another = other / "images" / "train_000004.jpg"
    another.write_bytes(b"no picture")
    with pytest.raises(SOTRError, match=r"train_000002.jpg.*\(and 1 more; sotr data check lists them\)"):
        verified(data)


def test_config_of_models(sound: Path) -> None:
    assert SOTRConfig.preset("sotr-nano").grids[0] == 40
    with pytest.raises(SOTRError):
        check_data(str(sound), model="no-such-model", device="cpu", quiet=True)
