"""Folders of mask images, one for each object or one with numbers for each image.

Layouts that are known, each by itself, in folders train and val, or with these folders in images/ and masks/:

- `images/NAME.ext` and `masks/NAME.png` (also `NAME_mask.png` or `NAME_masks.png`, there or, as Cellpose writes them,
  beside the images), in which 0 is background and each other number, palette index or color is one object;
- `images/NAME.ext` and `masks/NAME/*.png`, one image for each object, of which what is not 0 belongs to it; in
  `masks/NAME/CLASS/*.png` the folder is its class;
- `NAME/images/*.ext` and `NAME/masks/*.png`, a folder for each image (as in the Data Science Bowl 2018).
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sotr.curation.formats.common import OBJECT, LabelledImage, Source, images_in, rle_of, split_folders
from sotr.curation.formats.label_images import LabelImage, has_soft_edges, is_inverted, load_labels, parts_of
from sotr.data.images import image_size, images_below
from sotr.errors import SOTRError

NAME = "masks"

ENDINGS = ("", "_mask", "_masks", "_cp_masks", "_label", "_labels", "-mask", "-masks")
"""What may come behind an image's name in the name of its mask."""

Numbers = Literal["objects", "parts", "classes"]
"""What a number in a mask is: an object; objects, each separate part one; or a class, whose parts are objects."""

PARTS = "a number with several separate parts was taken for one object (--numbers parts makes each part an object)"
INVERTED = "a mask covers the corners and most of the image; if its objects are 0, invert it"
ALPHA = "the alpha channel was taken for the mask, because all colors are alike"
HALF = "soft edges: pixels above half of the largest value were taken for the object"

_Task = Callable[[], LabelledImage]


def recognizes(folder: Path) -> bool:
    """Whether there are folders images and masks, folders that hold these, or images with masks beside them."""
    return any(
        _is_pair(part) or any(_is_pair(sub) for sub in part.iterdir() if sub.is_dir()) or _beside(part)
        for _, part in split_folders(folder)
    )


def read(folder: Path, numbers: Numbers = "objects") -> Source:
    """The images of all splits; those without a mask have no objects."""
    source = Source([])
    tasks: list[_Task] = []
    for split, part in split_folders(folder):
        if _is_pair(part):
            for inner, images in split_folders(part / "images"):
                masks = part / "masks" / images.relative_to(part / "images")
                tasks += _flat(images, masks if masks.is_dir() else part / "masks", inner or split, numbers, source)
        elif pairs := _beside(part):
            tasks += [partial(_of_numbers, image, mask, split, numbers) for image, mask in pairs]
        else:
            tasks += [partial(_nested, sub, split) for sub in sorted(part.iterdir()) if _is_pair(sub)]
    return Source(tasks, (), source.notes, source.broken)


def _is_pair(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _beside(folder: Path) -> list[tuple[Path, Path]]:
    """Images with their masks beside them, as Cellpose writes them; images without one are left out."""
    images = {path.stem: path for path in images_in(folder)}
    return [
        (image, images[stem + ending])
        for stem, image in images.items()
        for ending in ENDINGS[1:]
        if stem + ending in images
    ]


def _flat(images: Path, masks: Path, split: str | None, numbers: Numbers, source: Source) -> Iterator[_Task]:
    paths = images_below(images)
    files = {path.stem: path for path in reversed(images_below(masks))}
    folders = {path.name: path for path in masks.iterdir() if path.is_dir()}
    used: set[str] = set()
    for path in paths:
        stems = [path.stem + ending for ending in ENDINGS]
        if path.stem in folders and images_below(folders[path.stem]):
            used.add(path.stem)
            yield partial(_of_files, path, folders[path.stem], split)
        elif (stem := next((stem for stem in stems if stem in files), None)) is not None:
            used.add(stem)
            yield partial(_of_numbers, path, files[stem], split, numbers)
        else:
            yield partial(_without, path, split)
    for stem, path in sorted(files.items()):
        if stem not in used and not used & {parent.name for parent in path.parents if parent != masks}:
            source.broken.append(f"{path}: has no image {stem} in {images}; add it, or move the mask away")


def _without(path: Path, split: str | None) -> LabelledImage:
    return LabelledImage(path, split, *image_size(path))


def _nested(folder: Path, split: str | None) -> LabelledImage:
    paths = images_in(folder / "images")
    if len(paths) != 1:
        raise SOTRError(f"{folder / 'images'}: holds {len(paths)} images; one is expected beside masks/")
    return _of_files(paths[0], folder / "masks", split)


def _of_files(path: Path, folder: Path, split: str | None) -> LabelledImage:
    image = LabelledImage(path, split, *image_size(path))
    for file in images_below(folder):
        own = file.relative_to(folder).parts
        try:
            labels = load_labels(file, (image.height, image.width))
        except SOTRError as error:
            image.broken.append(str(error))
            continue
        mask_HW = labels.colors_HW != 0
        if labels.is_lossy or has_soft_edges(labels):
            mask_HW = labels.numbers_HW > labels.numbers_HW.max() / 2
            image.notes.append(f"{HALF}: {file}")
        _doubts(image, labels, mask_HW, file)
        if mask_HW.any():
            image.add(own[0] if len(own) > 1 else OBJECT, rle_of(mask_HW), str(file))
        else:
            image.skipped.append(f"{file}: has no pixel that is not 0")
    return image


def _of_numbers(path: Path, file: Path, split: str | None, numbers: Numbers) -> LabelledImage:
    image = LabelledImage(path, split, *image_size(path))
    labels = load_labels(file, (image.height, image.width))
    if labels.is_lossy:
        raise SOTRError(
            f"{file}: is a JPEG, whose compression makes numbers of its own at edges; save masks as PNG or TIFF"
        )
    if has_soft_edges(labels):
        raise SOTRError(
            f"{file}: has soft edges, whose {len(np.unique(labels.numbers_HW))} numbers are no objects; save masks "
            "without smoothing, one number for each object"
        )
    for number in np.unique(labels.numbers_HW).tolist():
        mask_HW = labels.numbers_HW == number
        if not number:
            continue
        _doubts(image, labels, mask_HW, file)
        parts = parts_of(mask_HW)
        if numbers == "objects":
            if len(parts) > 1:
                image.notes.append(f"{PARTS}: {file} number {number}")
            parts = [mask_HW]
        class_name = f"class {number}" if numbers == "classes" else OBJECT
        for part in parts:
            image.add(class_name, rle_of(part), f"{file} number {number}")
    return image


def _doubts(image: LabelledImage, labels: LabelImage, mask_HW: NDArray[np.bool_], file: Path) -> None:
    if labels.from_alpha and not any(note.startswith(ALPHA) for note in image.notes):
        image.notes.append(f"{ALPHA}: {file}")
    if is_inverted(mask_HW):
        image.notes.append(f"{INVERTED}: {file}")
