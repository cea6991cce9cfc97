"""labelme: a JSON file per picture with polygons, rectangles, circles and bitmap masks."""

import base64
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sotr.curation.formats.common import LabelledObject, LabelledPicture, polygon_of, rle_of, split_folders
from sotr.data.images import picture_size
from sotr.errors import SOTRError

NAME = "labelme"
_CIRCLE = 64
"""Corners of the polygon that stands for a circle."""


def recognises(folder: Path) -> bool:
    """Whether one of the first JSON files has labelme's keys."""
    for _, part in split_folders(folder):
        for path in sorted(part.glob("*.json"))[:5]:
            try:
                data = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue
            if isinstance(data, dict) and isinstance(data.get("shapes"), list) and "imagePath" in data:
                return True
    return False


def read(folder: Path) -> Iterator[LabelledPicture]:
    """The pictures of all JSON files, in splits if there are folders train and val.

    Shapes of one label and the same group_id are parts of one object. Points, lines and line strips have no area and
    are skipped.

    Raises:
        SOTRError: names the file and shape that cannot be used.
    """
    for split, part in split_folders(folder):
        for path in sorted(part.glob("*.json")):
            yield _picture(path, split)


def _picture(path: Path, split: str | None) -> LabelledPicture:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SOTRError(f"{path}: is no valid JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
        raise SOTRError(f'{path}: has no list "shapes"; it is not of labelme, move it away')
    picture = path.parent / str(data.get("imagePath", "")).replace("\\", "/")
    if not picture.is_file():
        raise SOTRError(f"{path}: its picture {picture} is missing; add it (pictures inside the JSON are not read)")
    height, width = picture_size(picture)
    recorded = (data.get("imageHeight"), data.get("imageWidth"))
    if None not in recorded and recorded != (height, width):
        raise SOTRError(
            f"{path}: was labelled at {recorded[1]} x {recorded[0]}, but {picture.name} is {width} x {height}; "
            "label the picture as it is"
        )
    objects: list[LabelledObject] = []
    groups: dict[tuple[str, Any], list[list[list[float]] | dict[str, Any]]] = {}
    skipped: list[str] = []
    for number, shape in enumerate(data["shapes"], 1):
        where = f"{path} shape {number}"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise SOTRError(f'{where}: has no "label"; add it')
        mask = _segmentation(shape, height, width, where)
        if mask is None:
            skipped.append(f"{where}: a {shape.get('shape_type')} has no area")
        elif shape.get("group_id") is None:
            objects.append(LabelledObject(shape["label"], mask))
        else:
            groups.setdefault((shape["label"], shape["group_id"]), []).append(mask)
    objects += [LabelledObject(label, _joined(masks, height, width)) for (label, _), masks in groups.items()]
    return LabelledPicture(picture, split, height, width, objects, skipped)


def _segmentation(
    shape: dict[str, Any], height: int, width: int, where: str
) -> list[list[float]] | dict[str, Any] | None:
    points = shape.get("points")
    try:
        flat = [float(value) for point in points for value in (point[0], point[1])]  # type: ignore[union-attr]
    except (TypeError, ValueError, IndexError):
        raise SOTRError(f'{where}: "points" must be a list of [x, y]') from None
    kind = shape.get("shape_type") or "polygon"
    if kind == "polygon":
        return [polygon_of(flat, where)]
    if kind in ("rectangle", "circle", "mask") and len(flat) != 4:
        raise SOTRError(f"{where}: a {kind} has 2 points, not {len(flat) // 2}")
    if kind == "rectangle":
        x0, y0, x1, y1 = flat
        return [polygon_of([x0, y0, x1, y0, x1, y1, x0, y1], where)]
    if kind == "circle":
        x, y = flat[:2]
        radius = math.dist(flat[:2], flat[2:])
        angles = [2 * math.pi * i / _CIRCLE for i in range(_CIRCLE)]
        return [polygon_of([v for a in angles for v in (x + radius * math.cos(a), y + radius * math.sin(a))], where)]
    if kind == "mask":
        return _bitmap(shape, flat, height, width, where)
    return None


def _bitmap(shape: dict[str, Any], corners: list[float], height: int, width: int, where: str) -> dict[str, Any]:
    """A bitmap over the rectangle between two pixels, both included."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
            part = np.asarray(picture.convert("L")) > 0
    except Exception:  # damaged data make the decoders raise almost anything
        raise SOTRError(f"{where}: its mask is no picture in base 64; label it again") from None
    left, top, right, bottom = (round(value) for value in corners)
    if not (0 <= left and 0 <= top and right < width and bottom < height) or part.shape != (
        bottom - top + 1,
        right - left + 1,
    ):
        raise SOTRError(f"{where}: its mask does not fit its place in the picture; label it again")
    mask_HW = np.zeros((height, width), np.bool_)
    mask_HW[top : bottom + 1, left : right + 1] = part
    return rle_of(mask_HW)


def _joined(
    masks: list[list[list[float]] | dict[str, Any]], height: int, width: int
) -> list[list[float]] | dict[str, Any]:
    """Parts of one object: polygons stay polygons; where a bitmap is among them, the whole becomes RLE."""
    from faster_coco_eval.core import mask as coco_mask

    polygons = [part for mask in masks if isinstance(mask, list) for part in mask]
    bitmaps = [mask for mask in masks if isinstance(mask, dict)]
    if not bitmaps:
        return polygons
    merged = coco_mask.merge([*coco_mask.frPyObjects(polygons, height, width), *bitmaps] if polygons else bitmaps)
    return rle_of(coco_mask.decode(merged) != 0)
