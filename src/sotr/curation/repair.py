"""`sotr data check --fix`: a repaired copy of a data set, with an account of every change."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from sotr.curation.findings import Finding
from sotr.data.images import load_image
from sotr.data.parse import Flaw, check_masks, compress, reaches_outside, read_image
from sotr.data.stream import read_whole, show
from sotr.errors import SOTRError
from sotr.files import atomic_folder, link_or_copy

SAME_SHAPE = 0.01
"""A picture is a scaled copy of the one recorded if its sides' ratios differ by no more than this."""

ORIENTATION = 0x0112
"""EXIF's number for how a picture is to be turned."""


def write_repaired(out: Path, located: Mapping[str, tuple[Path, Path]], findings: Sequence[Finding]) -> Iterator[str]:
    """Write a copy of a data set without what was found to be wrong with it, as far as that needs no judgement.

    The copy has the plain layout: train.json, val.json and images/SPLIT/. Pictures are hard links where the file system
    allows them, and copies elsewhere. Masks that are sound stay as they are; pictures without objects, pictures that
    look alike, and classes stay, too.

    Yields:
        One line for each change.

    Raises:
        SOTRError: an annotation file cannot be read at all, or `out` is there already.
    """
    unreadable = [finding for finding in findings if finding.kind in ("file", "categories", "category")]
    if unreadable:
        raise SOTRError(f"{unreadable[0].message}; that needs your judgement, so nothing is repaired")
    with atomic_folder(out) as folder:
        for split, (json_path, images_dir) in located.items():
            own = [finding for finding in findings if finding.split == split]
            repair = _Repair(split, json_path, images_dir, own)
            content = repair.run(folder)
            (folder / f"{split}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            yield from repair.changes


class _Repair:
    """One split."""

    def __init__(self, split: str, json_path: Path, images_dir: Path, findings: Sequence[Finding]) -> None:
        self.split, self.json_path, self.images_dir = split, json_path, images_dir
        self.changes: list[str] = []
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
        """Copy the pictures that stay to `folder`/images, and return the repaired annotations."""
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
                self._say("picture", entry, f"left out: {reason}")
                continue
            name, image_id = entry["file_name"], int(entry["id"])
            names.add(name)
            height, width = int(entry["height"]), int(entry["width"])
            target = folder / "images" / self.split / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in self.pictures.get("size", ()):
                real_h, real_w = load_image(self.images_dir / name).shape[:2]
                if (real_h, real_w) == (width, height) and _is_turned(self.images_dir / name):
                    # Recorded and labelled as stored: the copy is stored upright in that sense.
                    _without_rotation(self.images_dir / name, target)
                    self._say("picture", entry, f"EXIF rotation removed, so that it is {width} x {height} as recorded")
                elif (real_h, real_w) == (width, height) and _all_fit(segmentations[image_id], (real_h, real_w)):
                    link_or_copy(self.images_dir / name, target)
                    self._say("picture", entry, f"width and height were exchanged; now {real_w} x {real_h}")
                    height, width = real_h, real_w
                elif abs(np.log(real_h * width / (real_w * height))) <= SAME_SHAPE:
                    link_or_copy(self.images_dir / name, target)
                    scales[image_id] = (real_w / width, real_h / height)
                    self._say("picture", entry, f"masks scaled from {width} x {height} to its {real_w} x {real_h}")
                    height, width = real_h, real_w
                else:
                    self._say("picture", entry, f"left out: it is {real_w} x {real_h}, recorded as {width} x {height}")
                    names.discard(name)
                    continue
            else:
                link_or_copy(self.images_dir / name, target)
            sizes[image_id] = (height, width)
            images.append({**entry, "file_name": f"{self.split}/{name}", "height": height, "width": width})

        known = {category["id"] for category in raw["categories"]}
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
            read_image(entry, 0, self.json_path, self.images_dir)
        except Flaw:
            return "its entry is damaged"
        for kind in ("missing", "unreadable", "identical pictures"):
            if name in self.pictures.get(kind, ()):
                return "it is a copy of another" if kind == "identical pictures" else kind
        if name in self.pictures.get("shared between splits", ()):
            return "it is a training picture, too"
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
            self._say("annotation", entry, f"left out: its picture {entry['image_id']} is not there")
            return None
        if entry["category_id"] not in known:
            self._say("annotation", entry, f"left out: there is no category {entry['category_id']}")
            return None
        if own_id in ids:
            self._say("annotation", entry, f"its id occurs twice; now {free}")
            entry["id"] = free
        elif own_id in self.annotations.get("duplicate object", ()):
            self._say("annotation", entry, "left out: the object is labelled twice")
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
        # By the size that the picture has now, which need not be the one that the findings are about.
        if reaches_outside(segmentation, height, width) or own_id in self.annotations.get("crowd polygon", ()):
            self._say("annotation", entry, "its polygons are now an RLE, cut at the picture's edges")
            segmentation = rle
        if scale is not None or (own_id in self.annotations.get("area", ()) and entry.get("area") != area):
            if scale is None:
                self._say("annotation", entry, f"its area was {entry.get('area')}, now {area}")
            entry |= {"area": area, "bbox": [left, top, box_width, box_height]}
        return {**entry, "segmentation": segmentation}

    def _say(self, what: str, entry: Any, change: str) -> None:
        name = entry.get("id") if isinstance(entry, dict) else show(entry)
        file = f" {entry['file_name']}" if isinstance(entry, dict) and "file_name" in entry else ""
        self.changes.append(f"{self.json_path.name}: {what} {name}{file}: {change}")


def _all_fit(segmentations: Sequence[Any], size: tuple[int, int]) -> bool:
    """Whether masks lie within a picture of this size; broken polygons say nothing, for they will be left out."""
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
    """A mask of a picture that has become `scale` times as large: polygons stay polygons."""
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
    """The picture as stored, without the note that it is to be turned."""
    with Image.open(source) as picture:
        picture.load()
        exif = picture.getexif()
        exif.pop(ORIENTATION, None)
        options = {"quality": 95} if picture.format == "JPEG" else {}
        picture.save(target, format=picture.format, exif=exif, **options)
