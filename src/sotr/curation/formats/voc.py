"""Pascal VOC: SegmentationObject numbers the objects of an image, SegmentationClass or the XML names their classes.

labelme2voc writes class_names.txt (a class on each line, in the order of the numbers); CVAT and Datumaro write
labelmap.txt (`name:r,g,b::`), and both images as colors.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from sotr.curation.formats.common import LabelledImage, Source, image_of, images_in, lines_of, rle_of
from sotr.curation.formats.label_images import LabelImage, load_labels, voc_colors
from sotr.data.images import image_size
from sotr.errors import SOTRError

NAME = "voc"

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"
)  # fmt: skip
"""VOC 2012's classes; SegmentationClass numbers them from 1."""

BACKGROUND = ("background", "_background_", "__background__")
IGNORED = ("__ignore__", "ignored", "void")

VOID = 255
"""Pixels between objects that belong to none, in images of 8 bits."""

VOID_COLOR = 224 * 65536 + 224 * 256 + 192

OVERLAP = 0.5
"""IoU of an object's box with one of the XML's for them to be the same."""

ASSUMED = "no labelmap.txt or class_names.txt: numbers in SegmentationClass were taken for VOC 2012's classes"


@dataclass(frozen=True)
class _Names:
    """What the pixels of SegmentationClass mean."""

    by_color: dict[int, str]
    by_number: dict[int, str]
    own: bool
    """Whether the data set names its classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        named = [*self.by_number.values(), *self.by_color.values()]
        return tuple(dict.fromkeys(name for name in named if name not in (*BACKGROUND, *IGNORED))) if self.own else ()


@dataclass(frozen=True)
class _Box:
    class_name: str
    xyxy: tuple[float, float, float, float]


def recognizes(folder: Path) -> bool:
    """Whether there are numbered masks, or images and boxes, in VOC's folders."""
    root = _root(folder)
    return (root / "SegmentationObject").is_dir() or (
        (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir()
    )


def read(folder: Path) -> Source:
    """The images that have numbered masks, in the splits of ImageSets/Segmentation.

    Raises:
        SOTRError: there are boxes only, or no images.
    """
    root = _root(folder)
    masks = images_in(root / "SegmentationObject")
    if not masks:
        raise SOTRError(f"{root}: has boxes only; masks are needed, in the folder SegmentationObject")
    if not (root / "JPEGImages").is_dir():
        raise SOTRError(f"{root}: has no folder JPEGImages; export the images, too, or put them there")
    names = _names(root)
    splits = {stem: split for split in ("val", "train") for stem in _listed(root / "ImageSets", split)}
    images: list[Callable[[], LabelledImage]] = []
    source = Source(images, names.classes)
    for path in masks:
        image = image_of(root / "JPEGImages", path.stem)
        if image is None:
            source.broken.append(f"{path}: has no image {path.stem} in {root / 'JPEGImages'}; add it")
        else:
            images.append(partial(_image, root, image, path, splits.get(path.stem), names))
    return source


def _root(folder: Path) -> Path:
    """VOC's archives hold VOCdevkit/VOC2012/."""
    for candidate in (folder, *sorted(folder.glob("VOC*")), *sorted(folder.glob("VOCdevkit/VOC*"))):
        if (candidate / "JPEGImages").is_dir() or (candidate / "SegmentationObject").is_dir():
            return candidate
    return folder


def _names(root: Path) -> _Names:
    label_map, class_names = root / "labelmap.txt", root / "class_names.txt"
    if label_map.is_file():
        by_color: dict[int, str] = {}
        entries = [(n, line) for n, line in enumerate(lines_of(label_map), 1) if line.strip() and line[0] != "#"]
        for row, (number, line) in enumerate(entries):
            name, color = [*line.split(":"), ""][:2]
            if not color.strip() and ":" in line and row < VOID:  # Datumaro: VOC's colors in the order of the names
                by_color[int(voc_colors()[row])] = name
                continue
            try:
                red, green, blue = (int(value) for value in color.split(","))
            except ValueError:
                raise SOTRError(f"{label_map} line {number}: must be name:red,green,blue::") from None
            by_color[red * 65536 + green * 256 + blue] = name
        return _Names(by_color, {}, True)
    if class_names.is_file():
        names = [line.strip() for line in lines_of(class_names) if line.strip() and line.strip() != "__ignore__"]
    else:
        names = [BACKGROUND[0], *CLASSES]
    colors = voc_colors()
    by_number = {number: name for number, name in enumerate(names) if number < VOID}
    return _Names({int(colors[number]): name for number, name in by_number.items()}, by_number, class_names.is_file())


def _listed(image_sets: Path, split: str) -> list[str]:
    for kind in ("Segmentation", "Main"):
        path = image_sets / kind / f"{split}.txt"
        if path.is_file():
            return [line.split()[0] for line in lines_of(path) if line.strip()]
    return []


def _image(root: Path, path: Path, mask_path: Path, split: str | None, names: _Names) -> LabelledImage:
    image = LabelledImage(path, split, *image_size(path))
    labels = load_labels(mask_path, (image.height, image.width))
    boxes = _boxes(root / "Annotations" / f"{mask_path.stem}.xml")
    class_path = next((p for p in images_in(root / "SegmentationClass") if p.stem == mask_path.stem), None)
    classes = None if class_path is None else load_labels(class_path, (image.height, image.width))
    void = VOID_COLOR if labels.is_color else VOID if labels.bits == 8 else None
    for number in np.unique(labels.numbers_HW).tolist():
        if number in (0, void):
            continue
        mask_HW = labels.numbers_HW == number
        where = f"{mask_path}: object {number}"
        try:
            name = _class_of(mask_HW, boxes, classes, names, where)
        except SOTRError as error:
            image.broken.append(str(error))
            continue
        if name in IGNORED:
            image.notes.append(f"objects of the class {name} were left out: {mask_path}")
            continue
        if not names.own and name in CLASSES and classes is not None:
            image.notes.append(f"{ASSUMED}: {mask_path}")
        image.add(name, rle_of(mask_HW), where)
    return image


def _class_of(
    mask_HW: NDArray[np.bool_], boxes: list[_Box], classes: LabelImage | None, names: _Names, where: str
) -> str:
    """By SegmentationClass where the data set names its numbers or they are VOC's; else by the box that fits best."""
    unnamed: int | None = None
    if classes is not None and (names.own or not {box.class_name for box in boxes} - set(CLASSES)):
        table, pixels_HW = names.by_color, classes.colors_HW
        if not classes.is_color and (names.by_number or classes.colors is None):
            table, pixels_HW = names.by_number, classes.numbers_HW
        values, counts = np.unique(pixels_HW[mask_HW], return_counts=True)
        best: dict[str, int] = {}
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            name = table.get(value)
            if name not in BACKGROUND and value not in (0, VOID_COLOR, VOID):
                best[name or str(value)] = count
                unnamed = value if name is None else unnamed
        if best and (first := max(best, key=lambda name: best[name])) in table.values():
            return first
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    own = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    nearest = max(boxes, key=lambda box: _iou(own, box.xyxy), default=None)
    if nearest is not None and _iou(own, nearest.xyxy) >= OVERLAP:
        return nearest.class_name
    if unnamed is not None:
        raise SOTRError(f"{where}: nothing names its class, {unnamed}; add it to labelmap.txt or class_names.txt")
    raise SOTRError(
        f"{where}: has no class: no box in Annotations matches it, and SegmentationClass does not name it; add either"
    )


def _iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file, in whatever encoding it declares.

    Raises:
        SOTRError: names the file that is no XML.
    """
    try:
        content = path.read_bytes()
        declared = re.match(rb"\s*<\?xml[^>]*?encoding=[\"']([\w.-]+)[\"'][^>]*\?>", content)
        if declared and declared[1].lower() not in (b"utf-8", b"utf-16"):
            # The parser knows few encodings; Python knows those that Chinese and Japanese tools write.
            return ElementTree.fromstring(content[declared.end() :].decode(declared[1].decode()))
        return ElementTree.fromstring(content)
    except OSError as error:
        raise SOTRError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise SOTRError(f"{path}: is no valid XML: {str(error)[:200]}") from None


def _boxes(path: Path) -> list[_Box]:
    if not path.is_file():
        return []
    boxes = []
    for entry in read_xml(path).iter("object"):
        name, box = entry.findtext("name"), entry.find("bndbox")
        try:
            corners = (
                [float(box.findtext(k, "")) for k in ("xmin", "ymin", "xmax", "ymax")] if box is not None else None
            )
        except ValueError:
            corners = None
        if not name or corners is None:
            raise SOTRError(f"{path}: an object lacks its name or the numbers of its bndbox; complete it")
        # VOC counts pixels from 1, and includes the last one.
        boxes.append(_Box(name.strip(), (corners[0] - 1, corners[1] - 1, corners[2], corners[3])))
    return boxes
