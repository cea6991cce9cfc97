"""COCO as some tools write it, put into COCO's own words; nothing here needs judgement.

Numbers in quotes become numbers, ids that are words are numbered, file names become those of the files that are there,
sizes that are missing are read from the files, one flat polygon becomes a list of one, and a missing or null `iscrowd`
becomes 0.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sotr.data.images import image_size, is_file
from sotr.data.names import find_names
from sotr.data.parse import Flaw, image_name
from sotr.data.stream import show
from sotr.errors import SOTRError

Say = Callable[[str, Any, str], None]
"""Takes what an entry is (image, annotation or category), the entry, and what was changed."""

Content = dict[str, Any]


def normalized(content: Content, images_dir: Path, say: Say) -> Content:
    """The content of a COCO file with what was said above put right; the given one is left as it is."""
    lists = {key: content.get(key) for key in ("images", "annotations", "categories")}
    images, annotations, categories = (list(v) if isinstance(v, list) else [] for v in lists.values())
    images = _images(_with_ids(images, "image", say), images_dir, say)
    categories = _with_ids(categories, "category", say)
    to_image = _numbers(lists["images"], images)
    to_category = _numbers(lists["categories"], categories)
    annotations = [
        _annotation(entry, to_image, to_category, say) for entry in _with_ids(annotations, "annotation", say)
    ]
    return {**content, "images": images, "annotations": annotations, "categories": categories}


def whole_number(value: Any) -> int | None:
    """The whole number that a value is, or that its text says."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = int(value)
        return number if abs(number) < 2**63 and (isinstance(value, str) or number == value) else None
    except (ValueError, OverflowError):
        return None


def _with_ids(entries: list[Any], what: str, say: Say) -> list[Any]:
    """The entries with whole numbers for ids. Ids that are words, or huge, get free numbers, each the same one."""
    found = [whole_number(entry.get("id")) if isinstance(entry, dict) else None for entry in entries]
    free = max((number for number in found if number is not None), default=0) + 1
    given: dict[str, int] = {}
    result = []
    for entry, number in zip(entries, found, strict=True):
        if isinstance(entry, dict) and "id" in entry and number is None and isinstance(entry["id"], str | int):
            key = repr(entry["id"])
            if key not in given:
                given[key], free = free, free + 1
            say(what, entry, f"its id {show(entry['id'])} is no number that COCO allows; now {given[key]}")
            entry = {**entry, "id": given[key]}
        elif isinstance(entry, dict) and number is not None and type(entry["id"]) is not int:
            say(what, entry, f"its id was {show(entry['id'])}, now {number}")
            entry = {**entry, "id": number}
        result.append(entry)
    return result


def _numbers(before: Any, after: list[Any]) -> dict[str, int]:
    """Each id as it was, in `repr`, -> the number that it is now."""
    entries = before if isinstance(before, list) else []
    return {
        repr(old["id"]): new["id"]
        for old, new in zip(entries, after, strict=True)
        if isinstance(old, dict) and isinstance(old.get("id"), str | int | float) and type(new["id"]) is int
    }


def _images(entries: list[Any], images_dir: Path, say: Say) -> list[Any]:
    names: list[str] = []
    for entry in entries:
        try:
            names.append(image_name(entry, "") if isinstance(entry, dict) else "")
        except Flaw:
            names.append("")
    found = {i: name for i, name in find_names(names, images_dir).items() if names[i]}
    result = []
    for i, entry in enumerate(entries):
        if names[i]:
            name = found.get(i, names[i])
            if entry.get("file_name") != name:
                say("image", entry, f"its file is {name}")
            entry = _with_size({**entry, "file_name": name}, images_dir / name, say)
        result.append(entry)
    return result


def _with_size(entry: dict[str, Any], path: Path, say: Say) -> dict[str, Any]:
    sides = {key: whole_number(entry.get(key)) for key in ("height", "width")}
    if any(side is None or side < 1 for side in sides.values()):
        if not is_file(path):
            return entry
        try:
            height, width = image_size(path)
        except SOTRError:
            return entry
        recorded = f"{show(entry.get('width'))} x {show(entry.get('height'))}"
        say("image", entry, f"its width and height were {recorded}, the file is {width} x {height}")
        return {**entry, "height": height, "width": width}
    if any(type(entry[key]) is not int for key in sides):
        say("image", entry, "its width and height were no whole numbers")
    return {**entry, **sides}


def _annotation(entry: Any, to_image: dict[str, int], to_category: dict[str, int], say: Say) -> Any:
    if not isinstance(entry, dict):
        return entry
    entry = dict(entry)
    for key, known in (("image_id", to_image), ("category_id", to_category)):
        value = entry.get(key)
        if type(value) is int and value in known.values():
            continue
        number = known.get(repr(value), whole_number(value))
        if number is not None and (type(value) is not int or number != value):
            say("annotation", entry, f"its {key} was {show(value)}, now {number}")
            entry[key] = number
    crowd = entry.get("iscrowd", 0)
    if crowd is None or isinstance(crowd, bool) or (type(crowd) is not int and whole_number(crowd) in (0, 1)):
        entry["iscrowd"] = int(crowd) if crowd is not None else 0
        say("annotation", entry, f"its iscrowd was {show(crowd)}, now {entry['iscrowd']}")
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list) and segmentation and all(isinstance(v, int | float) for v in segmentation):
        entry["segmentation"] = [segmentation]
        say("annotation", entry, "its one polygon is now in a list")
    elif isinstance(segmentation, dict):
        entry["segmentation"] = _run_lengths(segmentation)
    return entry


def _run_lengths(segmentation: dict[str, Any]) -> dict[str, Any]:
    """Whole numbers where they are written as 64.0 or "64"."""
    changed = dict(segmentation)
    for key in ("size", "counts"):
        values = segmentation.get(key)
        if isinstance(values, list):
            numbers = [whole_number(value) for value in values]
            if None not in numbers:
                changed[key] = numbers
    return changed
