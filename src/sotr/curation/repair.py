"""`sotr data check --fix`: a repaired copy of a data set, with an account of every change."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from sotr.curation.findings import Finding
from sotr.curation.normalize import normalized
from sotr.data.coco import load_coco
from sotr.data.images import load_image
from sotr.data.layouts import Located
from sotr.data.parse import Flaw, check_masks, compress, reaches_outside, read_image
from sotr.data.stream import read_whole, show
from sotr.errors import SOTRError
from sotr.files import atomic_folder, link_or_copy, write_json

SAME_SHAPE = 0.01
"""An image is a scaled copy of the one recorded if its sides' ratios differ by no more than this."""

ROUNDS = 4
"""Repairs one after the other, at most."""

UNREADABLE = ("file", "categories", "category", "no images")
"""Kinds of findings that need judgement before anything can be repaired."""

REPAIRED = frozenset(
    {
        *("entry", "missing", "unreadable", "size", "duplicate image", "duplicate id", "unknown image"),
        *("unknown category", "no mask", "polygon", "rle", "far outside", "iscrowd", "empty mask", "outside", "area"),
        *("duplicate object", "crowd polygon", "identical images", "shared between splits", "file name"),
    }
)
"""Kinds of findings that are repaired."""

ORIENTATION = 0x0112
"""EXIF's number for how an image is to be turned."""


Look = Callable[[Located], Sequence[Finding]]
"""Finds what is wrong with splits."""


def write_repaired(out: Path, located: Located, look: Look) -> list[str]:
    """Write a copy of a data set without what is wrong with it, as far as that needs no judgement.

    The copy has the plain layout: train.json, val.json and images/SPLIT/. Images are hard links where the file system
    allows them, and copies elsewhere. Masks that are sound stay as they are; images without objects, images that
    look alike, and classes stay, too. What a repair brings to light is repaired as well.

    Args:
        out: new folder.
        located: the annotation file and the images of each split.
        look: finds what is wrong with them.

    Returns:
        One line for each change.

    Raises:
        SOTRError: what is wrong needs judgement, nothing would be left, or `out` is there already. Nothing is written.
    """
    changes: list[str] = []
    with atomic_folder(out) as folder, TemporaryDirectory(dir=folder.parent, prefix=f".{out.name}.") as work:
        before: Located = {}
        for split, (json_path, images_dir) in located.items():
            try:
                raw = read_whole(json_path)
            except SOTRError as error:
                raise SOTRError(f"{error}; that needs your judgement, so nothing is repaired") from None
            content = normalized(raw, images_dir, partial(_say, changes, json_path.name))
            before[split] = (_write(Path(work) / f"{split}.json", content), images_dir)
        after = before
        for number in range(ROUNDS):
            findings = look(after)
            unreadable = [finding for finding in findings if finding.kind in UNREADABLE]
            if unreadable:
                message = unreadable[0].message.replace(f"{work}{os.sep}", "")
                raise SOTRError(f"{message}; that needs your judgement, so nothing is repaired")
            if number and not any(finding.kind in REPAIRED for finding in findings):
                break
            target, source, after = Path(work) / str(number), after, {}
            target.mkdir()
            for split, (json_path, images_dir) in source.items():
                own = [finding for finding in findings if finding.split == split]
                repair = _Repair(split, json_path, images_dir, own, located[split][0].name, changes)
                after[split] = (_write(target / f"{split}.json", repair.run(target)), target / "images")
        _check(after, located)
        for path in next(iter(after.values()))[0].parent.iterdir():
            os.replace(path, folder / path.name)
    return changes


def _say(changes: list[str], file: str, what: str, entry: Any, change: str) -> None:
    name = show(entry.get("id") if isinstance(entry, dict) else entry).strip('"')
    picture = f" {show(entry['file_name'])[1:-1]}" if isinstance(entry, dict) and "file_name" in entry else ""
    changes.append(f"{file}: {what} {name}{picture}: {change}")


def _write(path: Path, content: dict[str, Any]) -> Path:
    write_json(path, content)
    return path


def _check(after: Located, located: Located) -> None:
    """Refuse a copy that does not load, or that has lost all it had."""
    for split, (json_path, images_dir) in after.items():
        data = load_coco(json_path, images_dir)
        if not len(data.labels) and read_whole(located[split][0]).get("annotations"):
            raise SOTRError(
                f"{located[split][0]}: no annotation of it can be repaired without your judgement, so nothing is "
                "written; sotr data check lists what is wrong"
            )


class _Repair:
    """One split."""

    def __init__(
        self,
        split: str,
        json_path: Path,
        images_dir: Path,
        findings: Sequence[Finding],
        name: str,
        changes: list[str],
    ) -> None:
        self.split, self.json_path, self.images_dir = split, json_path, images_dir
        self._say = partial(_say, changes, name)
        self.pictures: dict[str, set[str]] = {}
        """Kind of finding -> file names."""
        self.annotations: dict[str, set[int]] = {}
        """Kind of finding -> annotation ids."""
        for finding in findings:
            if finding.annotation_id is not None:
                self.annotations.setdefault(finding.kind, set()).add(finding.annotation_id)
            elif finding.file is not None:
                self.pictures.setdefault(finding.kind, set()).add(finding.file)

    def run(self, folder: Path) -> dict[str, Any]:
        """Copy the images that stay to `folder`/images, and return the repaired annotations."""
        raw = read_whole(self.json_path)
        images: list[dict[str, Any]] = []
        sizes: dict[int, tuple[int, int]] = {}
        scales: dict[int, tuple[float, float]] = {}
        names: set[str] = set()
        segmentations: dict[int, list[Any]] = defaultdict(list)
        for entry in raw["annotations"]:
            if _is_entry(entry, "image_id"):
                segmentations[int(entry["image_id"])].append(entry.get("segmentation"))
        for entry in raw["images"]:
            if (reason := self._drop_picture(entry, sizes, names)) is not None:
                self._say("image", entry, f"left out: {reason}")
                continue
            name, image_id = entry["file_name"], int(entry["id"])
            names.add(name)
            height, width = int(entry["height"]), int(entry["width"])
            target = folder / "images" / self.split / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in self.pictures.get("size", ()):
                real_h, real_w = load_image(self.images_dir / name).shape[:2]
                if (real_h, real_w) == (width, height) and _is_turned(self.images_dir / name):
                    # Recorded and labeled as stored: the copy is stored upright in that sense.
                    _without_rotation(self.images_dir / name, target)
                    self._say("image", entry, f"EXIF rotation removed, so that it is {width} x {height} as recorded")
                elif (real_h, real_w) == (width, height) and _all_fit(segmentations[image_id], (real_h, real_w)):
                    link_or_copy(self.images_dir / name, target)
                    self._say("image", entry, f"width and height were exchanged; now {real_w} x {real_h}")
                    height, width = real_h, real_w
                elif abs(np.log(real_h * width / (real_w * height))) <= SAME_SHAPE:
                    link_or_copy(self.images_dir / name, target)
                    scales[image_id] = (real_w / width, real_h / height)
                    self._say("image", entry, f"masks scaled from {width} x {height} to its {real_w} x {real_h}")
                    height, width = real_h, real_w
                else:
                    self._say("image", entry, f"left out: it is {real_w} x {real_h}, recorded as {width} x {height}")
                    names.discard(name)
                    continue
            else:
                link_or_copy(self.images_dir / name, target)
            sizes[image_id] = (height, width)
            images.append({**entry, "file_name": f"{self.split}/{name}", "height": height, "width": width})

        known = {category["id"] for category in raw["categories"] if _is_entry(category, "id")}
        annotations: list[dict[str, Any]] = []
        ids: set[int] = set()
        numbers = [int(entry["id"]) for entry in raw["annotations"] if _is_entry(entry, "id")]
        free = max([0, *numbers]) + 1
        for entry in raw["annotations"]:
            mended = self._mend(entry, sizes, scales, known, ids, free)
            if mended is None:
                continue
            if mended["id"] == free:
                free += 1
            ids.add(mended["id"])
            annotations.append(mended)
        return {**raw, "images": images, "annotations": annotations}

    def _drop_picture(self, entry: Any, sizes: Mapping[int, Any], names: set[str]) -> str | None:
        if not _is_entry(entry, "id", "height", "width") or not isinstance(entry.get("file_name"), str):
            return "its entry is damaged"
        name = entry["file_name"]
        if int(entry["id"]) in sizes or name in names:
            return "it is listed twice"
        try:
            read_image(entry, 0, self.json_path)
        except Flaw:
            return "its entry is damaged"
        for kind in ("missing", "unreadable", "identical images"):
            if name in self.pictures.get(kind, ()):
                return "it is a copy of another" if kind == "identical images" else kind
        if name in self.pictures.get("shared between splits", ()):
            return "it is a training image, too"
        return None

    def _mend(
        self,
        entry: Any,
        sizes: Mapping[int, tuple[int, int]],
        scales: Mapping[int, tuple[float, float]],
        known: set[Any],
        ids: set[int],
        free: int,
    ) -> dict[str, Any] | None:
        """The annotation, with what is wrong with it put right, or None if it is left out."""
        if not _is_entry(entry, "image_id", "category_id"):
            self._say("annotation", entry, "left out: its entry is damaged")
            return None
        if not _is_entry(entry, "id"):
            self._say("annotation", entry, f"it has no number for an id; now {free}")
            entry = {**entry, "id": free}
        entry = {**entry, **{key: int(entry[key]) for key in ("id", "image_id", "category_id")}}
        own_id = entry["id"]
        if entry["image_id"] not in sizes:
            self._say("annotation", entry, f"left out: its image {entry['image_id']} is not there")
            return None
        if entry["category_id"] not in known:
            self._say("annotation", entry, f"left out: there is no category {entry['category_id']}")
            return None
        if own_id in ids:
            self._say("annotation", entry, f"its id occurs twice; now {free}")
            entry["id"] = free
        elif own_id in self.annotations.get("duplicate object", ()):
            self._say("annotation", entry, "left out: the object is labeled twice")
            return None
        if entry.get("iscrowd", 0) not in (0, 1):
            crowd = int(isinstance(entry.get("segmentation"), dict))  # COCO writes crowds as RLE, objects as polygons
            self._say("annotation", entry, f"iscrowd was {show(entry['iscrowd'])}, now {crowd}")
            entry["iscrowd"] = crowd
        return self._mend_mask(entry, own_id, sizes[entry["image_id"]], scales.get(entry["image_id"]))

    def _mend_mask(
        self, entry: dict[str, Any], own_id: int, size: tuple[int, int], scale: tuple[float, float] | None
    ) -> dict[str, Any] | None:
        height, width = size
        segmentation = entry.get("segmentation")
        if scale is not None:
            segmentation = _scaled(segmentation, scale, size)
        if isinstance(segmentation, list):
            sound = [part for part in segmentation if _is_sound(part, size)]
            if sound and len(sound) < len(segmentation):
                self._say("annotation", entry, f"{len(segmentation) - len(sound)} broken polygon(s) of it left out")
                segmentation = sound
        try:
            text = compress(segmentation, height, width, "it")
            _, _, [broken] = check_masks(np.frombuffer(text, np.uint8), np.array([len(text)]), np.array([size]))
            if broken:
                raise Flaw("rle", "its run-length encoding is broken")
            rle = {"size": [height, width], "counts": text.decode("ascii")}
            left, top, box_width, box_height = (float(v) for v in coco_mask.toBbox([rle])[0])
            area = int(coco_mask.area([rle])[0])
        except (Flaw, ValueError, RuntimeError) as error:
            self._say("annotation", entry, f"left out: {error}")
            return None
        if not area:
            self._say("annotation", entry, "left out: it covers no pixel")
            return None
        # By the size that the image has now, which need not be the one that the findings are about.
        if reaches_outside(segmentation, height, width) or own_id in self.annotations.get("crowd polygon", ()):
            self._say("annotation", entry, "its polygons are now an RLE, cut at the image's edges")
            segmentation = rle
        if scale is not None or (own_id in self.annotations.get("area", ()) and entry.get("area") != area):
            if scale is None:
                self._say("annotation", entry, f"its area was {entry.get('area')}, now {area}")
            entry |= {"area": area, "bbox": [left, top, box_width, box_height]}
        return {**entry, "segmentation": segmentation}


def _all_fit(segmentations: Sequence[Any], size: tuple[int, int]) -> bool:
    """Whether masks lie within an image of this size; broken polygons say nothing, for they will be left out."""
    for segmentation in segmentations:
        if isinstance(segmentation, dict) and segmentation.get("size") != list(size):
            return False
        if isinstance(segmentation, list) and reaches_outside([p for p in segmentation if _is_sound(p, size)], *size):
            return False
    return True


def _is_entry(entry: Any, *numbers: str) -> bool:
    return isinstance(entry, dict) and all(
        type(entry.get(name)) is int or (isinstance(entry.get(name), float) and entry[name].is_integer())
        for name in numbers
    )


def _is_sound(part: Any, size: tuple[int, int]) -> bool:
    try:
        compress([part], *size, "it")
    except Flaw:
        return False
    return True


def _scaled(segmentation: Any, scale: tuple[float, float], size: tuple[int, int]) -> Any:
    """A mask of an image that has become `scale` times as large: polygons stay polygons."""
    if isinstance(segmentation, list):
        return [
            [value * scale[i % 2] if isinstance(value, int | float) else value for i, value in enumerate(part)]
            for part in segmentation
            if isinstance(part, list)
        ]
    if not isinstance(segmentation, dict):
        return segmentation
    try:
        old_height, old_width = segmentation["size"]
        text = compress(segmentation, old_height, old_width, "it").decode("ascii")
        mask = coco_mask.decode({"size": [old_height, old_width], "counts": text})
    except (Flaw, KeyError, TypeError, ValueError, RuntimeError):
        return segmentation
    larger = np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    rle = coco_mask.encode(np.asfortranarray(larger))
    counts = rle["counts"]
    return {"size": list(size), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _is_turned(path: Path) -> bool:
    """Whether EXIF says that width and height change places."""
    with Image.open(path) as picture:
        return picture.getexif().get(ORIENTATION) in (5, 6, 7, 8)


def _without_rotation(source: Path, target: Path) -> None:
    """The image as stored, without the note that it is to be turned."""
    with Image.open(source) as picture:
        picture.load()
        exif = picture.getexif()
        exif.pop(ORIENTATION, None)
        options = {"quality": 95} if picture.format == "JPEG" else {}
        picture.save(target, format=picture.format, exif=exif, **options)
