"""COCO in any layout, with whatever names its files have on other computers; see `sotr.data.layouts`."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sotr.curation.formats.common import LabelledImage, Source
from sotr.curation.normalize import normalized
from sotr.data.images import image_size, is_file
from sotr.data.layouts import find_layout, is_coco
from sotr.data.parse import read_category, read_image
from sotr.data.stream import read_whole
from sotr.errors import SOTRError

NAME = "coco"


def recognizes(folder: Path) -> bool:
    """Whether there is an annotation file in a place that is known."""
    return any(is_coco(path) for path, _ in find_layout(folder).values())


def read(folder: Path) -> Source:
    """The images of all splits; of a lone file the converter makes splits. Classes are those of the first file.

    Raises:
        SOTRError: there is no annotation file, or none that can be read.
    """
    located = find_layout(folder)
    if not located:
        raise SOTRError(f"{folder}: holds no COCO annotation file in a place that is known")
    images: list[Callable[[], LabelledImage]] = []
    notes: list[str] = []
    broken: list[str] = []
    classes: dict[int, str] = {}
    for split, (path, images_dir) in located.items():
        changes: list[str] = []

        def note(what: str, entry: Any, change: str, changes: list[str] = changes) -> None:
            changes.append(what)

        content = normalized(read_whole(path), images_dir, note)
        if changes:
            notes.append(f"values were put into COCO's words, as sotr data check --fix does: {path}")
        names: dict[int, str] = {}
        for entry in content["categories"]:
            read_category(entry, names, path)
        classes = classes or names
        entries: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for number, entry in enumerate(content["annotations"], 1):
            if isinstance(entry, dict) and type(entry.get("image_id")) is int:
                entries[entry["image_id"]].append(entry)
            else:
                broken.append(f"{path}: annotation number {number} belongs to no image; correct its image_id")
        for row, entry in enumerate(content["images"]):
            own = entries.pop(entry.get("id"), []) if isinstance(entry, dict) else []
            alone = split if len(located) > 1 or split == "val" else None
            images.append(partial(_image, path, images_dir, entry, row, own, names, alone))
        broken += [f"{path}: annotations of image {number}, which is not listed; add it" for number in entries]
    return Source(images, tuple(classes[number] for number in sorted(classes)), notes, broken)


def _image(
    json_path: Path,
    images_dir: Path,
    entry: Any,
    row: int,
    annotations: list[dict[str, Any]],
    names: dict[int, str],
    split: str | None,
) -> LabelledImage:
    image_id, name, height, width = read_image(entry, row, json_path)
    path = images_dir / name
    if not is_file(path):
        raise SOTRError(f"{json_path}: image {image_id}: {path} is missing; add the file or drop the image")
    real = image_size(path)
    if real != (height, width):
        raise SOTRError(
            f"{json_path}: image {image_id}: {path} is {real[1]} x {real[0]}, but recorded as {width} x {height}; "
            "sotr data check --fix may repair that"
        )
    image = LabelledImage(path, split, height, width)
    for annotation in annotations:
        where = f"{json_path}: annotation {str(annotation.get('id'))[:40]}"
        category = annotation.get("category_id")
        class_name = names.get(category) if type(category) is int else None
        if class_name is None:
            image.broken.append(f"{where} has a category that is not listed; add it")
        elif not annotation.get("segmentation"):
            image.skipped.append(f"{where} is a box without a mask")
        else:
            image.add(class_name, annotation["segmentation"], where, annotation.get("iscrowd") == 1)
    return image
