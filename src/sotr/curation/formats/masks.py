"""Folders of mask pictures, one per object or one with numbers per picture.

Layouts that are known, each by itself or in folders train and val:

- `images/NAME.ext` and `masks/NAME.png`, in which 0 is background and each other number, palette index or colour is
  one object;
- `images/NAME.ext` and `masks/NAME/*.png`, one picture per object, of which what is not 0 belongs to it; in
  `masks/NAME/CLASS/*.png` the folder is its class;
- `NAME/images/*.ext` and `NAME/masks/*.png`, a folder per picture (as in the Data Science Bowl 2018).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sotr.curation.formats.common import (
    LabelledObject,
    LabelledPicture,
    load_labels,
    picture_of,
    pictures_in,
    rle_of,
    split_folders,
)
from sotr.data.images import picture_size
from sotr.errors import SOTRError

NAME = "masks"
CLASS = "object"
"""Of objects whose class nothing tells."""


def recognises(folder: Path) -> bool:
    """Whether there are folders images and masks, or folders that hold these."""
    return any(
        _pair(part) or any(_pair(sub) for sub in part.iterdir() if sub.is_dir()) for _, part in split_folders(folder)
    )


def read(folder: Path) -> Iterator[LabelledPicture]:
    """The pictures of all splits; those without a mask have no objects.

    Raises:
        SOTRError: a mask cannot be read, is of another size than its picture, or has no picture.
    """
    for split, part in split_folders(folder):
        if _pair(part):
            yield from _flat(part, split)
        else:
            for sub in sorted(part.iterdir()):
                if _pair(sub):
                    yield _nested(sub, split)


def _pair(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _flat(folder: Path, split: str | None) -> Iterator[LabelledPicture]:
    images, masks = folder / "images", folder / "masks"
    pictures = pictures_in(images)
    stems = {path.stem for path in pictures}
    for entry in sorted(masks.iterdir()):
        stem = entry.name if entry.is_dir() else entry.stem
        if not entry.name.startswith(".") and stem not in stems:
            raise SOTRError(f"{entry}: has no picture {stem} in {images}; add it, or move the mask away")
    for path in pictures:
        numbered = picture_of(masks, path.stem)
        if (masks / path.stem).is_dir():
            yield _of_files(path, masks / path.stem, split)
        elif numbered is not None:
            yield _of_numbers(path, numbered, split)
        else:
            height, width = picture_size(path)
            yield LabelledPicture(path, split, height, width, [])


def _nested(folder: Path, split: str | None) -> LabelledPicture:
    pictures = pictures_in(folder / "images")
    if len(pictures) != 1:
        raise SOTRError(f"{folder / 'images'}: holds {len(pictures)} pictures; one is expected beside masks/")
    return _of_files(pictures[0], folder / "masks", split)


def _of_files(path: Path, folder: Path, split: str | None) -> LabelledPicture:
    height, width = picture_size(path)
    files = [(CLASS, file) for file in pictures_in(folder)]
    for sub in sorted(folder.iterdir()):
        if sub.is_dir() and not sub.name.startswith("."):
            files += [(sub.name, file) for file in pictures_in(sub)]
    objects, skipped = [], []
    for class_name, file in files:
        mask_HW = load_labels(file) != 0
        _check_size(file, mask_HW.shape, height, width)
        if mask_HW.any():
            objects.append(LabelledObject(class_name, rle_of(mask_HW)))
        else:
            skipped.append(f"{file}: has no pixel that is not 0")
    return LabelledPicture(path, split, height, width, objects, skipped)


def _of_numbers(path: Path, file: Path, split: str | None) -> LabelledPicture:
    height, width = picture_size(path)
    numbers_HW = load_labels(file)
    _check_size(file, numbers_HW.shape, height, width)
    objects = [
        LabelledObject(CLASS, rle_of(numbers_HW == number)) for number in np.unique(numbers_HW).tolist() if number
    ]
    return LabelledPicture(path, split, height, width, objects)


def _check_size(file: Path, shape: tuple[int, ...], height: int, width: int) -> None:
    if shape != (height, width):
        raise SOTRError(
            f"{file}: is {shape[1]} x {shape[0]}, its picture {width} x {height} (upright); make them equal"
        )
