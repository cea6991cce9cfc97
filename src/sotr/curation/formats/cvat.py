"""CVAT for images 1.1: XML files with polygons, ellipses and masks; one for all images, or one for each split."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from sotr.curation.formats.common import (
    LabelledImage,
    Segmentation,
    Source,
    ellipse_of,
    find_images,
    joined,
    numbers_of,
    placed,
    rle_of,
    split_of,
)
from sotr.curation.formats.voc import read_xml
from sotr.data.images import image_size
from sotr.errors import SOTRError

NAME = "cvat"


def recognizes(folder: Path) -> bool:
    """Whether there is an XML file with CVAT's root."""
    return bool(_files(folder))


def read(folder: Path) -> Source:
    """The images of the XML files. Shapes of one label and group are parts of one object; boxes, lines and points are
    skipped.

    Raises:
        SOTRError: a file cannot be read, or is of a video.
    """
    files = _files(folder)
    if not files:
        raise SOTRError(f"{folder}: has no annotations.xml of CVAT for images 1.1")
    classes: dict[str, None] = {}
    images: list[Callable[[], LabelledImage]] = []
    broken: list[str] = []
    for file, root in files.items():
        if root.find("track") is not None:
            raise SOTRError(f"{file}: is CVAT for video; export it as CVAT for images 1.1 or COCO")
        entries = root.findall("image")
        classes |= dict.fromkeys(name.text.strip() for name in root.iterfind(".//label/name") if name.text)
        for entry, path in zip(entries, find_images([entry.get("name", "") for entry in entries], folder), strict=True):
            if path is None:
                broken.append(f"{file}: image {entry.get('name', '')[:200]} is missing; add it in {folder}")
            else:
                images.append(partial(_image, file, entry, path))
    return Source(images, tuple(classes), broken=broken)


def _files(folder: Path) -> dict[Path, Element]:
    """CVAT's XML files: annotations.xml, else all with the names of splits, else the first of another name."""
    paths = sorted(folder.glob("*.xml"))
    main = [path for path in paths if path.name == "annotations.xml"]
    splits = [path for path in paths if split_of(path.stem)]
    found: dict[Path, Element] = {}
    for path in main or splits or paths[:5]:
        try:
            if (root := read_xml(path)).tag == "annotations":
                found[path] = root
        except SOTRError:
            if main:
                raise
        if found and not splits:
            break
    return found


def _image(file: Path, entry: Element, path: Path) -> LabelledImage:
    image = LabelledImage(path, split_of(entry.get("subset", "")) or split_of(file.stem), *image_size(path))
    recorded = entry.get("height"), entry.get("width")
    if None not in recorded and recorded != (str(image.height), str(image.width)):
        raise SOTRError(
            f"{file}: image {path.name} was labeled at {recorded[1]} x {recorded[0]}, but is {image.width} x "
            f"{image.height}; label the image as it is"
        )
    groups: dict[tuple[str, str], list[Segmentation]] = {}
    for number, shape in enumerate(entry, 1):
        where = f"{file}: image {path.name} shape {number}"
        try:
            mask = _segmentation(shape, image, where)
        except SOTRError as error:
            image.broken.append(str(error))
            continue
        label, group = shape.get("label", ""), shape.get("group_id", "0")
        if mask is None:
            image.skipped.append(f"{where}: a {shape.tag} has no mask")
        elif group == "0":
            image.add(label, mask, where)
        else:
            groups.setdefault((label, group), []).append(mask)
    for (label, group), parts in groups.items():
        where = f"{file}: image {path.name} group {group}"
        try:
            image.add(label, joined(parts, image.height, image.width, where), where)
        except SOTRError as error:
            image.broken.append(str(error))
    return image


def _segmentation(shape: Element, image: LabelledImage, where: str) -> Segmentation | None:
    if shape.tag == "polygon":
        return [numbers_of(shape.get("points", "").replace(";", ",").split(","), where)]
    if shape.tag == "ellipse":
        values = numbers_of((shape.get(key, "") for key in ("cx", "cy", "rx", "ry")), where)
        return [ellipse_of(*values, *numbers_of([shape.get("rotation", "0")], where))]
    if shape.tag == "mask":
        counts = numbers_of(shape.get("rle", "").split(","), where)
        left, top, width, height = (
            int(value)
            for value in numbers_of((shape.get(key, "") for key in ("left", "top", "width", "height")), where)
        )
        sound = all(count >= 0 and count.is_integer() for count in counts)
        if not sound or sum(counts) != width * height or not 0 < width * height <= image.width * image.height:
            raise SOTRError(
                f"{where}: its mask's counts are not run lengths of {width} x {height} pixels; export again"
            )
        part = np.repeat(np.arange(len(counts)) % 2 == 1, np.array(counts, np.int64))
        return rle_of(placed(part.reshape(height, width), left, top, image.height, image.width))
    return None
