"""`sotr data convert`: data sets in other formats, and COCO of other tools, become COCO that trains."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from rich.console import Console

from sotr.curation.formats import coco, cvat, label_studio, labelme, masks, supervisely, via, voc, yolo
from sotr.curation.formats.common import OBJECT, LabelledImage, Source
from sotr.curation.formats.masks import Numbers
from sotr.data.coco_writer import CocoWriter
from sotr.errors import SOTRError
from sotr.files import atomic_folder, link_or_copy
from sotr.progress import progress_bar

FORMATS: dict[str, ModuleType] = {
    module.NAME: module for module in (yolo, voc, labelme, masks, coco, cvat, label_studio, via, supervisely)
}
"""By name, in the order in which a folder is held against them."""

NAMED = 3
"""Files that a line about many of them names."""


@dataclass(frozen=True)
class Conversion:
    """What `convert_data` did."""

    out: Path
    pictures: dict[str, int]
    """Images of each split."""
    objects: dict[str, int]
    failures: list[str]
    """Labels that are no objects with masks, or are broken, and were left out, one line each."""
    notes: list[str] = field(default_factory=list)
    """What was assumed or passed over, one line for each kind."""


def convert_data(
    source: str,
    out: str,
    format: str | None = None,
    val_share: float = 0.2,
    class_name: str | None = None,
    numbers: Numbers = "objects",
    skip_broken: bool = False,
    quiet: bool = False,
) -> Conversion:
    """Turn a data set in another format into COCO: train.json, val.json and images/.

    Formats are yolo (segmentation), voc (Pascal VOC with SegmentationObject, also of CVAT, Datumaro and labelme2voc),
    labelme (also of X-AnyLabeling), masks (folders of mask images, one for each object or numbered; also of Cellpose),
    coco (in any layout, with names of other computers), cvat (CVAT for images 1.1), label-studio (JSON, with brush
    masks), via (VGG Image Annotator) and supervisely. Masks keep their holes and parts. Images are hard links where the
    file system allows them, and copies elsewhere.

    Args:
        source: Folder of the data set.
        out: New folder for the result.
        format: One of these; found by looking, if not given.
        val_share: Where the source has no splits, the share of images to validate on, 0 to below 1; which they are
            depends on nothing but their names.
        class_name: Name of the class, where the format has none (masks).
        numbers: What a number in a mask is: objects, parts (each separate part is an object) or classes (each separate
            part is an object, and the number its class).
        skip_broken: Leave out what is broken, counted, instead of writing nothing.
        quiet: Print nothing but errors, what was left out and what was assumed.

    Returns:
        Counts, and what was left out, which makes the exit code 1.

    Raises:
        SOTRError: a label or file is broken. All that are are printed, and nothing is written.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise SOTRError(f"{source}: no such folder; give the folder of a data set")
    if not 0 <= val_share < 1:
        raise SOTRError(f"val_share is {val_share}; it must lie in 0..1, below 1")
    reader = _reader(folder, format)
    if numbers != "objects" and reader is not masks:
        raise SOTRError(f"numbers is of masks, and this is {reader.NAME}; leave it out")
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
    loud = Console(stderr=True, highlight=False, markup=False)
    data: Source = reader.read(folder, numbers) if reader is masks else reader.read(folder)
    images, broken = _read(data, reader.NAME, console)
    if broken and not skip_broken:
        for line in broken if len(broken) > 1 else ():
            loud.print(f"broken: {line}", soft_wrap=True)
        more = f" (and {len(broken) - 1} more, listed above); --skip-broken leaves them out" if len(broken) > 1 else ""
        raise SOTRError(broken[0] + more)
    if not images:
        raise SOTRError(f"{source}: holds no images with labels in the format {reader.NAME}")
    failures = [line for image in images for line in image.skipped] + broken
    names = _class_names(folder, images, data.classes, class_name)
    result = _write(Path(out), folder, images, reader.NAME, val_share, names, console)
    notes = _grouped([*data.notes, *(note for image in images for note in image.notes)])
    for line in failures:
        loud.print(f"left out: {line}", soft_wrap=True)
    for line in notes:
        loud.print(f"note: {line}", soft_wrap=True)
    if failures:
        loud.print(f"{len(failures)} left out ({len(broken)} broken, {len(failures) - len(broken)} without a mask)")
    counts = ", ".join(f"{s} {n} images with {result[s][1]} objects" for s, (n, _) in result.items())
    console.print(f"{out}: from {reader.NAME}, {counts}", soft_wrap=True)
    return Conversion(
        Path(out),
        {split: number for split, (number, _) in result.items()},
        {split: number for split, (_, number) in result.items()},
        failures,
        notes,
    )


def _reader(folder: Path, format: str | None) -> ModuleType:
    if format is not None:
        if format not in FORMATS:
            raise SOTRError(f"there is no format {format!r}; choose one of {', '.join(FORMATS)}")
        return FORMATS[format]
    found = [module for module in FORMATS.values() if module.recognizes(folder)]
    if len(found) == 1:
        return found[0]
    what = "is in none of the known formats" if not found else "could be in several formats"
    names = [module.NAME for module in found] or list(FORMATS)
    raise SOTRError(f"{folder}: {what} ({', '.join(names)}); name one with --format")


def _read(data: Source, name: str, console: Console) -> tuple[list[LabelledImage], list[str]]:
    """The images that can be read, and what is broken, one line each."""
    images, broken = [], list(data.broken)
    with progress_bar(f"reading {name}", None, console) as advance:
        for read in data.images:
            try:
                image = read()
            except SOTRError as error:
                broken.append(str(error))
            else:
                images.append(image)
                broken += image.broken
            advance(1)
    return images, broken


def _grouped(notes: Iterable[str]) -> list[str]:
    """One line for each kind of note, `KIND: where`, with the first places."""
    places: dict[str, list[str]] = defaultdict(list)
    for note in notes:
        kind, _, where = note.rpartition(": ")
        if where not in places[kind]:
            places[kind].append(where)
    lines = []
    for kind, found in places.items():
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        lines.append(f"{kind}: {', '.join(found[:NAMED])}{more}")
    return lines


def _class_names(
    source: Path, images: list[LabelledImage], classes: tuple[str, ...], class_name: str | None
) -> dict[str, str]:
    """Each class in order -> the name that it gets."""
    occurring = dict.fromkeys(sorted({object_.class_name for image in images for object_ in image.objects}))
    if class_name is not None:
        if list(occurring) not in ([], [OBJECT]):
            raise SOTRError(
                f"the objects have classes of their own ({', '.join(list(occurring)[:5])}); leave --class-name out"
            )
        return {OBJECT: class_name}
    if not occurring:
        skipped = [line for image in images for line in image.skipped]
        why = f"; of {len(skipped)} labels none has a mask, the first: {skipped[0]}" if skipped else ""
        raise SOTRError(f"{source}: has no object with a mask; label some, or name the format with --format{why}")
    return {name: name for name in dict.fromkeys([*classes, *occurring])}


def _write(
    out: Path,
    source: Path,
    images: list[LabelledImage],
    name: str,
    val_share: float,
    names: dict[str, str],
    console: Console,
) -> dict[str, tuple[int, int]]:
    """Write all, and return the number of images and objects of each split."""
    label_of = {own: i for i, own in enumerate(names, 1)}
    writer = CocoWriter(f"{source.name}, converted from {name}", list(names.values()))
    taken: set[str] = set()
    with atomic_folder(out) as folder, progress_bar("writing", len(images), console) as advance:
        for image in images:
            split = image.split or ("val" if _share(image.path.name) < val_share else "train")
            file_name = _free_name(f"{split}/{image.path.name}", taken)
            target = folder / "images" / file_name
            target.parent.mkdir(parents=True, exist_ok=True)
            if image.content is not None:
                target.write_bytes(image.content)
            else:
                link_or_copy(image.path, target)
            writer.add_image(split, file_name, image.height, image.width)
            for own in image.objects:
                rle = {"size": [image.height, image.width], "counts": own.rle}
                writer.add_object(split, label_of[own.class_name], rle, own.segmentation, own.is_crowd)
            advance(1)
        writer.write(folder)
    return writer.counts()


def _share(name: str) -> float:
    """A number in 0..1 that is the name's alone."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") / 2**64


def _free_name(name: str, taken: set[str]) -> str:
    """The name, or where another image has it, the name with a number; cases are alike."""
    path, free, number = Path(name), name, 2
    while free.lower() in taken:
        free = path.with_stem(f"{path.stem}_{number}").as_posix()
        number += 1
    taken.add(free.lower())
    return free
