"""VGG Image Annotator: one JSON file with the regions of all images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sotr.curation.formats.common import (
    OBJECT,
    LabelledImage,
    Segmentation,
    Source,
    ellipse_of,
    find_images,
    list_of,
    numbers_of,
    read_json,
    split_folders,
)
from sotr.data.images import image_size
from sotr.errors import SOTRError

NAME = "via"

ATTRIBUTES = ("class", "label", "name", "type", "category")
"""Names of region attributes that are classes, the first of them that there is; else the only one."""


def recognizes(folder: Path) -> bool:
    """Whether a JSON file has VIA's entries."""
    return any(_file(part) is not None for _, part in split_folders(folder))


def read(folder: Path) -> Source:
    """The images of the JSON files, in splits if there are folders train and val. Boxes, lines and points are skipped.

    Raises:
        SOTRError: there is no such file.
    """
    images: list[Callable[[], LabelledImage]] = []
    source = Source(images)
    for split, part in split_folders(folder):
        file = _file(part)
        if file is None:
            continue
        entries = _entries(read_json(file))
        names = [str(entry["filename"]) for entry in entries]
        for name, entry, path in zip(names, entries, find_images(names, part), strict=True):
            if path is None:
                source.broken.append(f"{file}: image {name[:200]} is missing; add it in {part}")
            else:
                images.append(partial(_image, file, entry, path, split))
    if not images and not source.broken:
        raise SOTRError(f"{folder}: has no JSON file of the VGG Image Annotator")
    return source


def _file(folder: Path) -> Path | None:
    for path in sorted(folder.glob("*.json"))[:10]:
        try:
            if _entries(read_json(path)):
                return path
        except SOTRError:
            continue
    return None


def _entries(data: Any) -> list[dict[str, Any]]:
    """The entries of the images; a saved project has them under a key of its own."""
    if isinstance(data, dict) and isinstance(data.get("_via_img_metadata"), dict):
        data = data["_via_img_metadata"]
    entries = list(data.values()) if isinstance(data, dict) else []
    sound = all(isinstance(e, dict) and "filename" in e and "regions" in e for e in entries)
    return entries if sound else []


def _image(file: Path, entry: dict[str, Any], path: Path, split: str | None) -> LabelledImage:
    image = LabelledImage(path, split, *image_size(path))
    regions = entry["regions"]
    listed = list(regions.values()) if isinstance(regions, dict) else regions  # older versions number them
    for number, region in enumerate(list_of(listed, f'{file}: image {path.name} "regions"'), 1):
        where = f"{file}: image {path.name} region {number}"
        try:
            if not isinstance(region, dict) or not isinstance(region.get("shape_attributes"), dict):
                raise SOTRError(f'{where}: has no "shape_attributes"; draw it again')
            mask = _segmentation(region["shape_attributes"], where)
            if mask is None:
                image.skipped.append(f"{where}: a {str(region['shape_attributes'].get('name'))[:40]} has no mask")
            else:
                image.add(_class(region.get("region_attributes"), where), mask, where)
        except SOTRError as error:
            image.broken.append(str(error))
    return image


def _segmentation(shape: dict[str, Any], where: str) -> Segmentation | None:
    kind = shape.get("name")
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise SOTRError(f"{where}: its points must be as many in x as in y; draw it again")
        return [[value for pair in zip(numbers_of(xs, where), numbers_of(ys, where), strict=True) for value in pair]]
    if kind == "circle":
        x, y, radius = numbers_of((shape.get(key) for key in ("cx", "cy", "r")), where)
        return [ellipse_of(x, y, radius, radius)]
    if kind == "ellipse":
        x, y, radius_x, radius_y = numbers_of((shape.get(key) for key in ("cx", "cy", "rx", "ry")), where)
        (turn,) = numbers_of([shape.get("theta", 0)], where)  # in radians
        return [ellipse_of(x, y, radius_x, radius_y, turn * 57.29577951308232)]
    return None


def _class(attributes: Any, where: str) -> str:
    if not isinstance(attributes, dict) or not attributes:
        return OBJECT
    name = next((name for name in ATTRIBUTES if name in attributes), None)
    if name is None and len(attributes) > 1:
        raise SOTRError(f"{where}: has several attributes, none of which is {', '.join(ATTRIBUTES)}; rename one")
    value = attributes[name or next(iter(attributes))]
    if isinstance(value, dict):  # of a checkbox: what is ticked
        value = next((key for key, ticked in value.items() if ticked), "")
    return str(value).strip()
