"""What the readers of all formats give, and what several of them need."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sotr.data.images import IMAGE_SUFFIXES
from sotr.errors import SOTRError
from sotr.results.instances import encode_masks

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "val"}
"""Names of folders and files -> the split they are."""


@dataclass(frozen=True)
class LabelledObject:
    """One object of a picture."""

    class_name: str
    segmentation: list[list[float]] | dict[str, Any]
    """COCO polygons in pixels, or RLE."""


@dataclass(frozen=True)
class LabelledPicture:
    """One picture of a data set in another format."""

    path: Path
    split: str | None
    """train or val; None leaves it to the converter."""
    height: int
    width: int
    objects: list[LabelledObject]
    skipped: list[str] = field(default_factory=list)
    """What of its labels cannot be an object with a mask, and why."""


def picture_of(folder: Path, stem: str) -> Path | None:
    """The picture in a folder whose name without ending is `stem`."""
    for path in sorted(folder.glob(f"{_literal(stem)}.*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.stem == stem:
            return path
    return None


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder, by name; hidden files aside."""
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def lines_of(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        SOTRError: it is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()  # Windows editors begin a file with a mark
    except UnicodeDecodeError:
        raise SOTRError(f"{path}: is no text in UTF-8; save it as such") from None


def load_labels(path: Path) -> NDArray[np.int64]:
    """A picture whose pixels are numbers, height x width: grey of any depth, the index of a palette, or a colour as
    65536 R + 256 G + B.

    It is read as stored: unlike for photos, an EXIF rotation would be a mistake.

    Raises:
        SOTRError: it cannot be read, or has numbers of no such kind.
    """
    try:
        with Image.open(path) as file:
            values = np.asarray(file.convert(file.mode[:-1]) if file.mode in ("LA", "RGBA") else file)
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise SOTRError(f"{path}: cannot be read as a mask; {' '.join(str(error).split())}") from None
    if values.ndim == 3 and values.shape[2] == 3:
        return values.astype(np.int64) @ np.array([65536, 256, 1])
    if values.ndim != 2 or not (np.issubdtype(values.dtype, np.integer) or values.dtype == np.bool_):
        raise SOTRError(f"{path}: has pixels of type {values.dtype}; masks need whole numbers, grey or in a palette")
    return values.astype(np.int64)


def rle_of(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as COCO RLE."""
    return encode_masks(mask_HW[None])[0]


def polygon_of(values: list[float], where: str) -> list[float]:
    """A checked polygon [x1, y1, x2, y2, ...].

    Raises:
        SOTRError: names `where` it has too few points, or numbers that are not finite.
    """
    if len(values) < 6 or len(values) % 2:
        raise SOTRError(f"{where}: a polygon has {len(values)} numbers; give x and y of at least 3 points")
    if not np.isfinite(values).all():
        raise SOTRError(f"{where}: a polygon has a number that is not finite; correct it")
    return values


def split_folders(folder: Path) -> Iterator[tuple[str | None, Path]]:
    """The folder's splits, (split, folder); or itself, where it has none."""
    found = [(SPLITS[sub.name.lower()], sub) for sub in sorted(folder.iterdir()) if _is_split(sub)]
    if not found:
        yield None, folder
    yield from found


def _is_split(path: Path) -> bool:
    return path.is_dir() and path.name.lower() in SPLITS


def _literal(stem: str) -> str:
    """A name in which a glob pattern finds no special characters."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in stem)
