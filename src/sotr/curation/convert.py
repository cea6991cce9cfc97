"""`sotr data convert`: data sets in other formats become COCO."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from faster_coco_eval.core import mask as coco_mask
from rich.console import Console

from sotr.curation.formats import labelme, masks, voc, yolo
from sotr.curation.formats.common import LabelledPicture
from sotr.data.parse import compress
from sotr.errors import SOTRError
from sotr.files import atomic_folder, link_or_copy
from sotr.progress import progress_bar

FORMATS: dict[str, ModuleType] = {module.NAME: module for module in (yolo, voc, labelme, masks)}
"""By name, in the order in which a folder is held against them."""


@dataclass(frozen=True)
class Conversion:
    """What `convert_data` did."""

    out: Path
    pictures: dict[str, int]
    """Of each split."""
    objects: dict[str, int]
    failures: list[str]
    """Labels that are no objects with masks and were left out, one line each."""


def convert_data(
    source: str,
    out: str,
    format: str | None = None,
    val_share: float = 0.2,
    class_name: str | None = None,
    quiet: bool = False,
) -> Conversion:
    """Turn a data set in another format into COCO: train.json, val.json and images/.

    Formats are yolo (segmentation), voc (Pascal VOC with SegmentationObject), labelme, and masks (folders of mask
    pictures, one per object or numbered). Masks keep their holes and parts. Pictures are hard links where the file
    system allows them, and copies elsewhere.

    Args:
        source: Folder of the data set.
        out: New folder for the result.
        format: yolo, voc, labelme or masks; found by looking, if not given.
        val_share: Where the source has no splits, the share of pictures to validate on, 0 to below 1; which they are
            depends on nothing but their names.
        class_name: Name of the class, where the format has none (masks).
        quiet: Print nothing but errors and what was left out.

    Returns:
        Counts, and what was left out, which makes the exit code 1.

    Raises:
        SOTRError: a file cannot be used; it is named, and nothing is written.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise SOTRError(f"{source}: no such folder; give the folder of a data set")
    if not 0 <= val_share < 1:
        raise SOTRError(f"val_share is {val_share}; it must lie in 0..1, below 1")
    reader = _reader(folder, format)
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
    pictures: list[LabelledPicture] = []
    with progress_bar(f"reading {reader.NAME}", None, console) as advance:
        for picture in reader.read(folder):
            pictures.append(picture)
            advance(1)
    if not pictures:
        raise SOTRError(f"{source}: holds no pictures with labels in the format {reader.NAME}")
    result = _write(Path(out), folder, pictures, reader.NAME, val_share, class_name, console)
    for line in result.failures:
        Console(stderr=True, highlight=False, markup=False).print(f"left out: {line}", soft_wrap=True)
    counts = ", ".join(f"{s} {n} pictures with {result.objects[s]} objects" for s, n in result.pictures.items())
    console.print(f"{out}: from {reader.NAME}, {counts}", soft_wrap=True)
    return result


def _reader(folder: Path, format: str | None) -> ModuleType:
    if format is not None:
        if format not in FORMATS:
            raise SOTRError(f"there is no format {format!r}; choose one of {', '.join(FORMATS)}")
        return FORMATS[format]
    found = [module for module in FORMATS.values() if module.recognises(folder)]
    if len(found) == 1:
        return found[0]
    what = "is in none of the known formats" if not found else "could be in several formats"
    names = [module.NAME for module in found] or list(FORMATS)
    raise SOTRError(f"{folder}: {what} ({', '.join(names)}); name one with --format")


def _write(
    out: Path,
    source: Path,
    pictures: list[LabelledPicture],
    name: str,
    val_share: float,
    class_name: str | None,
    console: Console,
) -> Conversion:
    names = sorted({object_.class_name for picture in pictures for object_ in picture.objects})
    if class_name is not None:
        if names not in ([], [masks.CLASS]):
            raise SOTRError(f"the objects have classes of their own ({', '.join(names[:5])}); leave --class-name out")
        names = [class_name]
    if not names:
        raise SOTRError(f"{source}: has no object with a mask; label some, or name the format with --format")
    label_of = {own: i + 1 for i, own in enumerate(names)} | ({masks.CLASS: 1} if class_name is not None else {})
    content: dict[str, dict[str, Any]] = {}
    taken: set[str] = set()
    with atomic_folder(out) as folder, progress_bar("writing", len(pictures), console) as advance:
        for picture in pictures:
            split = picture.split or ("val" if _share(picture.path.name) < val_share else "train")
            data = content.setdefault(
                split,
                {
                    "info": {"description": f"{source.name}, converted from {name}"},
                    "images": [],
                    "annotations": [],
                    "categories": [{"id": i + 1, "name": own} for i, own in enumerate(names)],
                },
            )
            file_name = _free_name(f"{split}/{picture.path.name}", taken)
            target = folder / "images" / file_name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(picture.path, target)
            image_id = len(data["images"]) + 1
            data["images"].append(
                {"id": image_id, "file_name": file_name, "height": picture.height, "width": picture.width}
            )
            for object_ in picture.objects:
                text = compress(object_.segmentation, picture.height, picture.width, f"{picture.path}: an object")
                rle = {"size": [picture.height, picture.width], "counts": text.decode("ascii")}
                data["annotations"].append(
                    {
                        "id": len(data["annotations"]) + 1,
                        "image_id": image_id,
                        "category_id": label_of[object_.class_name],
                        "segmentation": object_.segmentation,
                        "area": int(coco_mask.area([rle])[0]),
                        "bbox": [float(value) for value in coco_mask.toBbox([rle])[0]],
                        "iscrowd": 0,
                    }
                )
            advance(1)
        for split, data in content.items():
            (folder / f"{split}.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return Conversion(
        out,
        {split: len(data["images"]) for split, data in content.items()},
        {split: len(data["annotations"]) for split, data in content.items()},
        [line for picture in pictures for line in picture.skipped],
    )


def _share(name: str) -> float:
    """A number in 0..1 that is the name's alone."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") / 2**64


def _free_name(name: str, taken: set[str]) -> str:
    """The name, or where another picture has it, the name with a number."""
    path, free, number = Path(name), name, 2
    while free in taken:
        free = str(path.with_stem(f"{path.stem}_{number}"))
        number += 1
    taken.add(free)
    return free
