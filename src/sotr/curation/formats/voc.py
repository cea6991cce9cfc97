"""Pascal VOC: SegmentationObject numbers the objects of a picture, SegmentationClass or the XML names their classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from sotr.curation.formats.common import LabelledObject, LabelledPicture, lines_of, load_labels, picture_of, rle_of
from sotr.data.images import picture_size
from sotr.errors import SOTRError

NAME = "voc"

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"
)  # fmt: skip
"""VOC 2012's classes; SegmentationClass numbers them from 1."""

VOID = 255
"""Pixels between objects that belong to none."""

_OVERLAP = 0.5
"""IoU of an object's box with one of the XML's for them to be the same."""


@dataclass(frozen=True)
class _Box:
    class_name: str
    xyxy: tuple[float, float, float, float]


def recognises(folder: Path) -> bool:
    """Whether there are pictures and numbered masks, or boxes, in VOC's folders."""
    root = _root(folder)
    return (root / "JPEGImages").is_dir() and any((root / n).is_dir() for n in ("SegmentationObject", "Annotations"))


def read(folder: Path) -> Iterator[LabelledPicture]:
    """The pictures that have numbered masks, in the splits of ImageSets/Segmentation.

    Raises:
        SOTRError: there are boxes only, or a file cannot be used.
    """
    root = _root(folder)
    masks = root / "SegmentationObject"
    if not masks.is_dir():
        raise SOTRError(f"{root}: has boxes only; masks are needed, in the folder SegmentationObject")
    splits = {stem: split for split in ("val", "train") for stem in _listed(root / "ImageSets", split)}
    for mask_path in sorted(masks.glob("*.png")):
        picture = picture_of(root / "JPEGImages", mask_path.stem)
        if picture is None:
            raise SOTRError(f"{mask_path}: has no picture {mask_path.stem} in {root / 'JPEGImages'}; add it")
        yield _picture(root, picture, mask_path, splits.get(mask_path.stem))


def _root(folder: Path) -> Path:
    """VOC's archives hold VOCdevkit/VOC2012/."""
    for candidate in (folder, *sorted(folder.glob("VOC*")), *sorted(folder.glob("VOCdevkit/VOC*"))):
        if (candidate / "JPEGImages").is_dir():
            return candidate
    return folder


def _listed(image_sets: Path, split: str) -> list[str]:
    for kind in ("Segmentation", "Main"):
        path = image_sets / kind / f"{split}.txt"
        if path.is_file():
            return [line.split()[0] for line in lines_of(path) if line.strip()]
    return []


def _picture(root: Path, picture: Path, mask_path: Path, split: str | None) -> LabelledPicture:
    height, width = picture_size(picture)
    numbers_HW = load_labels(mask_path)
    if numbers_HW.shape != (height, width):
        raise SOTRError(
            f"{mask_path}: is {numbers_HW.shape[1]} x {numbers_HW.shape[0]}, its picture {width} x {height}; "
            "make them equal"
        )
    boxes = _boxes(root / "Annotations" / f"{mask_path.stem}.xml")
    class_path = root / "SegmentationClass" / mask_path.name
    classes_HW = load_labels(class_path) if class_path.is_file() else None
    if classes_HW is not None and classes_HW.shape != numbers_HW.shape:
        raise SOTRError(f"{class_path}: is of another size than {mask_path}; make them equal")
    objects = []
    for number in np.unique(numbers_HW).tolist():
        if number in (0, VOID):
            continue
        mask_HW = numbers_HW == number
        name = _class_of(mask_HW, number, boxes, classes_HW)
        if name is None:
            raise SOTRError(
                f"{mask_path}: object {number} has no class: no box in Annotations matches it, and SegmentationClass "
                "does not name it; add either"
            )
        objects.append(LabelledObject(name, rle_of(mask_HW)))
    return LabelledPicture(picture, split, height, width, objects)


def _class_of(
    mask_HW: NDArray[np.bool_], number: int, boxes: list[_Box], classes_HW: NDArray[np.int64] | None
) -> str | None:
    """By SegmentationClass, if it holds one of VOC's numbers there; else by the box that fits the mask best."""
    if classes_HW is not None:
        values, counts = np.unique(classes_HW[mask_HW], return_counts=True)
        kept = (values >= 1) & (values <= len(CLASSES))
        own_names = {box.class_name for box in boxes} - set(CLASSES)
        if kept.any() and not own_names:
            return CLASSES[int(values[kept][counts[kept].argmax()]) - 1]
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    own = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    best = max(boxes, key=lambda box: _iou(own, box.xyxy), default=None)
    return best.class_name if best is not None and _iou(own, best.xyxy) >= _OVERLAP else None


def _iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def _boxes(path: Path) -> list[_Box]:
    if not path.is_file():
        return []
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise SOTRError(f"{path}: is no valid XML: {error}") from None
    boxes = []
    for entry in root.iter("object"):
        name, box = entry.findtext("name"), entry.find("bndbox")
        try:
            corners = (
                [float(box.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax")] if box is not None else None
            )
        except ValueError:
            corners = None
        if not name or corners is None:
            raise SOTRError(f"{path}: an object lacks its name or the numbers of its bndbox; complete it")
        # VOC counts pixels from 1, and includes the last one.
        boxes.append(_Box(name.strip(), (corners[0] - 1, corners[1] - 1, corners[2], corners[3])))
    return boxes
