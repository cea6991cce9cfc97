"""The files that `predict` writes, and their names."""

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sotr.data.parse import image_name, whole
from sotr.data.stream import read_lists
from sotr.errors import SOTRError
from sotr.files import atomic_write
from sotr.masks.polygons import EXACT, flat
from sotr.results.instances import Instances
from sotr.results.outlines import polygons_of

OVERLAY_SUFFIX = ".overlay.png"
PREDICTIONS_FILE, RESULTS_FILE, TABLE_FILE = "predictions.json", "results.json", "objects.csv"
MASKS_FOLDER, LABELME_FOLDER, LABELS_FOLDER, CROPS_FOLDER = "masks", "labelme", "labels", "crops"
_MASK_NAME = re.compile(r"\d{3,}\.png")


def is_earlier_result(path: Path, out: Path) -> bool:
    """Whether `path` looks like an image that an earlier run wrote to `out`."""
    try:
        inside = path.resolve().relative_to(out.resolve())
    except ValueError:
        return False
    if len(inside.parts) == 1:
        return path.name.endswith(OVERLAY_SUFFIX)
    if inside.parts[0] == LABELS_FOLDER:
        return len(inside.parts) == 2 and path.suffix == ".tif"
    if inside.parts[0] not in (MASKS_FOLDER, CROPS_FOLDER):
        return False
    return len(inside.parts) == 3 and bool(_MASK_NAME.fullmatch(path.name))


def printable(name: str) -> str:
    """The file name with question marks for bytes that are not UTF-8, which can be neither printed nor put in JSON."""
    return name.encode("utf-8", "replace").decode("utf-8")


def relative_names(paths: Sequence[Path]) -> tuple[Path, list[str]]:
    """The folder that holds all `paths`, and each path below it with forward slashes."""
    absolute = [Path(os.path.abspath(path)) for path in paths]
    try:
        root = Path(os.path.commonpath([path.parent for path in absolute]))
    except ValueError:  # on Windows, drives have nothing in common
        return Path(), [printable(path.as_posix()) for path in absolute]
    return root, [printable(path.relative_to(root).as_posix()) for path in absolute]


def output_names(
    paths: Sequence[Path], file_names: Sequence[str], out: Path, suffix: str = OVERLAY_SUFFIX
) -> list[str]:
    """A name for the results of each image: its stem where no other image has it, else its path in one word, with
    the ending if it takes that.

    No two names are alike, even where case does not count, and no overlay or mask of that name is one of `paths`.

    Args:
        paths: the images.
        file_names: their names as `relative_names` gives them.
        out: the folder of the results.
        suffix: what comes behind the name of an overlay.
    """
    folder = out.resolve()
    pictures = {os.path.normcase(path.resolve()) for path in paths}
    mask_folders = {os.path.dirname(picture) for picture in pictures}

    words = [re.sub(r"[/\\:]+", "-", name) for name in file_names]
    choices = [(path.stem, word.removesuffix(path.suffix)) for path, word in zip(paths, words, strict=True)]
    frequencies = [Counter(choice[level].casefold() for choice in choices) for level in range(2)]
    taken: set[str] = set()
    names: list[str] = []
    for choice, word in zip(choices, words, strict=True):
        unique = (name for name, count in zip(choice, frequencies, strict=True) if count[name.casefold()] == 1)
        wanted = next(unique, word)
        name, number = wanted, 1
        while (
            name.casefold() in taken
            or os.path.normcase(folder / f"{name}{suffix}") in pictures
            or os.path.normcase(folder / LABELS_FOLDER / f"{name}.tif") in pictures
            or any(os.path.normcase(folder / each / name) in mask_folders for each in (MASKS_FOLDER, CROPS_FOLDER))
        ):
            number += 1
            name = f"{wanted}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def categories(class_names: Sequence[str], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The classes as COCO has them."""
    return [{"id": number, "name": name} for number, name in zip(category_ids, class_names, strict=True)]


class ResultFiles:
    """The open JSON files of one run; made by `result_files`."""

    def __init__(
        self,
        predictions: IO[str],
        results: IO[str],
        annotations: IO[str],
        head: dict[str, Any],
        polygons: bool,
    ) -> None:
        self._polygons = polygons
        self._predictions, self._results, self._annotations = predictions, results, annotations
        self._pictures = 0
        self._objects = 0
        # The head is an object whose closing brace is still to come.
        predictions.write(_json(head)[:-1] + ',\n"images": [')
        results.write("[")

    def add(self, file_name: str, instances: Instances, image_id: int | None = None) -> None:
        """Append the objects of the next image, whose id is its number, from 1, if none is given."""
        height, width = instances.image_size
        self._pictures += 1
        number = self._pictures if image_id is None else image_id
        image = {"id": number, "file_name": file_name, "width": width, "height": height}
        self._predictions.write(("\n" if self._pictures == 1 else ",\n") + _json(image))
        for i, (result, area) in enumerate(zip(instances.to_coco(number), instances.areas_I, strict=True)):
            self._objects += 1
            separator = "\n" if self._objects == 1 else ",\n"
            annotation = {"id": self._objects, **result, "area": int(area), "iscrowd": 0}
            if self._polygons:
                annotation["segmentation"] = [flat(polygon) for polygon in polygons_of(instances, i, EXACT)]
            self._annotations.write(separator + _json(annotation))
            self._results.write(separator + _json(result))

    def close(self) -> None:
        """Bring the parts together; the files are whole after this."""
        self._predictions.write('\n],\n"annotations": [')
        self._annotations.seek(0)
        shutil.copyfileobj(self._annotations, self._predictions)
        self._predictions.write("\n]}\n")
        self._results.write("\n]\n")


@contextmanager
def result_files(
    out: Path,
    info: dict[str, Any],
    class_names: Sequence[str],
    category_ids: Sequence[int],
    polygons: bool = False,
) -> Iterator[ResultFiles]:
    """Files that grow image by image, so that memory does not, and replace older ones when the block ends well.

    Args:
        out: their folder.
        info: what the data set says of itself.
        class_names, category_ids: of the model.
        polygons: write the masks of the data set as polygons.
    """
    head = {"info": info, "categories": categories(class_names, category_ids)}
    with ExitStack() as stack:
        predictions = stack.enter_context(atomic_write(out / PREDICTIONS_FILE, "w"))
        results = stack.enter_context(atomic_write(out / RESULTS_FILE, "w"))
        # A COCO file lists images, then annotations, but both come image by image: the latter wait here.
        annotations = stack.enter_context(tempfile.TemporaryFile("w+", dir=out, encoding="utf-8"))
        files = ResultFiles(predictions, results, annotations, head, polygons)
        yield files
        files.close()


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an HW3 RGB or HW gray image."""
    with atomic_write(path) as file:
        Image.fromarray(image).save(file, format="PNG", compress_level=4)


def write_labelme(path: Path, instances: Instances, image: Path) -> None:
    """Write the objects of an image as labelme's JSON file; drawn again, its polygons are the masks."""
    shapes = [
        {
            "label": instances.class_names[int(label)],
            "score": round(float(score), 4),
            "points": polygon.tolist(),
            "group_id": i if len(parts) > 1 else None,  # one group is one object
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for i, (label, score) in enumerate(zip(instances.labels_I, instances.scores_I, strict=True))
        if (parts := polygons_of(instances, i, EXACT))
        for polygon in parts
    ]
    try:
        place = Path(os.path.relpath(image.resolve(), path.parent.resolve()))
    except ValueError:  # on Windows, drives have nothing in common
        place = image.resolve()
    height, width = instances.image_size
    content: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": printable(place.as_posix()),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1))


def image_ids(annotations: Path, paths: Sequence[Path]) -> list[int]:
    """The id that a COCO file gives each image: that of the longest name in which the image's path ends, or else the
    one that has most parts at its end in common.

    Args:
        annotations: the COCO file.
        paths: the images.

    Raises:
        SOTRError: the file cannot be read, or an image is not in it, or could be several of its images.
    """
    ids: dict[str, int] = {}
    by_last: dict[str, list[str]] = {}
    for key, entry in read_lists(annotations, ("images",)):
        if key == "images" and isinstance(entry, dict):
            name = image_name(entry, f"{annotations}: an image")
            name = "/".join(part for part in re.split(r"[\\/]", name) if part not in ("", "."))
            ids[name] = whole(entry, "id", f"{annotations}: image {name}")
            by_last.setdefault(name.split("/")[-1], []).append(name)
    found: list[int] = []
    taken: dict[str, str] = {}
    for path in paths:
        own, name = Path(os.path.abspath(path)).parts, path.name
        same = [(_alike(own, other.split("/")), other) for other in by_last.get(name, ())]
        same = [(parts, other) for parts, other in same if parts == len(other.split("/"))] or same
        best = max((parts for parts, _ in same), default=0)
        chosen = [other for parts, other in same if parts == best]
        if len(chosen) != 1 or chosen[0] in taken:
            other = taken.get(chosen[0]) if len(chosen) == 1 else None
            why = "is not listed" if not chosen else f"is {other}'s, too" if other else "could be several images"
            raise SOTRError(f"{annotations}: {path} {why}; name the images as they are listed there")
        taken[chosen[0]] = printable(str(path))
        found.append(ids[chosen[0]])
    return found


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two names have in common at their ends."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def write_masks(folder: Path, instances: Instances) -> list[Path]:
    """Write each object's mask, 0 or 255 at the image's size, to 000.png, 001.png, ... in order."""
    paths = [folder / f"{i:03d}.png" for i in range(len(instances))]
    for i, path in enumerate(paths):
        mask_hw, x, y = instances.mask_crop(i)
        canvas = np.zeros(instances.image_size, np.uint8)
        canvas[y : y + mask_hw.shape[0], x : x + mask_hw.shape[1]] = mask_hw * np.uint8(255)
        write_png(path, canvas)
    return paths


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
