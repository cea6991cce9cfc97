"""Large COCO files: read piece by piece, and the second time from an index that is trusted only if it is whole."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sotr.data import index, stream
from sotr.data.cache import KEPT, cache_folder, load_arrays, save_arrays
from sotr.data.coco import CocoDataset, load_coco, read_coco
from sotr.data.index import Texts
from sotr.data.parse import Flaw
from sotr.data.stream import read_lists
from sotr.errors import SOTRError
from tests.conftest import full_disk

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(
    content=st.dictionaries(st.sampled_from(["a", "b", "other", "c"]), JSON, max_size=4),
    lists=st.tuples(st.lists(JSON, max_size=6), st.lists(JSON, max_size=6)),
    block=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
)
def test_entries_are_those_of_json_whatever_the_block(
    tmp_path_factory: pytest.TempPathFactory, content: dict, lists: tuple, block: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("stream") / "file.json"
    content = {**content, "a": lists[0], "b": lists[1]}
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=block % 2 == 0), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_BLOCK", block)
        read: dict[str, list[Any]] = {}
        for key, entry in read_lists(path, ("a", "b")):
            if entry is None:
                read[key] = []
            else:
                read[key].append(entry)
    assert read == {key: ["null" if entry is None else entry for entry in content[key]] for key in ("a", "b")}


@pytest.mark.parametrize("text", ["[1]", '{"a": [1, 2}', '{"a": [1] "b": [2]}', '{"a": [1]} x', "", '{"a": 3}', "nul"])
def test_what_is_no_json_or_lacks_a_list_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(SOTRError, match=r"file\.json"):
        list(read_lists(path, ("a",)))


def test_annotations_may_come_before_their_pictures(coco_folder: Path, tmp_path: Path) -> None:
    content = json.loads((coco_folder / "train.json").read_text())
    (tmp_path / "turned.json").write_text(json.dumps(dict(reversed(content.items()))))
    assert_same(
        load_coco(tmp_path / "turned.json", coco_folder / "images"),
        load_coco(coco_folder / "train.json", coco_folder / "images"),
    )


def assert_same(first: CocoDataset, second: CocoDataset) -> None:
    assert (first.class_names, first.category_ids) == (second.class_names, second.category_ids)
    assert list(first.file_names) == list(second.file_names)
    for name, value in vars(first).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(second, name), err_msg=name)


def test_the_second_opening_is_from_the_index(
    coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOTR_CACHE", str(tmp_path))
    monkeypatch.setattr(index, "CACHED_FROM", 1)
    json_path, images = coco_folder / "train.json", coco_folder / "images"
    first = load_coco(json_path, images)
    (kept,) = (tmp_path / "annotations").iterdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_Reader", None)  # would be called if the file were read again
        second = load_coco(json_path, images)
    assert_same(first, second)
    np.testing.assert_array_equal(first.masks(first.record(2)), second.masks(second.record(2)))
    assert isinstance(second.rle_text, np.memmap)
    assert_same(pickle.loads(pickle.dumps(second)), first)  # what a spawned worker gets
    # Damaged or cut off anywhere it is made anew, and right.
    whole = kept.read_bytes()
    for broken in (whole[:-1], whole[: len(whole) // 2], b"", whole[:5], whole[:-9] + b"x" + whole[-8:]):
        kept.write_bytes(broken)
        assert_same(load_coco(json_path, images), first)
        assert len(kept.read_bytes()) == len(whole)
    # Other contents have another index.
    other = tmp_path / "other.json"
    other.write_text(json_path.read_text() + " ")
    load_coco(other, images)
    assert len(list((tmp_path / "annotations").iterdir())) == 2


def test_a_missing_picture_is_noticed_in_spite_of_the_index(
    coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOTR_CACHE", str(tmp_path))
    monkeypatch.setattr(index, "CACHED_FROM", 1)
    load_coco(coco_folder / "train.json", coco_folder / "images")
    with pytest.raises(SOTRError, match=r"image 1: .*train_0.png is missing"):
        load_coco(coco_folder / "train.json", tmp_path)


def test_a_folder_that_cannot_be_written_is_no_matter(
    coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SOTR_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(index, "CACHED_FROM", 1)
    assert len(load_coco(coco_folder / "train.json", coco_folder / "images")) == 8


def test_a_full_disk_costs_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOTR_CACHE", str(tmp_path))
    with full_disk():
        save_arrays("kind", "key", {"a": np.zeros(3)}, {})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_cache_keeps_the_newest_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOTR_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    for number in range(KEPT + 3):
        save_arrays("kind", str(number), {"x": np.arange(number)}, {"text": f"number {number}"})
    assert len(list((tmp_path / "kind").iterdir())) == KEPT
    loaded = load_arrays("kind", str(KEPT + 2))
    assert loaded is not None
    assert loaded[0]["x"].tolist() == list(range(KEPT + 2))
    assert loaded[1] == {"text": f"number {KEPT + 2}"}
    assert load_arrays("kind", "never") is None


@given(st.lists(st.text(max_size=5), max_size=8))
def test_texts_are_a_list_of_text(texts: list[str]) -> None:
    held = Texts.of(texts)
    assert list(held) == texts
    assert [held[i] for i in range(-len(texts), 0)] == texts
    assert held[1:3] == texts[1:3]
    with pytest.raises(IndexError):
        held[len(texts)]


def test_flaws_are_collected_and_the_rest_is_read(coco_folder: Path, tmp_path: Path) -> None:
    content = json.loads((coco_folder / "train.json").read_text())
    before = load_coco(coco_folder / "train.json", coco_folder / "images")
    broken = content["annotations"][0]
    broken["segmentation"] = [[1, 2, 3]]
    dropped = content["images"].pop(3)["id"]
    content["images"].append({"id": 999, "file_name": "", "height": 5, "width": 5})
    content["annotations"].append({**content["annotations"][4], "id": 1_000_000, "image_id": 999})
    content["annotations"].append({**content["annotations"][4], "id": 1_000_001, "category_id": 5})
    (tmp_path / "train.json").write_text(json.dumps(content))
    flaws: list[Flaw] = []
    data = read_coco(tmp_path / "train.json", coco_folder / "images", flaws)
    orphans = int(np.diff(before.offsets)[3])
    assert sorted(flaw.kind for flaw in flaws) == sorted(
        ["entry", "polygon", "unknown category"] + ["unknown image"] * orphans
    )
    polygon = next(flaw for flaw in flaws if flaw.kind == "polygon")
    assert (polygon.annotation_id, polygon.image_id) == (broken["id"], broken["image_id"])
    assert polygon.file is not None
    assert len(data) == 7
    kept = [i for i in range(8) if int(before.image_ids[i]) != dropped]
    ids = np.concatenate([before.record(i).annotation_ids_I for i in kept])
    assert data.annotation_ids.tolist() == [i for i in ids.tolist() if i != broken["id"]]
