"""labelme and X-AnyLabeling: a JSON file for each image with polygons, rectangles, circles and bitmap masks."""

import base64
import io
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sotr.curation.formats.common import (
    LabelledImage,
    Segmentation,
    Source,
    below,
    ellipse_of,
    image_of,
    joined,
    numbers_of,
    placed,
    points_of,
    read_json,
    rle_of,
    split_folders,
)
from sotr.data.images import MAX_PIXELS, image_size, is_file, load_image
from sotr.data.names import inside, is_possible
from sotr.errors import SOTRError

NAME = "labelme"

LEFT_OUT = ("__ignore__", "_background_")
"""Labels that labelme's own tools give no class."""

QUADRILATERALS = ("rotation", "oriented_rectangle", "quadrilateral")


def recognizes(folder: Path) -> bool:
    """Whether one of the first JSON files has labelme's keys."""
    return any(
        _is_labelme(data)
        for _, part in split_folders(folder)
        for path in below(part, ".json")[:20]
        if (data := _read_or_none(path)) is not None
    )


def read(folder: Path) -> Source:
    """The images of all JSON files, in splits if there are folders train and val.

    Shapes of one label and the same group_id are parts of one object. Points, lines and line strips have no area and
    are skipped. JSON files without shapes are of other tools and passed over.
    """
    images: list[Callable[[], LabelledImage]] = []
    source = Source(images)
    for split, part in split_folders(folder):
        for path in below(part, ".json"):
            if (data := _read_or_none(path)) is not None and not _is_labelme(data):
                source.notes.append(f"JSON files that are not of labelme were passed over: {path}")
            else:
                images.append(partial(_image, path, split))
    return source


def _read_or_none(path: Path) -> Any:
    try:
        return read_json(path)
    except SOTRError:
        return None


def _is_labelme(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("shapes"), list) and "imagePath" in data


def _image(path: Path, split: str | None) -> LabelledImage:
    data = read_json(path)
    image = _found(path, data, split)
    recorded = (data.get("imageHeight"), data.get("imageWidth"))
    if all(type(side) is int for side in recorded) and recorded != (image.height, image.width):
        raise SOTRError(
            f"{path}: was labeled at {recorded[1]} x {recorded[0]}, but {image.path.name} is {image.width} x "
            f"{image.height}; label the image as it is"
        )
    groups: dict[tuple[str, str], list[Segmentation]] = {}
    for number, shape in enumerate(data["shapes"], 1):
        where = f"{path} shape {number}"
        try:
            label, mask = _shape(shape, image, where)
        except SOTRError as error:
            image.broken.append(str(error))
            continue
        if label in LEFT_OUT:
            image.notes.append(f"shapes labeled {label} were left out: {path}")
        elif mask is None:
            image.skipped.append(f"{where}: a {str(shape.get('shape_type'))[:40]} has no area")
        elif shape.get("group_id") is None:
            image.add(label, mask, where)
        else:
            groups.setdefault((label, json.dumps(shape["group_id"])), []).append(mask)
    for (label, group), parts in groups.items():
        where = f"{path} group {group[:40]} of {label[:40]}"
        try:
            image.add(label, joined(parts, image.height, image.width, where), where)
        except SOTRError as error:
            image.broken.append(str(error))
    return image


def _found(path: Path, data: dict[str, Any], split: str | None) -> LabelledImage:
    """The image of a JSON file: where it says, beside it, or inside it."""
    name = str(data.get("imagePath", "")).replace("\\", "/")
    if is_possible(name) and name:
        candidates = [path.parent / name, path.parent / inside(name), path.parent / inside(name).split("/")[-1]]
        image = next((c for c in candidates if is_file(c)), None) or image_of(path.parent, path.stem)
        if image is not None:
            return LabelledImage(image, split, *image_size(image))
    embedded = data.get("imageData")
    if not isinstance(embedded, str) or not embedded:
        raise SOTRError(f"{path}: its image {name[:200]} is missing; add it beside the JSON file")
    try:
        content = base64.b64decode(embedded)
        height, width = load_image(content).shape[:2]
    except (ValueError, SOTRError) as error:
        raise SOTRError(f"{path}: the image inside it cannot be read; {str(error)[:200]}") from None
    ending = {b"\x89PNG": ".png", b"\xff\xd8\xff\xe0": ".jpg"}.get(content[:4], Path(name).suffix or ".jpg")
    return LabelledImage(path.with_suffix(ending), split, height, width, content=content)


def _shape(shape: Any, image: LabelledImage, where: str) -> tuple[str, Segmentation | None]:
    """The label and the mask of a shape; None for one without area."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        raise SOTRError(f'{where}: has no "label"; add it')
    points = points_of(shape.get("points"), where)
    kind = shape.get("shape_type") or "polygon"
    if kind == "polygon" or (kind == "rectangle" and len(points) > 4):  # X-AnyLabeling gives all four corners
        return shape["label"], [points]
    if kind in QUADRILATERALS:
        if len(points) == 6:  # three corners; the fourth follows
            points += [points[0] + points[4] - points[2], points[1] + points[5] - points[3]]
        return shape["label"], [points]
    if kind in ("rectangle", "circle", "mask"):
        if len(points) != 4:
            raise SOTRError(f"{where}: a {kind} has 2 points, not {len(points) // 2}")
        x0, y0, x1, y1 = points
        if kind == "rectangle":
            return shape["label"], [[x0, y0, x1, y0, x1, y1, x0, y1]]
        if kind == "circle":
            radius = math.dist((x0, y0), (x1, y1))
            return shape["label"], [ellipse_of(x0, y0, radius, radius)]
        return shape["label"], _bitmap(shape, points, image, where)
    return shape["label"], None


def _bitmap(shape: dict[str, Any], corners: list[float], image: LabelledImage, where: str) -> dict[str, Any]:
    """A bitmap whose first pixel lies at the first corner, as labelme reads it: fractions are cut off, and what
    overhangs the image is left out."""
    left, top, right, bottom = (int(value) for value in numbers_of(corners, where))
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as bitmap:
            if bitmap.width * bitmap.height > MAX_PIXELS:
                raise ValueError("it is too large")
            part = np.asarray(bitmap.convert("L")) > 0 if bitmap.width * bitmap.height else np.zeros((0, 0), np.bool_)
    except Exception:  # damaged data make the decoders raise almost anything
        raise SOTRError(f"{where}: its mask is no image in base 64; label it again") from None
    if abs(part.shape[0] - (bottom - top + 1)) > 1 or abs(part.shape[1] - (right - left + 1)) > 1:
        raise SOTRError(f"{where}: its mask does not fit its place in the image; label it again")
    return rle_of(placed(part, left, top, image.height, image.width))
