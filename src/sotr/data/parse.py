"""The entries of a COCO file, read one by one; what is wrong is said with its name and the remedy."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from sotr.data import rle
from sotr.errors import SOTRError

_CHUNK = 50_000
"""Masks that are checked at a time."""


def show(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def whole(entry: dict[str, Any], key: str, where: str) -> int:
    if key not in entry:
        raise SOTRError(f'{where} has no "{key}"; add it')
    value = entry[key]
    if type(value) is int and abs(value) < 2**63:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    raise SOTRError(f'{where} has "{key}" {show(value)}; it must be a whole number')


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SOTRError(f"{path}: no such file; check the path of the annotations") from None
    except json.JSONDecodeError as error:
        raise SOTRError(f"{path}: is no valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError, OSError) as error:
        raise SOTRError(f"{path}: cannot be read as JSON; {error}") from None
    if not isinstance(data, dict):
        raise SOTRError(f"{path}: is {show(data)}; a COCO file is an object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            raise SOTRError(f'{path}: has no list "{key}"; a COCO instance file has images, annotations and categories')
    return data


def read_categories(entries: list[Any], json_path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for entry in entries:
        where = f"{json_path}: category {show(entry)}"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise SOTRError(f'{where} must be an object with a whole number "id" and a string "name"')
        category_id = whole(entry, "id", where)
        if category_id in names:
            raise SOTRError(f"{json_path}: category id {category_id} occurs twice; give each category its own")
        names[category_id] = entry["name"]
    if not names:
        raise SOTRError(f"{json_path}: the list of categories is empty; name at least one class of objects")
    return names


def read_images(
    entries: list[Any], json_path: Path, images_dir: Path
) -> tuple[tuple[int, ...], tuple[str, ...], list[tuple[int, int]]]:
    if not entries:
        raise SOTRError(f"{json_path}: the list of images is empty; add pictures")
    ids, names, sizes = [], [], []
    for row, entry in enumerate(entries):
        where = f"{json_path}: image number {row + 1}"
        if not isinstance(entry, dict):
            raise SOTRError(f"{where} is {show(entry)}; it must be an object")
        image_id = whole(entry, "id", where)
        where = f"{json_path}: image {image_id}"
        height, width = whole(entry, "height", where), whole(entry, "width", where)
        if not (0 < height < 2**20 and 0 < width < 2**20 and height * width < 2**31):
            raise SOTRError(f"{where} has size {width} x {height}; give the picture's width and height in pixels")
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise SOTRError(f'{where} has "file_name" {show(name)}; give the name of its file')
        if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
            raise SOTRError(f"{where}: {name!r} lies outside of {images_dir}; give a path relative to that folder")
        if not (images_dir / name).is_file():
            raise SOTRError(f"{where}: {images_dir / name} is missing; add the file or drop the image from the JSON")
        ids.append(image_id)
        names.append(name)
        sizes.append((height, width))
    for what, values in (("id", ids), ("file_name", names)):
        value, times = Counter(values).most_common(1)[0]
        if times > 1:
            raise SOTRError(f"{json_path}: image {what} {value!r} occurs {times} times; list each picture once")
    return tuple(ids), tuple(names), sizes


def compress(segmentation: Any, height: int, width: int, where: str) -> bytes:
    """Any COCO segmentation as a compressed RLE string; strings that were compressed already are checked later."""
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [height, width]:
            raise SOTRError(
                f"{where} has an RLE of size {show(size)}, but its picture is [{height}, {width}] (height, width); "
                "encode the mask at the picture's size"
            )
        if isinstance(counts, str):
            return counts.encode("ascii", "replace")
        if (
            isinstance(counts, list)
            and all(type(c) is int and c >= 0 for c in counts)
            and sum(counts) == height * width
        ):
            return _string(coco_mask.frPyObjects({"size": size, "counts": counts}, height, width))
        raise SOTRError(
            f"{where} has an RLE whose counts are not run lengths that sum up to {height} x {width} pixels; "
            "encode the mask again"
        )
    if not isinstance(segmentation, list) or not segmentation:
        raise SOTRError(f"{where} has no mask (segmentation {show(segmentation)}); add polygons or an RLE, or drop it")
    reach = max(height, width)
    for part in segmentation:
        if not isinstance(part, list):
            raise SOTRError(f"{where}: segmentation must be a list of polygons [x1, y1, x2, y2, ...], or an RLE")
        if len(part) < 6:
            raise SOTRError(f"{where} has a polygon with fewer than 3 points; give at least 3 or drop the polygon")
        if len(part) % 2:
            raise SOTRError(f"{where} has a polygon with {len(part)} coordinates; x and y must come in pairs")
        if not all(type(c) in (float, int) and c - c == 0 for c in part):  # infinity and NaN have no difference
            raise SOTRError(f"{where} has a polygon with a coordinate that is not a finite number; correct it")
        if min(part) < -reach or max(part) > 2 * reach:
            raise SOTRError(f"{where} has a polygon far outside of its {width} x {height} picture; correct it")
    parts = coco_mask.frPyObjects(segmentation, height, width)
    return _string(parts[0] if len(parts) == 1 else coco_mask.merge(parts))


def _string(encoded: dict[str, Any]) -> bytes:
    counts = encoded["counts"]
    return counts.encode("ascii") if isinstance(counts, str) else bytes(counts)


def check_masks(
    strings: list[bytes],
    sizes: list[tuple[int, int]],
    pictures: NDArray[np.int64],
    ids: NDArray[np.int64],
    json_path: Path,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Check compressed RLEs in bulk; their pixels and tight boxes xyxy."""
    sizes_A2 = np.array(sizes, np.int64).reshape(-1, 2)[pictures]
    pixels, boxes = np.zeros(len(strings), np.int64), np.zeros((len(strings), 4), np.int64)
    for first in range(0, len(strings), _CHUNK):
        own = slice(first, first + _CHUNK)
        lengths = np.fromiter(map(len, strings[own]), np.int64)
        counts, offsets = rle.decode_counts(np.frombuffer(b"".join(strings[own]), np.uint8), lengths)
        total = np.concatenate(([0], np.cumsum(counts)))
        lowest = np.zeros(len(lengths), np.int64)
        np.minimum.at(lowest, np.repeat(np.arange(len(lengths)), np.diff(offsets)), counts)
        wrong = (total[offsets[1:]] - total[offsets[:-1]] != sizes_A2[own].prod(1)) | (lowest < 0)
        if wrong.any():
            height, width = sizes_A2[own][wrong][0]
            raise SOTRError(
                f"{json_path}: annotation {ids[own][wrong][0]} has an RLE whose counts do not decode to "
                f"{height} x {width} pixels; encode the mask again"
            )
        runs = rle.counts_to_runs(counts, offsets, sizes_A2[own, 0])
        pixels[own], boxes[own] = rle.areas(runs), rle.boxes(runs)
    return pixels, boxes
