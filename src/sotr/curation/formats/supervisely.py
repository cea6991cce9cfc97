"""Supervisely: a JSON file in ann/ for each image in img/, with polygons that may have holes, and bitmaps."""

import base64
import io
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sotr.curation.formats.common import (
    LabelledImage,
    Segmentation,
    Source,
    images_in,
    joined,
    list_of,
    numbers_of,
    placed,
    points_of,
    read_json,
    rle_of,
    split_of,
)
from sotr.data.images import image_size
from sotr.data.parse import compress
from sotr.errors import SOTRError

NAME = "supervisely"

BYTES_PER_PIXEL = 2
"""A bitmap that unpacks to more bytes for each pixel of its image is refused."""


def recognizes(folder: Path) -> bool:
    """Whether there are folders img and ann, in the folder or in its data sets."""
    return bool(_parts(folder))


def read(folder: Path) -> Source:
    """The images of all data sets of a project; a data set named train or val is that split.

    Raises:
        SOTRError: there is none.
    """
    images: list[Callable[[], LabelledImage]] = []
    meta = folder / "meta.json"
    content = read_json(meta) if meta.is_file() else {}
    listed = content.get("classes") if isinstance(content, dict) else None
    names = [entry.get("title") for entry in list_of(listed, f'{meta} "classes"') if isinstance(entry, dict)]
    source = Source(images, tuple(name for name in names if isinstance(name, str)))
    for part in _parts(folder):
        for path in images_in(part / "img"):
            choices = [part / "ann" / f"{path.name}.json", part / "ann" / f"{path.stem}.json"]
            file = next((choice for choice in choices if choice.is_file()), None)
            images.append(partial(_image, file, path, split_of(part.name)))
    if not images:
        raise SOTRError(f"{folder}: has no images in folders img")
    return source


def _parts(folder: Path) -> list[Path]:
    return [p for p in (folder, *sorted(folder.iterdir())) if (p / "img").is_dir() and (p / "ann").is_dir()]


def _image(file: Path | None, path: Path, split: str | None) -> LabelledImage:
    image = LabelledImage(path, split, *image_size(path))
    data = read_json(file) if file is not None else {"objects": []}
    if not isinstance(data, dict) or not isinstance(data.get("objects"), list):
        raise SOTRError(f'{file}: has no list "objects"; export it again')
    size = data.get("size")
    if isinstance(size, dict) and (size.get("height"), size.get("width")) != (image.height, image.width):
        raise SOTRError(f"{file}: was labeled at another size than that of {path.name}; label the image as it is")
    for number, entry in enumerate(data["objects"], 1):
        where = f"{file} object {number}"
        try:
            if not isinstance(entry, dict) or not isinstance(entry.get("classTitle"), str):
                raise SOTRError(f'{where}: has no "classTitle"; add it')
            mask = _segmentation(entry, image, where)
        except SOTRError as error:
            image.broken.append(str(error))
            continue
        if mask is None:
            image.skipped.append(f"{where}: a {str(entry.get('geometryType'))[:40]} has no mask")
        else:
            image.add(entry["classTitle"], mask, where)
    return image


def _segmentation(entry: dict[str, Any], image: LabelledImage, where: str) -> Segmentation | None:
    kind, points = entry.get("geometryType"), entry.get("points")
    if kind == "polygon":
        if not isinstance(points, dict):
            raise SOTRError(f'{where}: "points" must have "exterior" and "interior"')
        outer: list[list[float]] = [points_of(points.get("exterior"), where)]
        holes = [points_of(hole, where) for hole in list_of(points.get("interior"), f'{where} "interior"')]
        if not holes:
            return outer
        mask_HW = _drawn(outer, image, where) & ~_drawn(holes, image, where)
        return rle_of(mask_HW)
    if kind == "bitmap":
        bitmap = entry.get("bitmap")
        if not isinstance(bitmap, dict) or not isinstance(bitmap.get("origin"), list):
            raise SOTRError(f'{where}: "bitmap" must have "data" and "origin"')
        left, top = (int(value) for value in numbers_of(bitmap["origin"][:2], where))
        return rle_of(placed(_unpacked(bitmap.get("data"), image, where), left, top, image.height, image.width))
    return None


def _drawn(polygons: list[list[float]], image: LabelledImage, where: str) -> NDArray[np.bool_]:
    from faster_coco_eval.core import mask as coco_mask

    text = compress(joined([polygons], image.height, image.width, where), image.height, image.width, where)
    decoded = coco_mask.decode([{"size": [image.height, image.width], "counts": text.decode()}])
    return np.asarray(decoded[..., 0] != 0)


def _unpacked(data: Any, image: LabelledImage, where: str) -> NDArray[np.bool_]:
    """A PNG, packed by zlib, in base 64; what is not transparent, or not 0, is the object."""
    most = BYTES_PER_PIXEL * image.height * image.width + 2**16
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(data), most)
        with Image.open(io.BytesIO(content)) as bitmap:
            if bitmap.width * bitmap.height > image.height * image.width:
                raise ValueError("it is larger than its image")
        values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        assert values is not None
    except Exception:  # damaged data make the decoders raise almost anything
        raise SOTRError(f"{where}: its bitmap is no packed PNG of the image's size; export it again") from None
    layers = values.reshape(*values.shape[:2], -1)
    return np.asarray(layers[..., 3 if layers.shape[2] == 4 else 0] > 0)
