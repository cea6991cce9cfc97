"""The entries of a COCO file, checked one by one; what is wrong is said with its name and the remedy."""

from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from sotr.data.names import inside, is_possible
from sotr.data.stream import show
from sotr.errors import SOTRError
from sotr.masks import run_lengths as rle

_CHUNK = 2**20
"""Characters of masks that are checked at a time."""


class Flaw(SOTRError):
    """An entry of a data set that cannot be used. Reading stops there, unless the reader collects what it finds."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """What is wrong, in a word or two; see `sotr.curation.findings.KINDS`."""
        self.file: str | None = None
        """The image's file name, where one is concerned."""
        self.image_id: int | None = None
        self.annotation_id: int | None = None


def whole(entry: dict[str, Any], key: str, where: str) -> int:
    if key not in entry:
        raise Flaw("entry", f'{where} has no "{key}"; add it')
    value = entry[key]
    if type(value) is int and abs(value) < 2**63:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    raise Flaw("entry", f'{where} has "{key}" {show(value)}; it must be a whole number')


def read_category(entry: Any, names: dict[int, str], json_path: Path) -> None:
    """Add a category to `names`, id -> name."""
    where = f"{json_path}: category {show(entry)}"
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise Flaw("category", f'{where} must be an object with a whole number "id" and a string "name"')
    category_id = whole(entry, "id", where)
    if category_id in names:
        raise Flaw("category", f"{json_path}: category id {category_id} occurs twice; give each category its own")
    names[category_id] = entry["name"]


def read_image(entry: Any, row: int, json_path: Path) -> tuple[int, str, int, int]:
    """Id, file name, height and width of the image in `row` (from 0)."""
    where = f"{json_path}: image number {row + 1}"
    if not isinstance(entry, dict):
        raise Flaw("entry", f"{where} is {show(entry)}; it must be an object")
    image_id = whole(entry, "id", where)
    where = f"{json_path}: image {image_id}"
    height, width = whole(entry, "height", where), whole(entry, "width", where)
    if not (0 < height < 2**20 and 0 < width < 2**20 and height * width < 2**31):
        raise Flaw("entry", f"{where} has size {width} x {height}; give the image's width and height in pixels")
    return image_id, image_name(entry, where), height, width


def image_name(entry: dict[str, Any], where: str) -> str:
    """The name of an image's file, as a path that stays inside the folder of the images; LVIS gives its address."""
    name = entry.get("file_name", entry.get("coco_url"))
    if not isinstance(name, str) or not (name := inside(name)):
        raise Flaw("entry", f'{where} has "file_name" {show(entry.get("file_name"))}; give the name of its file')
    if not is_possible(name):
        raise Flaw("entry", f'{where} has "file_name" {show(name)}, which no file can have; correct it')
    return name


def compress(segmentation: Any, height: int, width: int, where: str) -> bytes:
    """Any COCO segmentation as a compressed RLE string; strings that were compressed already are checked later."""
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [height, width]:
            raise Flaw(
                "rle",
                f"{where} has an RLE of size {show(size)}, but its image is [{height}, {width}] (height, width); "
                "encode the mask at the image's size",
            )
        if isinstance(counts, str):
            return counts.encode("ascii", "replace")
        if (
            isinstance(counts, list)
            and all(type(c) is int and c >= 0 for c in counts)
            and sum(counts) == height * width
        ):
            return _string(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))
        raise Flaw(
            "rle",
            f"{where} has an RLE whose counts are not run lengths that sum up to {height} x {width} pixels; "
            "encode the mask again",
        )
    if not isinstance(segmentation, list) or not segmentation:
        raise Flaw(
            "no mask", f"{where} has no mask (segmentation {show(segmentation)}); add polygons or an RLE, or drop it"
        )
    reach = max(height, width)
    for part in segmentation:
        if not isinstance(part, list):
            raise Flaw("polygon", f"{where}: segmentation must be a list of polygons [x1, y1, x2, y2, ...], or an RLE")
        if len(part) < 6:
            raise Flaw(
                "polygon", f"{where} has a polygon with fewer than 3 points; give at least 3 or drop the polygon"
            )
        if len(part) % 2:
            raise Flaw("polygon", f"{where} has a polygon with {len(part)} coordinates; x and y must come in pairs")
        if not all(type(c) in (float, int) and c - c == 0 for c in part):  # infinity and NaN have no difference
            raise Flaw("polygon", f"{where} has a polygon with a coordinate that is not a finite number; correct it")
        if min(part) < -reach or max(part) > 2 * reach:
            raise Flaw("far outside", f"{where} has a polygon far outside of its {width} x {height} image; correct it")
    parts = coco_mask.frPyObjects(segmentation, height, width)
    return _string(parts[0] if len(parts) == 1 else coco_mask.merge(parts))


def _string(encoded: dict[str, Any]) -> bytes:
    counts = encoded["counts"]
    return counts.encode("ascii") if isinstance(counts, str) else bytes(counts)


def reaches_outside(segmentation: Any, height: int, width: int) -> bool:
    """Whether polygons leave their image by more than a pixel; what is outside is cut off."""
    if not isinstance(segmentation, list):
        return False
    for part in segmentation:
        xs, ys = part[::2], part[1::2]
        if min(xs) < -1 or min(ys) < -1 or max(xs) > width + 1 or max(ys) > height + 1:
            return True
    return False


def check_masks(
    text: NDArray[np.uint8], lengths: NDArray[np.int64], sizes_A2: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Check compressed RLEs in bulk: their pixels, tight boxes xyxy, and which of them are wrong.

    Args:
        text: the characters of all strings, joined.
        lengths: characters per string.
        sizes_A2: height and width of each one's image.
    """
    count, offsets_of_text = len(lengths), np.concatenate(([0], np.cumsum(lengths)))
    pixels, boxes, broken = np.zeros(count, np.int64), np.zeros((count, 4), np.int64), np.zeros(count, np.bool_)
    first = 0
    while first < count:
        last = int(np.searchsorted(offsets_of_text, offsets_of_text[first] + _CHUNK))
        own = slice(first, min(count, max(first + 1, last)))
        counts, offsets = rle.decode_counts(text[offsets_of_text[own.start] : offsets_of_text[own.stop]], lengths[own])
        total = np.concatenate(([0], np.cumsum(counts)))
        sizes = np.diff(offsets)
        lowest = np.zeros(len(sizes), np.int64)
        np.minimum.at(lowest, np.repeat(np.arange(len(sizes)), sizes), counts)
        broken[own] = wrong = (total[offsets[1:]] - total[offsets[:-1]] != sizes_A2[own].prod(1)) | (lowest < 0)
        if wrong.any():
            counts = np.where(np.repeat(wrong, sizes), 0, counts)
        runs = rle.counts_to_runs(counts, offsets, sizes_A2[own, 0])
        pixels[own], boxes[own] = rle.areas(runs), rle.boxes(runs)
        first = own.stop
    return pixels, boxes, broken
