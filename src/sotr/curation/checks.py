"""What is wrong with a data set: found by `sotr data check`, and by `sotr train` before it starts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray
from rich.console import Console

from sotr.config import SOTRConfig
from sotr.curation.findings import KINDS, Finding, by_kind, counted
from sotr.curation.grids import Objects, fit_to_grids, objects_of
from sotr.curation.image_files import Pictures, identical_pairs, open_pictures, similar_pairs
from sotr.data.coco import CocoDataset, category_difference, read_coco
from sotr.data.images import is_file
from sotr.data.layouts import Located
from sotr.data.parse import Flaw
from sotr.errors import SOTRError
from sotr.masks import run_lengths as rle

SAME_OBJECT = 0.9
"""Two objects of an image whose masks overlap by this IoU are one object labeled twice."""

AREA_OFF = 0.1
"""An area is wrong if it differs from the mask's by this share, and by 16 pixels; polygons are not exact."""

_NEIGHBOURS = 6
"""Annotations behind one, in the order of their boxes, with which it is compared."""


@dataclass(frozen=True)
class CheckedSplit:
    """A split that could be read, and what was found in it."""

    data: CocoDataset
    """Without what is harmful in its annotations; all images are listed, readable or not."""
    pictures: Pictures
    objects: Objects
    findings: list[Finding]


def look_over(
    located: Located, console: Console, workers: int | None = None
) -> tuple[dict[str, CheckedSplit], list[Finding]]:
    """All that is wrong with the splits of a data set, and those of them that can be read.

    Args:
        located: the annotation file and the images of each split.
        console: shows the progress.
        workers: processes that decode images.
    """
    checked: dict[str, CheckedSplit] = {}
    findings: list[Finding] = []
    for split, (json_path, images_dir) in located.items():
        flaws: list[Flaw] = []
        try:
            dataset = read_coco(json_path, images_dir, flaws)
        except SOTRError as error:
            findings.append(Finding("file", str(error), split))
            continue
        if not len(dataset):
            findings += [_of_flaw(flaw, split) for flaw in flaws]
            findings.append(Finding("no images", f"{json_path}: none of its images can be used; correct them", split))
            continue
        checked[split] = check_split(split, dataset, open_pictures(dataset, console, workers), flaws)
        findings += checked[split].findings
    return checked, findings + check_splits(checked)


def _of_flaw(flaw: Flaw, split: str) -> Finding:
    return Finding(flaw.kind, str(flaw), split, flaw.file, flaw.image_id, flaw.annotation_id)


def check_split(split: str, data: CocoDataset, pictures: Pictures, flaws: Sequence[Flaw] = ()) -> CheckedSplit:
    """All that can be found in one split.

    Args:
        split: train or val.
        data: what could be read of it.
        pictures: its files.
        flaws: what could not be read.
    """
    found = [_of_flaw(flaw, split) for flaw in flaws]
    objects = objects_of(data)
    found += _picture_findings(split, data, pictures)
    found += _annotation_findings(split, data)
    found += _duplicate_objects(split, data)
    found += _class_findings(split, data, objects)
    for kind, pairs in (
        ("identical images", copies := identical_pairs(pictures.digests_N)),
        ("similar images", _without(similar_pairs(pictures.thumbnails_NP), copies)),
    ):
        for first, second in pairs.tolist():
            names = data.file_names[first], data.file_names[second]
            like = "is a copy of" if kind == "identical images" else "looks like"
            message = f"{data.path(second)} {like} {names[0]}; keep one of them"
            found.append(Finding(kind, message, split, names[1], int(data.image_ids[second])))
    return CheckedSplit(data, pictures, objects, found)


def check_splits(splits: Mapping[str, CheckedSplit]) -> list[Finding]:
    """What is wrong between training and validation images."""
    if not {"train", "val"} <= set(splits):
        return []
    train, val = splits["train"], splits["val"]
    if difference := category_difference(train.data, val.data):
        return [Finding("categories", difference, "val")]
    digests = np.concatenate([train.pictures.digests_N, val.pictures.digests_N])
    first_val = len(train.data)
    copies = identical_pairs(digests)
    thumbnails = np.concatenate([train.pictures.thumbnails_NP, val.pictures.thumbnails_NP])
    found = []
    for kind, pairs, like in (
        ("shared between splits", copies, "is a copy of the training image"),
        ("similar across splits", _without(similar_pairs(thumbnails), copies), "looks like the training image"),
    ):
        told: set[int] = set()
        for first, second in pairs.tolist():
            if first >= first_val or second < first_val or second in told:
                continue
            told.add(second)
            name = val.data.file_names[second - first_val]
            message = (
                f"{val.data.path(second - first_val)} {like} {train.data.file_names[first]}; keep it in one split only"
            )
            found.append(Finding(kind, message, "val", name, int(val.data.image_ids[second - first_val])))
    return found


def fit_findings(split: str, checked: CheckedSplit, config: SOTRConfig) -> list[Finding]:
    """Objects that a network's levels and cells would not learn."""
    data, objects, found = checked.data, checked.objects, []
    fit = fit_to_grids(objects, config)
    for kind, which, why in (
        ("no level", fit.unlearnable_A, "no level's scale range holds it"),
        ("no cell", fit.lost_A, "smaller objects take all its cells"),
    ):
        for a in np.flatnonzero(which).tolist():
            row, picture = int(objects.rows_A[a]), int(objects.pictures_A[a])
            annotation_id, name = int(data.annotation_ids[row]), data.file_names[picture]
            message = (
                f"{data.json_path}: annotation {annotation_id} in {name} has side {fit.sides_A[a]:.1f} px in the "
                f"network's input, and {why}; {KINDS[kind].remedy}"
            )
            found.append(Finding(kind, message, split, name, int(data.image_ids[picture]), annotation_id))
    return found


def verify(
    splits: Mapping[str, CocoDataset], config: SOTRConfig, console: Console, processes: int | None = None
) -> list[Finding]:
    """What `sotr train` does before it starts: open all images, say what is harmless, stop at what is harmful.

    Args:
        splits: train, and perhaps val, as `load_coco` read them.
        config: the network that is to learn the first.
        console: takes the progress and one line for each harmless kind.

    Returns:
        The harmless findings.

    Raises:
        SOTRError: names the first harmful thing with its file and remedy, and how many there are.
    """
    checked = {
        split: check_split(split, data, open_pictures(data, console, processes)) for split, data in splits.items()
    }
    found = [finding for part in checked.values() for finding in part.findings] + check_splits(checked)
    found += fit_findings("train", checked["train"], config)
    harmful = [finding for finding in found if finding.harmful]
    if harmful:
        more = f" (and {len(harmful) - 1} more; sotr data check lists them)" if len(harmful) > 1 else ""
        raise SOTRError(f"{harmful[0].message}{more}")
    for kind, findings in by_kind(found).items():
        console.print(f"data: {counted(kind, findings)}", soft_wrap=True)
    return found


def _picture_findings(split: str, data: CocoDataset, pictures: Pictures) -> list[Finding]:
    found = []
    per_picture = np.diff(data.offsets)
    recorded, real = np.asarray(data.sizes_N2), pictures.sizes_N2
    readable = real[:, 0] > 0
    odd = ~readable | (recorded != real).any(1)
    for i in np.flatnonzero(odd).tolist():
        name, image_id, (height, width) = data.file_names[i], int(data.image_ids[i]), recorded[i].tolist()
        where = f"{data.json_path}: image {image_id}"
        if not is_file(data.path(i)):
            kind, message = "missing", f"{where}: {data.path(i)} is missing; add the file or drop the image"
        elif not readable[i]:
            kind, message = "unreadable", f"{where}: {pictures.errors[i]}; or drop the image from the JSON"
        else:
            kind = "size"
            turned = ", as if its EXIF rotation had been ignored" if [width, height] == real[i].tolist() else ""
            message = (
                f"{where}: {data.path(i)} is {real[i, 1]} x {real[i, 0]} pixels (upright), but recorded as "
                f"{width} x {height}{turned}; correct the width and height there, and the masks"
            )
        found.append(Finding(kind, message, split, name, image_id))
    for i, name in data.mended.items():
        message = f"{data.json_path}: image {data.image_ids[i]}: {name!r} was found as {data.path(i)}"
        found.append(Finding("file name", message, split, data.file_names[i], int(data.image_ids[i])))
    for i in np.flatnonzero(per_picture == 0).tolist():
        message = f"{data.path(i)} has no annotations; fine if there is nothing to see, else label it"
        found.append(Finding("empty image", message, split, data.file_names[i], int(data.image_ids[i])))
    return found


def _annotation_findings(split: str, data: CocoDataset) -> list[Finding]:
    pictures = np.repeat(np.arange(len(data)), np.diff(data.offsets))
    empty = (data.boxes[:, 2] == 0) & ~data.iscrowd
    pixels = _pixels(data)
    off = np.abs(data.areas - pixels) > np.maximum(16, AREA_OFF * pixels)
    found = []
    for kind, which, what in (
        ("empty mask", empty, "covers no pixel of its image; draw it again or drop it"),
        ("outside", data.outside & ~empty, "has a polygon that leaves its image; what is outside is cut off"),
        (
            "crowd polygon",
            data.iscrowd & data.polygons,
            "is a crowd given as polygons; set iscrowd to 0 if it is one object",
        ),
        ("area", off & ~empty & ~data.iscrowd, "has an area that is not its mask's; correct it"),
    ):
        for row in np.flatnonzero(which).tolist():
            annotation_id, picture = int(data.annotation_ids[row]), int(pictures[row])
            extra = f" ({data.areas[row]:g}, the mask has {pixels[row]})" if kind == "area" else ""
            message = f"{data.json_path}: annotation {annotation_id} {what}{extra}"
            image_id = int(data.image_ids[picture])
            found.append(Finding(kind, message, split, data.file_names[picture], image_id, annotation_id))
    return found


def _pixels(data: CocoDataset) -> NDArray[np.int64]:
    """Pixels of each annotation's mask."""
    pixels = np.zeros(len(data.labels), np.int64)
    for first in range(0, len(pixels), 20_000):
        rows = range(first, min(first + 20_000, len(pixels)))
        pixels[rows.start : rows.stop] = rle.areas(rle.runs_of(data.strings(rows), 1))
    return pixels


def _duplicate_objects(split: str, data: CocoDataset) -> list[Finding]:
    """Objects of an image that are labeled twice, perhaps as different classes; crowds aside."""
    pictures = np.repeat(np.arange(len(data)), np.diff(data.offsets))
    rows = np.flatnonzero((data.boxes[:, 2] > 0) & ~data.iscrowd)
    boxes = np.asarray(data.boxes)[rows]
    order = np.lexsort((boxes[:, 1], boxes[:, 0], pictures[rows]))
    rows, boxes = rows[order], boxes[order]
    near = 1 + 0.05 * (boxes[:, 2:] - boxes[:, :2]).min(1)
    found, told = [], set()
    for step in range(1, min(_NEIGHBOURS, len(rows) - 1) + 1):
        alike = (np.abs(boxes[:-step] - boxes[step:]).max(1) <= near[:-step]) & (
            pictures[rows[:-step]] == pictures[rows[step:]]
        )
        for a in np.flatnonzero(alike).tolist():
            first, second = sorted((int(rows[a]), int(rows[a + step])))
            picture = int(pictures[first])
            size = data.sizes_N2[picture].tolist()
            masks = [{"size": size, "counts": text} for text in data.strings((first, second))]
            if second in told or coco_mask.iou(masks[:1], masks[1:], [0])[0, 0] < SAME_OBJECT:
                continue
            told.add(second)
            ids = int(data.annotation_ids[first]), int(data.annotation_ids[second])
            classes = [data.class_names[int(data.labels[row])] for row in (first, second)]
            as_what = f"as {classes[0]}" if classes[0] == classes[1] else f"as {classes[0]} and as {classes[1]}"
            message = (
                f"{data.json_path}: annotations {ids[0]} and {ids[1]} in {data.file_names[picture]} are one object, "
                f"labeled {as_what}; keep one"
            )
            image_id = int(data.image_ids[picture])
            found.append(Finding("duplicate object", message, split, data.file_names[picture], image_id, ids[1]))
    return found


def _class_findings(split: str, data: CocoDataset, objects: Objects) -> list[Finding]:
    if not len(objects.rows_A):
        if split != "train":  # odd, but it breaks nothing: each image has been told of
            return []
        message = f"{data.json_path}: has no object to learn; label some (crowds are not learnt)"
        return [Finding("no objects", message, split)]
    learnt = Counter(np.asarray(data.labels)[objects.rows_A].tolist())
    crowds = Counter(np.asarray(data.labels)[data.iscrowd].tolist())
    found = []
    for label, name in enumerate(data.class_names):
        if crowds[label] > learnt[label]:
            message = (
                f"{data.json_path}: {crowds[label]} of {crowds[label] + learnt[label]} annotations of {name} are "
                "crowds, which are not learnt; set iscrowd to 0 where they are single objects"
            )
            found.append(Finding("mostly crowds", message, split))
        elif not learnt[label] and split == "train":
            message = f"{data.json_path}: {name} has no object to learn; label some, or drop the class"
            found.append(Finding("unlearnt class", message, split))
    return found


def _without(pairs: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pairs whose second image is none of the others' second ones: these have been told already."""
    return pairs[~np.isin(pairs[:, 1], others[:, 1])] if len(pairs) else pairs
