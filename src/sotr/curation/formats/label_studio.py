"""Label Studio's JSON: a list of tasks with polygons, ellipses and brush masks; also the short form JSON_MIN."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sotr.curation.formats.common import (
    LabelledImage,
    Segmentation,
    Source,
    ellipse_of,
    find_images,
    numbers_of,
    points_of,
    read_json,
    rle_of,
)
from sotr.data.images import image_size
from sotr.errors import SOTRError

NAME = "label-studio"

LABELS = ("polygonlabels", "brushlabels", "ellipselabels", "rectanglelabels", "labels")
"""Keys under which a region has its class."""


def recognizes(folder: Path) -> bool:
    """Whether a JSON file is a list of Label Studio's tasks."""
    return _file(folder) is not None


def read(folder: Path) -> Source:
    """The images of all tasks, with the first annotation of each that was not cancelled.

    Raises:
        SOTRError: there is no such file.
    """
    file = _file(folder)
    if file is None:
        raise SOTRError(f"{folder}: has no JSON file with a list of Label Studio's tasks")
    tasks = [task for task in read_json(file) if isinstance(task, dict)]
    names = [_address(task) for task in tasks]
    images: list[Callable[[], LabelledImage]] = []
    source = Source(images)
    for number, (task, name, path) in enumerate(zip(tasks, names, find_images(names, folder), strict=True), 1):
        if path is None:
            source.broken.append(f"{file}: task {number}: its image {name[:200]} is missing; add it in {folder}")
        else:
            images.append(partial(_image, f"{file}: task {number}", task, path))
    return source


def _file(folder: Path) -> Path | None:
    for path in sorted(folder.glob("*.json"))[:10]:
        try:
            data = read_json(path)
        except SOTRError:
            continue
        if isinstance(data, list) and data and isinstance(data[0], dict) and _address(data[0]):
            task = data[0]
            if isinstance(task.get("annotations", task.get("completions")), list) or any(True for _ in _short(task)):
                return path
    return None


def _address(task: dict[str, Any]) -> str:
    """The first text of a task's data that names a file."""
    data = task.get("data", task)
    texts = [value for key, value in data.items() if isinstance(value, str)] if isinstance(data, dict) else []
    named = [data[key] for key in ("image", "img", "ocr") if isinstance(data, dict) and isinstance(data.get(key), str)]
    return next((text for text in named + texts if "." in text.split("/")[-1]), "")


def _short(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The regions of a task in the short form."""
    for value in task.values():
        if isinstance(value, list):
            yield from (region for region in value if isinstance(region, dict) and "original_width" in region)


def _regions(task: dict[str, Any], image: LabelledImage, where: str) -> list[dict[str, Any]]:
    """Each region's values, with its type."""
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):
        return list(_short(task))
    kept = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
    if len(kept) > 1:
        image.notes.append(f"of several annotations of an image the first was taken: {where}")
    results = kept[0].get("result") if kept else []
    return [
        {**result, **result["value"]}
        for result in (results if isinstance(results, list) else [])
        if isinstance(result, dict) and isinstance(result.get("value"), dict)
    ]


def _image(where: str, task: dict[str, Any], path: Path) -> LabelledImage:
    image = LabelledImage(path, None, *image_size(path))
    for number, region in enumerate(_regions(task, image, where), 1):
        here = f"{where} region {number}"
        names = next((region[key] for key in LABELS if isinstance(region.get(key), list) and region[key]), None)
        try:
            mask = _segmentation(region, image, here)
        except SOTRError as error:
            image.broken.append(str(error))
            continue
        if names is None and mask is None:
            continue  # choices, texts and relations
        if mask is None:
            image.skipped.append(f"{here}: a {str(region.get('type', 'region'))[:40]} has no mask")
        elif names is None:
            image.broken.append(f"{here}: has no label; label it")
        else:
            image.add(str(names[0]), mask, here)
    return image


def _segmentation(region: dict[str, Any], image: LabelledImage, where: str) -> Segmentation | None:
    size = region.get("original_height"), region.get("original_width")
    if region.get("image_rotation") not in (0, None):
        raise SOTRError(f"{where}: was labeled on a turned image; turn the image itself")
    if None not in size and size != (image.height, image.width):
        raise SOTRError(
            f"{where}: was labeled at {size[1]} x {size[0]}, but {image.path.name} is {image.width} x {image.height}; "
            "label the image as it is"
        )
    if isinstance(region.get("points"), list):
        points = points_of(region["points"], where)
        return [[value * (image.width, image.height)[i % 2] / 100 for i, value in enumerate(points)]]
    if "radiusX" in region:
        x, y, radius_x, radius_y, turn = numbers_of(
            (region.get(key, 0) for key in ("x", "y", "radiusX", "radiusY", "rotation")), where
        )
        scale = image.width / 100, image.height / 100
        return [ellipse_of(x * scale[0], y * scale[1], radius_x * scale[0], radius_y * scale[1], turn)]
    if isinstance(region.get("rle"), list):
        pixels = image.height * image.width
        try:
            values = unpack(region["rle"], 4 * pixels)
        except (ValueError, OverflowError):
            raise SOTRError(
                f"{where}: its brush mask does not decode to {image.width} x {image.height} pixels; export it again"
            ) from None
        return rle_of(values.reshape(image.height, image.width, 4)[..., 3] > 0)
    return None


def unpack(encoded: list[Any], length: int) -> NDArray[np.int64]:
    """The values of a brush mask: red, green, blue and alpha of each pixel in turn.

    The bytes are a stream of bits, most significant first: 32 bits for the number of values, 5 for the bits of a value
    less 1, and 4 times 4 for the bits of a length less 1. Then come pieces: one bit that tells whether one value is
    repeated, two bits for which length of the four is used, the length less 1, and the value or the values.

    Raises:
        ValueError: it is no such stream, or not of `length` values.
    """
    bits = np.unpackbits(np.array(encoded, np.uint8)) if all(type(b) is int and 0 <= b < 256 for b in encoded) else None
    if bits is None:
        raise ValueError("no bytes")
    text = bits.tobytes().translate(bytes.maketrans(b"\0\1", b"01")).decode()
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(text[at - count : at], 2)

    if take(32) != length:
        raise ValueError("another length")
    word = take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values = np.zeros(length, np.int64)
    done = 0
    while done < length:
        repeated, size = take(1), sizes[take(2)]
        count = 1 + take(size)
        if done + count > length or at + word * (1 if repeated else count) > len(text):
            raise ValueError("too many values")
        values[done : done + count] = take(word) if repeated else [take(word) for _ in range(count)]
        done += count
    return values
