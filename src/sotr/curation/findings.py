"""What a careful look at a data set may find, and how bad it is."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of finding."""

    harmful: bool
    """Training stops at once; otherwise it says how many there are and goes on."""
    title: str
    """What there are so many of, for tables and counts."""
    remedy: str


KINDS = {
    "file": Kind(True, "annotation files that cannot be read", "export them again"),
    "categories": Kind(True, "splits with different categories", "give both splits the same list of categories"),
    "category": Kind(True, "damaged categories", "give each an id of its own and a name"),
    "entry": Kind(True, "entries with missing or ill-typed values", "correct them, or use --fix"),
    "missing": Kind(True, "images that are not there", "add the files, or drop the entries with --fix"),
    "unreadable": Kind(True, "images that cannot be decoded", "replace the files, or drop the entries with --fix"),
    "size": Kind(True, "images of another size than recorded", "correct width, height and masks, or use --fix"),
    "duplicate image": Kind(True, "images listed twice", "list each once, or use --fix"),
    "duplicate id": Kind(True, "annotation ids that occur twice", "give each an id of its own, or use --fix"),
    "unknown image": Kind(True, "annotations of images that are not listed", "add the images, or use --fix"),
    "unknown category": Kind(True, "annotations of categories that are not listed", "add them, or use --fix"),
    "no mask": Kind(True, "annotations without a mask", "add polygons or an RLE, or drop them with --fix"),
    "polygon": Kind(True, "broken polygons", "correct them, or use --fix"),
    "rle": Kind(True, "broken run-length encodings", "encode the masks again, or drop them with --fix"),
    "far outside": Kind(True, "polygons far outside of their image", "correct them, or use --fix"),
    "iscrowd": Kind(True, "iscrowd that is neither 0 nor 1", "correct it, or use --fix"),
    "no images": Kind(True, "splits without an image that can be used", "correct the entries of the images"),
    "no objects": Kind(True, "splits without an object to learn", "label objects; crowds are not learnt"),
    "file name": Kind(False, "images found by a part of their names", "write the names of the files with --fix"),
    "empty mask": Kind(False, "annotations that cover no pixel, which are not trained on", "drop them with --fix"),
    "outside": Kind(False, "polygons that leave their image and are cut off", "cut them with --fix"),
    "area": Kind(False, "areas that are not the mask's", "recompute them with --fix"),
    "duplicate object": Kind(False, "objects labeled twice", "keep one of them, or use --fix"),
    "crowd polygon": Kind(False, "crowds given as polygons", "set iscrowd to 0 if it is one object"),
    "mostly crowds": Kind(False, "classes of which crowds are the most", "set iscrowd to 0: crowds are not learnt"),
    "empty image": Kind(False, "images without objects", "fine if there is nothing to see; else label them"),
    "identical images": Kind(False, "images that are copies of others", "keep one of each, or use --fix"),
    "similar images": Kind(False, "images that look like others", "keep one of each if they are copies"),
    "shared between splits": Kind(
        False, "validation images that are in training, too", "AP will be too good; drop them with --fix"
    ),
    "similar across splits": Kind(
        False, "validation images that look like training ones", "AP may be too good; drop one of each if copies"
    ),
    "unlearnt class": Kind(False, "classes without an object to learn", "label some, or drop the class"),
    "no level": Kind(False, "objects whose size no level learns", "choose another image size or scale_ranges"),
    "no cell": Kind(False, "objects whose cells all go to smaller ones", "choose finer grids or a larger image size"),
}
"""Kinds by name, harmful ones first."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    kind: str
    """A key of `KINDS`."""
    message: str
    """One line that names the thing and the remedy."""
    split: str
    """train or val."""
    file: str | None = None
    """The image, relative to its folder."""
    image_id: int | None = None
    annotation_id: int | None = None

    @property
    def harmful(self) -> bool:
        return KINDS[self.kind].harmful

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kind": self.kind,
            "severity": "harmful" if self.harmful else "harmless",
            "split": self.split,
            "file": self.file,
            "image_id": self.image_id,
            "annotation_id": self.annotation_id,
            "message": self.message,
        }


def by_kind(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Findings grouped, in the order of `KINDS`."""
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.kind].append(finding)
    return {kind: groups[kind] for kind in KINDS if kind in groups}


def counted(kind: str, findings: Sequence[Finding], most: int = 3) -> str:
    """One line on all findings of a kind, with some of them by name."""
    names = [_name(finding) for finding in findings[:most]] + (["..."] if len(findings) > most else [])
    splits = "/".join(sorted({finding.split for finding in findings}))
    return f"{KINDS[kind].title}: {len(findings):,} ({splits}: {', '.join(names)}); {KINDS[kind].remedy}"


def _name(finding: Finding) -> str:
    words = [] if finding.file is None else [finding.file]
    if finding.annotation_id is not None:
        words.append(f"annotation {finding.annotation_id}")
    return " ".join(words) or finding.message.partition(";")[0]
