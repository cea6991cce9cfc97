"""What the readers of all formats give, and what several of them need."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sotr.data.images import is_file, is_image
from sotr.data.layouts import SPLITS
from sotr.data.names import find_names, inside
from sotr.data.parse import compress
from sotr.errors import SOTRError
from sotr.results.instances import encode_masks

Segmentation = list[list[float]] | dict[str, Any]
"""COCO polygons in pixels, or RLE."""

JSON_BYTES = 2**28
"""Larger files of one image or project are refused; COCO's are read piece by piece."""

CORNERS = 64
"""Corners of the polygon that stands for a circle or an ellipse."""

OBJECT = "object"
"""The class of objects whose class nothing tells."""


@dataclass(frozen=True)
class LabelledObject:
    """One object of an image. Made by `labelled`, which checks it."""

    class_name: str
    segmentation: Segmentation
    rle: str
    """The mask as compressed COCO RLE."""
    is_crowd: bool = False


@dataclass(frozen=True)
class LabelledImage:
    """One image of a data set in another format."""

    path: Path
    """The image; where `content` is given, what it is to be called."""
    split: str | None
    """train or val; None leaves it to the converter."""
    height: int
    width: int
    objects: list[LabelledObject] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """What of its labels cannot be an object with a mask, and why."""
    broken: list[str] = field(default_factory=list)
    """What of its labels is wrong."""
    notes: list[str] = field(default_factory=list)
    """What was assumed, as the reader says of all images: `KIND: where`."""
    content: bytes | None = None
    """The image's file, if it lies inside another one."""

    def add(self, class_name: str, segmentation: Segmentation, where: str, is_crowd: bool = False) -> None:
        """Add an object, or to `broken` what is wrong with it."""
        try:
            self.objects.append(labelled(class_name, segmentation, self.height, self.width, where, is_crowd))
        except SOTRError as error:
            self.broken.append(str(error))


@dataclass(frozen=True)
class Source:
    """A data set that is read image by image."""

    images: Iterable[Callable[[], LabelledImage]]
    """Each reads one image and its labels, or raises a SOTRError that says what is wrong with them."""
    classes: tuple[str, ...] = ()
    """All classes in the order that the data set gives them; empty where it gives none."""
    notes: list[str] = field(default_factory=list)
    """What was assumed or passed over, one line each."""
    broken: list[str] = field(default_factory=list)
    """What is wrong with files that are of no one image."""


def labelled(
    class_name: str, segmentation: Segmentation, height: int, width: int, where: str, is_crowd: bool = False
) -> LabelledObject:
    """A checked object.

    Raises:
        SOTRError: names `where` its class or mask is wrong.
    """
    if not class_name.strip():
        raise SOTRError(f"{where} has no class; name it")
    return LabelledObject(
        class_name, segmentation, compress(segmentation, height, width, where).decode("ascii"), is_crowd
    )


def read_json(path: Path) -> Any:
    """A JSON file's value, in any of JSON's encodings.

    Raises:
        SOTRError: names the file that is none.
    """
    try:
        if path.stat().st_size > JSON_BYTES:
            raise SOTRError(f"{path}: has more than {JSON_BYTES // 2**20} MiB; split it")
        return json.loads(path.read_bytes())
    except RecursionError:
        raise SOTRError(f"{path}: is nested too deeply; export it again") from None
    except (OSError, ValueError) as error:
        raise SOTRError(f"{path}: is no valid JSON: {str(error)[:200]}") from None


def lines_of(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, or in UTF-16 with a mark.

    Raises:
        SOTRError: it is no such text.
    """
    try:
        content = path.read_bytes()
        encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return content.decode(encoding).splitlines()  # Windows editors begin a file with a mark
    except OSError as error:
        raise SOTRError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SOTRError(f"{path}: is no text in UTF-8; save it as such") from None


def numbers_of(values: Iterable[Any], where: str) -> list[float]:
    """Finite numbers.

    Raises:
        SOTRError: names `where` there are others.
    """
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise SOTRError(f"{where}: has a coordinate that is not a finite number; correct it")
    return numbers


def list_of(value: Any, where: str) -> list[Any]:
    """A list; of nothing, an empty one.

    Raises:
        SOTRError: names `where` there is something else.
    """
    if value is not None and not isinstance(value, list):
        raise SOTRError(f"{where} is no list; export it again")
    return value or []


def points_of(points: Any, where: str) -> list[float]:
    """[[x, y], ...] as [x1, y1, ...].

    Raises:
        SOTRError: names `where` they are no such list.
    """
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) >= 2 for p in points):
        raise SOTRError(f'{where}: "points" must be a list of [x, y]')
    return numbers_of((value for point in points for value in point[:2]), where)


def ellipse_of(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> list[float]:
    """The polygon that stands for an ellipse, turned clockwise."""
    angles = np.arange(CORNERS) * (2 * math.pi / CORNERS)
    along, across = radius_x * np.cos(angles), radius_y * np.sin(angles)
    turn = math.radians(degrees)
    xs = x + along * math.cos(turn) - across * math.sin(turn)
    ys = y + along * math.sin(turn) + across * math.cos(turn)
    return [float(value) for value in np.stack([xs, ys], 1).ravel()]


def rle_of(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as COCO RLE."""
    return encode_masks(mask_HW[None])[0]


def placed(part_hw: NDArray[np.bool_], left: int, top: int, height: int, width: int) -> NDArray[np.bool_]:
    """A mask of an image that has a part at a place; what overhangs is cut."""
    mask_HW = np.zeros((height, width), np.bool_)
    y0, x0 = max(0, top), max(0, left)
    cut = part_hw[max(0, -top) : height - top, max(0, -left) : width - left] if top < height and left < width else None
    if cut is not None and cut.size:
        mask_HW[y0 : y0 + cut.shape[0], x0 : x0 + cut.shape[1]] = cut
    return mask_HW


def joined(parts: list[Segmentation], height: int, width: int, where: str) -> Segmentation:
    """Parts of one object: polygons stay polygons; where a bitmap is among them, the whole becomes RLE."""
    from faster_coco_eval.core import mask as coco_mask

    if all(isinstance(part, list) for part in parts):
        return [polygon for part in parts for polygon in part]  # type: ignore[misc]
    rles = [{"size": [height, width], "counts": compress(part, height, width, where).decode()} for part in parts]
    return rle_of(coco_mask.decode(coco_mask.merge(rles)) != 0)


def image_of(folder: Path, stem: str) -> Path | None:
    """The image in a folder whose name without ending is `stem`."""
    for path in sorted(folder.glob(f"{_literal(stem)}.*")):
        if is_image(path) and path.stem == stem:
            return path
    return None


def images_in(folder: Path) -> list[Path]:
    """The images in a folder itself, by name; hidden files aside."""
    return sorted(path for path in folder.iterdir() if is_image(path)) if folder.is_dir() else []


def find_images(names: list[str], folder: Path) -> list[Path | None]:
    """The file of each name as `sotr.data.names` finds it; None where there is none."""
    own = [inside(name) for name in names]
    found = find_names(own, folder)
    paths = [folder / found.get(i, name) if name else None for i, name in enumerate(own)]
    return [path if path is not None and is_file(path) else None for path in paths]


def split_folders(folder: Path) -> Iterator[tuple[str | None, Path]]:
    """The folder's splits, (split, folder); or itself, where it has none."""
    found = [(split_of(sub.name), sub) for sub in sorted(folder.iterdir()) if sub.is_dir() and split_of(sub.name)]
    if not found:
        yield None, folder
    yield from found


def split_of(name: str) -> str | None:
    """The split that a folder's or subset's name says."""
    return SPLITS.get(name.lower())


def below(folder: Path, ending: str) -> list[Path]:
    """Files of an ending in a folder and those in it, sorted; hidden ones aside."""
    found = sorted(folder.rglob(f"*{ending}"))
    return [path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts)]


def _literal(stem: str) -> str:
    """A name in which a glob pattern finds no special characters."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in stem)
