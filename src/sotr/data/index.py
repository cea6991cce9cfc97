"""A COCO file as flat arrays: read piece by piece, checked entry by entry, and kept for the next time."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from sotr.data.cache import load_arrays, save_arrays
from sotr.data.parse import (
    Flaw,
    check_masks,
    compress,
    reaches_outside,
    read_category,
    read_image,
    whole,
)
from sotr.data.stream import read_lists, show
from sotr.errors import SOTRError

CACHED_FROM = 2**22
"""Files of at least so many bytes are kept as an index; smaller ones are read anew as quickly."""

_VERSION = 2
"""Of the index; older ones are made anew."""


class Texts(Sequence[str]):
    """Many texts as two arrays: each Python object less is one that no loader worker copies when it looks at it."""

    def __init__(self, characters: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.characters, self.offsets = characters, offsets

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets_of(np.fromiter(map(len, encoded), np.int64)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} texts, and none has the number {index}")
        index %= len(self)
        part = self.characters[self.offsets[index] : self.offsets[index + 1]]
        return part.tobytes().decode("utf-8", "surrogatepass")


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of the joined items begins, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def read_index(json_path: Path, flaws: list[Flaw] | None = None, unlabeled: bool = False) -> dict[str, Any]:
    """The fields of a `CocoDataset` but for its paths. The images are not looked for.

    Args:
        flaws: takes what is wrong with entries, which are then left out; without it the first one is raised.
        unlabeled: the file may lack the list of annotations, as those of test images do.
    """
    try:
        key = _key(json_path, unlabeled) if flaws is None and json_path.stat().st_size >= CACHED_FROM else None
    except OSError:
        key = None  # reading will say what is the matter
    if key is not None and (kept := load_arrays("annotations", key)) is not None:
        arrays, texts = kept
        return _fields(arrays, json.loads(texts["categories"]))
    reader = _Reader(json_path, flaws, unlabeled)
    arrays, categories = reader.read()
    if key is not None:
        save_arrays("annotations", key, arrays, {"categories": json.dumps(categories)})
    return _fields(arrays, categories)


def _key(json_path: Path, unlabeled: bool) -> str:
    with json_path.open("rb") as file:
        return f"{_VERSION}{'u' if unlabeled else ''}-{hashlib.file_digest(file, 'blake2b').hexdigest()[:40]}"


def _fields(arrays: dict[str, NDArray[Any]], categories: list[tuple[int, str]]) -> dict[str, Any]:
    values: dict[str, Any] = dict(arrays)
    names = Texts(values.pop("name_characters"), values.pop("name_offsets"))
    return values | {
        "category_ids": tuple(category_id for category_id, _ in categories),
        "class_names": tuple(name for _, name in categories),
        "file_names": names,
    }


@dataclass
class _Reader:
    json_path: Path
    flaws: list[Flaw] | None
    unlabeled: bool

    names: dict[int, str] = field(default_factory=dict)
    position: dict[int, int] = field(default_factory=dict)
    """Image id -> image."""
    file_names: list[str] = field(default_factory=list)
    known_names: set[str] = field(default_factory=set)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    flawed_images: set[int] = field(default_factory=set)
    """Their annotations are left out without a word."""
    seen: set[int] = field(default_factory=set)
    text: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.pictures, self.categories, self.ids, self.lengths = (array("q") for _ in range(4))
        self.areas, self.crowds, self.polygons, self.outside = array("d"), array("b"), array("b"), array("b")

    def read(self) -> tuple[dict[str, NDArray[Any]], list[tuple[int, str]]]:
        rows = dict.fromkeys(("images", "annotations", "categories"), 0)
        early: list[Any] = []  # annotations that come before the sizes of their images
        begun: list[str] = []
        for key, entry in read_lists(self.json_path, tuple(rows), ("annotations",) if self.unlabeled else ()):
            if entry is None:
                if begun[-1:] == ["images"] and not rows["images"]:
                    break
                begun.append(key)
                continue
            row = rows[key]
            rows[key] += 1
            if key == "images":
                self._entry(entry, row, self._image)
            elif key == "categories":
                self._entry(entry, row, self._category)
            elif "images" in begun:
                self._entry(entry, row, self._annotation)
            else:
                early.append(entry)
        for row, entry in enumerate(early):
            self._entry(entry, row, self._annotation)
        if not rows["images"]:
            raise SOTRError(f"{self.json_path}: the list of images is empty; add images")
        if not rows["categories"]:
            raise SOTRError(f"{self.json_path}: the list of categories is empty; name at least one class of objects")
        if not self.names:
            raise SOTRError(f"{self.json_path}: none of its categories can be used; {self._first_flaw()}")
        return self._arrays()

    def _first_flaw(self) -> str:
        first = next((flaw for flaw in self.flaws or () if flaw.kind == "category"), None)
        return str(first).removeprefix(f"{self.json_path}: ")

    def _entry(self, entry: Any, row: int, check: Callable[[Any, int], None]) -> None:
        try:
            check(entry, row)
        except Flaw as flaw:
            if isinstance(entry, dict):
                self._note(flaw, entry, is_image=check == self._image)
            else:
                self._note(flaw, {}, is_image=False)

    def _note(self, flaw: Flaw, entry: dict[str, Any], is_image: bool) -> None:
        """Raise the flaw, or collect it with the names it concerns."""
        own, image = entry.get("id"), entry.get("id" if is_image else "image_id")
        flaw.annotation_id = own if type(own) is int and not is_image and "image_id" in entry else None
        flaw.image_id = image if type(image) is int else None
        if is_image and isinstance(name := entry.get("file_name"), str):
            flaw.file = name if len(name) <= 100 else f"{name[:97]}..."
        elif flaw.image_id in self.position:
            flaw.file = self.file_names[self.position[flaw.image_id]]
        if self.flaws is None:
            raise flaw
        if is_image and flaw.image_id is not None and flaw.image_id not in self.position:
            self.flawed_images.add(flaw.image_id)
        self.flaws.append(flaw)

    def _category(self, entry: Any, row: int) -> None:
        read_category(entry, self.names, self.json_path)

    def _image(self, entry: Any, row: int) -> None:
        image_id, name, height, width = read_image(entry, row, self.json_path)
        for what, value, known in (("id", image_id, self.position), ("file_name", name, self.known_names)):
            if value in known:
                raise Flaw(
                    "duplicate image",
                    f"{self.json_path}: image {what} {value!r} occurs twice; list each image once",
                )
        self.position[image_id] = len(self.file_names)
        self.file_names.append(name)
        self.known_names.add(name)
        self.sizes.append((height, width))

    def _annotation(self, entry: Any, row: int) -> None:
        where = f"{self.json_path}: annotation number {row + 1}"
        if not isinstance(entry, dict):
            raise Flaw("entry", f"{where} is {show(entry)}; it must be an object")
        annotation_id = whole(entry, "id", where)
        where = f"{self.json_path}: annotation {annotation_id}"
        if annotation_id in self.seen:
            raise Flaw("duplicate id", f"{where} occurs twice; give each annotation an id of its own")
        self.seen.add(annotation_id)
        image_id, category_id = whole(entry, "image_id", where), whole(entry, "category_id", where)
        picture = self.position.get(image_id)
        if picture is None:
            if image_id in self.flawed_images:
                return
            raise Flaw(
                "unknown image",
                f"{where} belongs to image {image_id}, which is not among the images; add it or drop both",
            )
        crowd = entry.get("iscrowd") or 0  # some tools write null
        if crowd not in (0, 1):
            raise Flaw("iscrowd", f"{where} has iscrowd {show(crowd)}; it must be 0 or 1")
        area = entry.get("area")
        segmentation = entry.get("segmentation")
        height, width = self.sizes[picture]
        string = compress(segmentation, height, width, where)
        self.pictures.append(picture)
        self.categories.append(category_id)
        self.ids.append(annotation_id)
        self.crowds.append(bool(crowd))
        self.areas.append(area if isinstance(area, int | float) and 0 <= area < 2**53 else np.nan)
        self.polygons.append(isinstance(segmentation, list))
        self.outside.append(reaches_outside(segmentation, height, width))
        self.lengths.append(len(string))
        self.text += string

    def _arrays(self) -> tuple[dict[str, NDArray[Any]], list[tuple[int, str]]]:
        """What was read, without flawed annotations, grouped by image."""
        categories = sorted(self.names.items())
        category_ids = np.array([category_id for category_id, _ in categories], np.int64)
        sizes_N2 = np.array(self.sizes, np.int64).reshape(-1, 2)
        pictures, of_category, lengths = (
            np.frombuffer(values, np.int64) for values in (self.pictures, self.categories, self.lengths)
        )
        ids = np.frombuffer(self.ids, np.int64)
        text = np.frombuffer(self.text, np.uint8)
        pixels, boxes, broken = check_masks(text, lengths, sizes_N2[pictures])
        labels = np.searchsorted(category_ids, of_category)
        unknown = category_ids[np.minimum(labels, len(category_ids) - 1)] != of_category
        image_ids = np.fromiter(self.position, np.int64)
        for row in np.flatnonzero(broken | unknown).tolist():
            where = f"{self.json_path}: annotation {ids[row]}"
            if unknown[row]:
                flaw = Flaw(
                    "unknown category",
                    f"{where} has category {of_category[row]}, which is not among the categories; add it there",
                )
            else:
                height, width = self.sizes[pictures[row]]
                flaw = Flaw(
                    "rle",
                    f"{where} has an RLE whose counts do not decode to {height} x {width} pixels; "
                    "encode the mask again",
                )
            self._note(flaw, {"id": int(ids[row]), "image_id": int(image_ids[pictures[row]])}, is_image=False)

        areas = np.frombuffer(self.areas, np.float64)
        by_row = {
            "labels": labels,
            "iscrowd": np.frombuffer(self.crowds, np.bool_),
            "annotation_ids": ids,
            "areas": np.where(np.isnan(areas), pixels, areas),
            "boxes": boxes,
            "polygons": np.frombuffer(self.polygons, np.bool_),
            "outside": np.frombuffer(self.outside, np.bool_),
        }
        kept = np.flatnonzero(~(broken | unknown))
        order = kept[np.argsort(pictures[kept], kind="stable")]
        starts = offsets_of(lengths)
        rle_text = b"".join(self.text[starts[row] : starts[row + 1]] for row in order.tolist())
        names = Texts.of(self.file_names)
        return {
            "image_ids": image_ids,
            "name_characters": names.characters,
            "name_offsets": names.offsets,
            "sizes_N2": sizes_N2,
            "offsets": np.searchsorted(pictures[order], np.arange(len(self.file_names) + 1)),
            "rle_text": np.frombuffer(rle_text, np.uint8),
            "rle_offsets": offsets_of(lengths[order]),
            **{name: values[order] for name, values in by_row.items()},
        }, categories
