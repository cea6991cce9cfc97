"""YOLO's segmentation format: a text file for each image, with a class number and a polygon in 0..1 on each line.

A line is one object of one part: an object of several parts, or with a hole, cannot be told in this format. Tools that
write it join the parts by lines to one polygon, which is read as it is.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sotr.curation.formats.common import LabelledImage, Source, find_images, lines_of, numbers_of, split_of
from sotr.data.images import image_size, images_below
from sotr.data.layouts import SPLITS
from sotr.data.names import inside
from sotr.errors import SOTRError
from sotr.files import read_yaml

NAME = "yolo"
BOX = 5
"""Numbers on the line of a box: class, center, size."""

NAME_FILES = ("classes.txt", "obj.names", "labels.txt")
"""Files with a class name on each line, as Label Studio, CVAT and Darknet write them."""

SLACK = 0.01
"""Coordinates may leave 0..1 by this."""


def recognizes(folder: Path) -> bool:
    """Whether a YAML file names classes, or labels in text files lie beside images."""
    return _settings(folder)[0] is not None or any(labels.is_dir() for _, _, labels in _folders(folder))


def read(folder: Path) -> Source:
    """The images of all splits, by the YAML file or by the names of the folders.

    Raises:
        SOTRError: nothing names the classes, or there are no images.
    """
    file, settings = _settings(folder)
    source = Source([])
    found: list[tuple[str | None, Path]] = []
    if file is None:
        name_file = next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)
        if name_file is None:
            raise SOTRError(
                f"{folder}: nothing names its classes; add a classes.txt with a name on each line, or a data.yaml"
            )
        names = dict(enumerate(line.strip() for line in lines_of(name_file) if line.strip()))
        found = [(split, path) for split, images, _ in _folders(folder) for path in images_below(images)]
    else:
        names = _class_names(settings, file)
        found = _named(folder, file, settings, source)
        if not found and not source.broken:  # supervision's file names classes only
            found = [(split, path) for split, images, _ in _folders(folder) for path in images_below(images)]
    if not found and not source.broken:
        raise SOTRError(f'{file or folder}: names no images; give the folders of "train" and "val"')
    pose = _pose(settings.get("kpt_shape"))
    unique = {(split, path.resolve()): path for split, path in reversed(found)}  # val and test are often one folder
    images: list[Callable[[], LabelledImage]] = [
        partial(_image, path, split, names, pose) for (split, _), path in reversed(unique.items())
    ]
    _note_labels_alone(list(unique.values()), source)
    return Source(images, tuple(names.values()), source.notes, source.broken)


def _pose(points: Any) -> int | None:
    """Numbers on the line of a pose, by the number of its key points and of the values of each."""
    if isinstance(points, list) and len(points) == 2 and all(type(value) is int and value > 0 for value in points):
        return BOX + int(points[0]) * int(points[1])
    return None


def _folders(folder: Path) -> list[tuple[str | None, Path, Path]]:
    """(split, images, labels) without a YAML file: images/ and labels/, with the splits within or without."""
    found: list[tuple[str | None, Path, Path]] = []
    for split in sorted(SPLITS):
        for images, labels in (("images/{}", "labels/{}"), ("{}/images", "{}/labels")):
            pair = folder / images.format(split), folder / labels.format(split)
            if all(path.is_dir() for path in pair):
                found.append((SPLITS[split], *pair))
    if not found and (folder / "images").is_dir() and (folder / "labels").is_dir() and any(folder.glob("labels/*.txt")):
        found.append((None, folder / "images", folder / "labels"))
    return found


def _settings(folder: Path) -> tuple[Path | None, dict[Any, Any]]:
    """The YAML file that names classes, and what it says."""
    for path in sorted({*folder.glob("*.yaml"), *folder.glob("*.yml")}, key=lambda p: (p.name != "data.yaml", p.name)):
        try:
            settings = read_yaml(path)
        except SOTRError:
            if path.name == "data.yaml":
                raise
            continue
        if isinstance(settings, dict) and "names" in settings:
            return path, settings
    return None, {}


def _class_names(settings: dict[Any, Any], file: Path) -> dict[int, str]:
    names = settings["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(type(number) is int for number in names):
        raise SOTRError(f'{file}: "names" must be a list of class names, or a number and a name on each line')
    if not all(isinstance(name, str | int | float) for name in names.values()):
        raise SOTRError(f'{file}: "names" holds something that is no name; write one for each class')
    return {number: str(names[number]) for number in sorted(names)}


def _named(folder: Path, file: Path, settings: dict[Any, Any], source: Source) -> list[tuple[str | None, Path]]:
    """(split, image) of all places that the YAML file names."""
    root = folder / settings["path"] if isinstance(settings.get("path"), str) else folder
    root = root if root.is_dir() else folder  # "path" is often of another computer
    found: list[tuple[str | None, Path]] = []
    for key in ("train", "val", "valid", "test"):
        places = settings.get(key)
        for place in places if isinstance(places, list) else [places]:
            if not isinstance(place, str) or not place.strip():
                continue
            where = _place(root, place) or _place(folder, place)
            if where is None:
                line = f"{file}: {key}: {place} is not there; correct it, or drop the line"
                # Many files name a test split that was never exported.
                (source.notes if key == "test" else source.broken).append(line)
            elif where.is_dir():
                found += [(split_of(key), path) for path in images_below(where)]
            else:
                found += [(split_of(key), path) for path in _listed(where, root, source)]
    return found


def _place(root: Path, place: str) -> Path | None:
    """The folder or list of images that is meant: Roboflow writes ../train/images beside data.yaml for train/images,
    and others write the folders of another computer."""
    parts = inside(place).replace("\\", "/").split("/")
    for candidate in (root / place, *(root.joinpath(*parts[first:]) for first in range(len(parts)))):
        if candidate.is_dir() or (candidate.is_file() and candidate.suffix == ".txt"):
            return candidate
    return None


def _listed(file: Path, root: Path, source: Source) -> list[Path]:
    names = [line.strip() for line in lines_of(file) if line.strip()]
    found = []
    for name, path in zip(names, find_images(names, root), strict=True):
        if path is None:
            source.broken.append(f"{file}: {name} is not there; add the image, or drop the line")
        else:
            found.append(path)
    return found


def _image(path: Path, split: str | None, names: dict[int, str], pose: int | None) -> LabelledImage:
    height, width = image_size(path)
    image = LabelledImage(path, split, height, width)
    label_file = _label_file(path)
    for number, line in enumerate(lines_of(label_file) if label_file.is_file() else [], 1):
        words, where = line.split(), f"{label_file} line {number}"
        if words and len(words) in (BOX, pose):
            image.skipped.append(f"{where}: is a {'box' if len(words) == BOX else 'pose'} without a mask")
        elif words:
            try:
                class_name, polygon = _object(words, names, where)
            except SOTRError as error:
                image.broken.append(str(error))
                continue
            image.add(class_name, [[value * (width, height)[i % 2] for i, value in enumerate(polygon)]], where)
    return image


def _object(words: list[str], names: dict[int, str], where: str) -> tuple[str, list[float]]:
    try:
        label, *values = numbers_of(words, where)
    except SOTRError:
        raise SOTRError(f"{where}: {' '.join(words)[:40]!r} is not a class number and numbers in 0..1") from None
    if not label.is_integer() or int(label) not in names:
        known = ", ".join(map(str, names))
        raise SOTRError(f"{where}: there is no class {words[0][:20]}; the classes are {known[:80]}")
    if len(values) < 6 or len(values) % 2:
        raise SOTRError(f"{where}: a polygon has {len(values)} numbers; give x and y of at least 3 points")
    if not all(-SLACK <= value <= 1 + SLACK for value in values):
        raise SOTRError(f"{where}: coordinates must lie in 0..1, as shares of width and height")
    return names[int(label)], values


def _label_file(path: Path) -> Path:
    """images/... -> labels/...: the last folder of that name in the path is meant."""
    parts = list(path.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            return Path(*parts).with_suffix(".txt")
    return path.with_suffix(".txt")


def _note_labels_alone(images: list[Path], source: Source) -> None:
    """Say which text files beside the labels that are read have no image."""
    label_files = {_label_file(path) for path in images}
    folders = {path.parent for path in label_files if path.parent.name != "images"}
    alone = [
        path
        for folder in sorted(folders)
        for path in sorted(folder.glob("*.txt"))
        if path not in label_files and path.name not in NAME_FILES
    ]
    source.notes.extend(f"labels without an image: {path}" for path in alone)
