"""COCO annotation files: read and checked once, held compactly, and the folder layouts in which they come."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from sotr.data.images import is_file
from sotr.data.index import Texts, read_index
from sotr.data.layouts import locate_data
from sotr.data.names import find_names
from sotr.data.parse import Flaw
from sotr.errors import SOTRError


@dataclass(frozen=True)
class Record:
    """One image of a data set and its I annotations, crowds included, in the file's order."""

    image_id: int
    path: Path
    height: int
    width: int
    labels_I: NDArray[np.int64]
    """Contiguous class indices."""
    segmentations: list[dict[str, Any]]
    """COCO compressed RLE, whatever form the file had: {"size": [H, W], "counts": str}."""
    iscrowd_I: NDArray[np.bool_]
    annotation_ids_I: NDArray[np.int64]
    areas_I: NDArray[np.float64]
    """The file's "area", or the mask's pixels where it states none."""
    boxes_I4: NDArray[np.int64]
    """Tight around the mask, xyxy in pixels, half-open; zeros for a mask without pixels."""


@dataclass(frozen=True)
class CocoDataset:
    """The images and annotations of one COCO file; `load_coco` makes it. Annotations are grouped by image."""

    json_path: Path
    images_dir: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    """The file's ids in ascending order; the contiguous label of a class is its position here."""
    image_ids: NDArray[np.int64]
    file_names: Sequence[str]
    sizes_N2: NDArray[np.int64]
    """Height, width."""
    offsets: NDArray[np.int64]
    """Image i owns annotations `offsets[i]:offsets[i + 1]`."""
    labels: NDArray[np.int64]
    iscrowd: NDArray[np.bool_]
    annotation_ids: NDArray[np.int64]
    areas: NDArray[np.float64]
    boxes: NDArray[np.int64]
    polygons: NDArray[np.bool_]
    """Whether the file has the mask as polygons, not as RLE."""
    outside: NDArray[np.bool_]
    """Whether polygons leave the image by more than a pixel; what is outside is cut off."""
    rle_text: NDArray[np.uint8]
    """All masks' compressed RLE strings, joined."""
    rle_offsets: NDArray[np.int64]
    mended: Mapping[int, str] = field(default_factory=dict)
    """Images whose file was found under another name than the JSON's: position -> name in the JSON."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def median_size(self) -> tuple[int, int]:
        """Median height and median width of the images, of which there is at least one."""
        height, width = np.median(self.sizes_N2, axis=0)
        return int(height), int(width)

    @property
    def skipped(self) -> tuple[int, ...]:
        """Ids of annotations, crowds aside, whose mask has no pixels: training leaves them out."""
        return tuple(self.annotation_ids[(self.boxes[:, 2] == 0) & ~self.iscrowd].tolist())

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.images_dir / self.file_names[index]

    def strings(self, annotations: Iterable[int]) -> list[bytes]:
        """Compressed RLE strings of annotations, given by position in the flat arrays."""
        return [self.rle_text[self.rle_offsets[a] : self.rle_offsets[a + 1]].tobytes() for a in annotations]

    def record(self, index: int) -> Record:
        """Image `index` with its annotations."""
        own = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        height, width = map(int, self.sizes_N2[index])
        return Record(
            image_id=int(self.image_ids[index]),
            path=self.path(index),
            height=height,
            width=width,
            labels_I=self.labels[own],
            segmentations=[
                {"size": [height, width], "counts": text.decode("ascii")}
                for text in self.strings(range(own.start, own.stop))
            ],
            iscrowd_I=self.iscrowd[own],
            annotation_ids_I=self.annotation_ids[own],
            areas_I=self.areas[own],
            boxes_I4=self.boxes[own],
        )

    def masks(self, record: Record) -> NDArray[np.bool_]:
        """Dense masks of a record, I x H x W."""
        if not record.segmentations:
            return np.zeros((0, record.height, record.width), np.bool_)
        decoded = coco_mask.decode(record.segmentations)
        return np.ascontiguousarray(decoded.transpose(2, 0, 1)).view(np.bool_)

    def truth(self, places: Sequence[int] | None = None) -> dict[str, Any]:
        """The data set, or its images at some places, as a COCO dictionary for evaluation: original category ids, RLE
        masks, the file's areas and crowds. COCO's tools take annotation id 0 for "no match", so if it occurs
        annotations are numbered anew from 1.
        """
        places = range(len(self)) if places is None else places
        ids = self.annotation_ids if self.annotation_ids.min(initial=1) > 0 else np.arange(1, len(self.labels) + 1)
        annotations = []
        for index in places:
            image_id, record = int(self.image_ids[index]), self.record(index)
            first = int(self.offsets[index])
            for i, segmentation in enumerate(record.segmentations):
                left, top, right, bottom = map(float, record.boxes_I4[i])
                annotations.append(
                    {
                        "id": int(ids[first + i]),
                        "image_id": image_id,
                        "category_id": self.category_ids[record.labels_I[i]],
                        "segmentation": segmentation,
                        "area": float(record.areas_I[i]),
                        "bbox": [left, top, right - left, bottom - top],
                        "iscrowd": int(record.iscrowd_I[i]),
                    }
                )
        return {
            "info": {},
            "images": [
                {
                    "id": int(self.image_ids[index]),
                    "file_name": self.file_names[index],
                    "height": int(self.sizes_N2[index, 0]),
                    "width": int(self.sizes_N2[index, 1]),
                }
                for index in places
            ],
            "annotations": annotations,
            "categories": [
                {"id": category_id, "name": name}
                for category_id, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }


class Splits(NamedTuple):
    """The data sets that a folder holds; None where there is none."""

    train: CocoDataset | None
    val: CocoDataset | None


def load_coco(json_path: str | Path, images_dir: str | Path, unlabeled: bool = False) -> CocoDataset:
    """Read a COCO instance annotation file and check all of it, so that nothing fails in the middle of a training.

    Polygons (of several parts), uncompressed and compressed RLE are understood. Images without annotations are kept.
    The images themselves are looked for, but not opened. What was read of a large file is kept in the user's cache
    folder (`sotr.data.cache`), from where the next call maps it into memory.

    Args:
        json_path: the annotation file.
        images_dir: the folder that its file names are relative to.
        unlabeled: the file may lack the list of annotations, as those of test images do.

    Raises:
        SOTRError: for malformed JSON, missing or ill-typed entries, duplicate ids or file names, a missing image,
            an annotation of an unknown image or category or without a mask, a polygon with fewer than 3 points or
            with coordinates that are not numbers, and an RLE that is broken or not of its image's size.
    """
    data = read_coco(json_path, images_dir, unlabeled=unlabeled)
    for index, name in enumerate(data.file_names):
        if not is_file(data.path(index)):
            raise SOTRError(
                f"{data.json_path}: image {data.image_ids[index]}: {data.images_dir / name} is missing; "
                "add the file or drop the image from the JSON"
            )
    return data


def read_coco(
    json_path: str | Path, images_dir: str | Path, flaws: list[Flaw] | None = None, unlabeled: bool = False
) -> CocoDataset:
    """`load_coco` without looking for the images; with `flaws` what is wrong is appended there, and left out here."""
    json_path, images_dir = Path(json_path), Path(images_dir)
    fields = read_index(json_path, flaws, unlabeled)
    names = fields["file_names"]
    found = find_names(names, images_dir)
    if found:
        fields["file_names"] = Texts.of(found.get(i, name) for i, name in enumerate(names))
    return CocoDataset(json_path, images_dir, **fields, mended={i: names[i] for i in found})


def find_data(
    folder: str | Path,
    *,
    train_json: str | Path | None = None,
    val_json: str | Path | None = None,
    images: str | Path | None = None,
    only: Literal["train", "val"] | None = None,
    unlabeled: bool = False,
) -> Splits:
    """Find and load the data set in `folder`: its train and val splits, or the one that is asked for.

    Layouts are those of `sotr.data.layouts`. Either split may be absent.

    Args:
        folder: the data set.
        train_json, val_json: annotation files to use instead of looking; relative to the current folder or to `folder`.
        images: folder of the images, instead of looking; the same for both splits.
        only: load this split alone.
        unlabeled: the file may lack the list of annotations.

    Raises:
        SOTRError: if nothing is found, if the two splits' categories differ, or for whatever `load_coco` finds.
    """
    found = locate_data(folder, train_json=train_json, val_json=val_json, images=images)
    if only is not None and only not in found:
        there = ", ".join(str(path) for path, _ in found.values())
        raise SOTRError(f"{folder}: has no {only} split, only {there}; name one with --{only}-json")
    loaded = {split: load_coco(*paths, unlabeled) for split, paths in found.items() if only is None or split == only}
    train, val = loaded.get("train"), loaded.get("val")
    if train and val and (difference := category_difference(train, val)):
        raise SOTRError(difference)
    return Splits(train, val)


def category_difference(train: CocoDataset, val: CocoDataset) -> str | None:
    """One line on what the categories of two splits differ in, or None."""
    ours, theirs = (dict(zip(data.category_ids, data.class_names, strict=True)) for data in (train, val))
    different = sorted(set(ours.items()) ^ set(theirs.items()))
    if not different:
        return None
    return (
        f"{train.json_path} and {val.json_path} have different categories ({different[0][0]}: "
        f"{different[0][1]!r} is not in both); make the two lists equal"
    )
