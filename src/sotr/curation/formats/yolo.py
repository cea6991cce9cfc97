"""YOLO's segmentation format: a text file per picture, with a class number and a polygon in 0..1 on each line.

A line is one object of one part: an object of several parts, or with a hole, cannot be told in this format. Tools that
write it join the parts by lines to one polygon, which is read as it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sotr.curation.formats.common import (
    SPLITS,
    LabelledObject,
    LabelledPicture,
    lines_of,
    pictures_in,
    polygon_of,
)
from sotr.data.images import picture_size
from sotr.errors import SOTRError

NAME = "yolo"
_BOX = 5
"""Numbers on the line of a box: class, centre, size."""


def recognises(folder: Path) -> bool:
    """Whether there is a data.yaml, or another YAML file with the names of classes."""
    return _settings_file(folder) is not None


def read(folder: Path) -> Iterator[LabelledPicture]:
    """The pictures of all splits that the YAML file names.

    Raises:
        SOTRError: names the file and line that cannot be used.
    """
    file = _settings_file(folder)
    if file is None:
        raise SOTRError(f"{folder}: has no YAML file with the names of the classes, such as data.yaml")
    settings = _load(file)
    names = _class_names(settings, file)
    root = folder / settings["path"] if isinstance(settings.get("path"), str) else folder
    root = root if root.is_dir() else folder  # "path" is often of another computer
    seen: set[tuple[str, Path]] = set()
    for key in ("train", "val", "valid", "test"):
        places = settings.get(key)
        for place in places if isinstance(places, list) else [places]:
            if not isinstance(place, str):
                continue
            for path in _pictures(root, place, file, key):
                if (own := (SPLITS[key], path.resolve())) not in seen:  # val and test are often one folder
                    seen.add(own)
                    yield _picture(path, SPLITS[key], names)
    if not seen:
        raise SOTRError(f'{file}: names no pictures; give the folders of "train" and "val"')


def _settings_file(folder: Path) -> Path | None:
    for path in sorted({*folder.glob("*.yaml"), *folder.glob("*.yml")}, key=lambda p: (p.name != "data.yaml", p.name)):
        try:
            if "names" in _load(path):
                return path
        except SOTRError:
            continue
    return None


def _load(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SOTRError(f"{path}: is no valid YAML: {' '.join(str(error).split())}") from None
    return settings if isinstance(settings, dict) else {}


def _class_names(settings: dict[str, Any], file: Path) -> dict[int, str]:
    names = settings["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(type(number) is int for number in names):
        raise SOTRError(f'{file}: "names" must be a list of class names, or a number and a name per line')
    return {number: str(name) for number, name in names.items()}


def _pictures(root: Path, place: str, file: Path, key: str) -> list[Path]:
    """The pictures of a split: of a folder, or those a text file lists."""
    # Roboflow writes ../train/images beside data.yaml for what is train/images.
    for candidate in (root / place, root / place.removeprefix("../")):
        if candidate.is_dir():
            return pictures_in(candidate)
        if candidate.is_file() and candidate.suffix == ".txt":
            return [root / line.strip() for line in lines_of(candidate) if line.strip()]
    if key == "train":
        raise SOTRError(f"{file}: {root / place} is not there; correct the folder of {key!r}")
    return []  # many files name a test split that was never exported


def _picture(path: Path, split: str, names: dict[int, str]) -> LabelledPicture:
    height, width = picture_size(path)
    label_file = _label_file(path)
    objects, skipped = [], []
    lines = lines_of(label_file) if label_file.is_file() else []
    for number, line in enumerate(lines, 1):
        where = f"{label_file} line {number}"
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise SOTRError(f"{where}: {line[:40]!r} is not a class number and numbers in 0..1") from None
        class_name = names.get(int(values[0])) if values[0].is_integer() else None
        if class_name is None:
            raise SOTRError(f"{where}: there is no class {words[0]}; the classes are {', '.join(map(str, names))}")
        if len(values) == _BOX:
            skipped.append(f"{where}: is a box without a mask")
            continue
        polygon = [value * (width, height)[i % 2] for i, value in enumerate(values[1:])]
        if not all(-0.01 <= value <= 1.01 for value in values[1:]):
            raise SOTRError(f"{where}: coordinates must lie in 0..1, as shares of width and height")
        objects.append(LabelledObject(class_name, [polygon_of(polygon, where)]))
    return LabelledPicture(path, split, height, width, objects, skipped)


def _label_file(path: Path) -> Path:
    """images/... -> labels/...: the last folder of that name in the path is meant."""
    parts = list(path.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            return Path(*parts).with_suffix(".txt")
    return path.with_suffix(".txt")
