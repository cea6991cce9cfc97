"""Where a folder's COCO files and images lie, as the tools that write them arrange them.

| written by | annotations | images |
|---|---|---|
| COCO, LVIS, CVAT | annotations/instances_SPLIT*.json or lvis_v1_SPLIT.json | SPLIT*/, images/SPLIT*/ or images/ |
| COCO, test images | annotations/image_info_test*.json | test*/, images/test*/ or images/ |
| Roboflow | SPLIT/_annotations.coco.json, or one such file | beside it |
| SOTR | train.json, val.json, test.json | images/, or beside them |
| FiftyOne | SPLIT/labels.json, or labels.json | data/ |
| Label Studio and others | result.json, annotations.json, or the only COCO file | images/, or beside it |

SPLIT is train, or val, valid, validation or test; test stands for val where there is no val. A file of no split, such
as CVAT's instances_default.json, is taken to train on. File names of another computer: `sotr.data.names`.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from sotr.data.stream import read_lists
from sotr.errors import SOTRError

Located = dict[str, tuple[Path, Path]]
"""Split (train, val) -> annotation file and folder of the images."""

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "val"}
"""Names of folders and files -> the split they are."""

_LONE = ("_annotations.coco.json", "labels.json", "result.json", "annotations.json", "instances.json", "coco.json")
_NAMED = re.compile(r"(?:instances|image_info|lvis_v\d)_(.+)", re.IGNORECASE)


def locate_data(
    folder: str | Path,
    *,
    train_json: str | Path | None = None,
    val_json: str | Path | None = None,
    images: str | Path | None = None,
) -> Located:
    """Split (train, val) -> annotation file and folder of the images; all but a lone file of an odd name is unread.

    Args:
        folder: the data set.
        train_json, val_json: annotation files to use instead of looking; relative to the current folder or to `folder`.
        images: folder of the images, instead of looking; the same for both splits.

    Raises:
        SOTRError: nothing is found.
    """
    folder = Path(folder)
    if folder.suffix in (".yaml", ".yml") and folder.is_file():
        folder = folder.parent  # as Ultralytics names data sets
    if not folder.is_dir():
        raise SOTRError(f"{folder}: no such folder; give the folder of a COCO data set")
    if images is not None:
        images = _given(images, folder, "--images")
        if not images.is_dir():
            raise SOTRError(f"{images}: is not a folder; give the folder of the images with --images")
    found: Located = {}
    if train_json is None and val_json is None and not (found := find_layout(folder)):
        if (other := other_format(folder)) is not None:
            made = f"{folder.resolve().name}-coco"
            command = shlex.join(["sotr", "data", "convert", str(folder), made])
            raise SOTRError(f"{folder}: this is {other}, not COCO; convert it with {command}, then name {made} instead")
        raise SOTRError(
            f"{folder}: holds no data set; looked for annotations/instances_train*.json or instances_val*.json, "
            "train/_annotations.coco.json, train.json or val.json, and a lone result.json, labels.json or "
            "annotations.json; or name files with --train-json, --val-json; sotr data convert reads other formats"
        )
    for split, name in {"train": train_json, "val": val_json}.items():
        if name is not None:
            path = _given(name, folder, f"--{split}-json")
            near = folder if path.parent.name == "annotations" else path.parent
            found[split] = (path, folder / "images" if (folder / "images").is_dir() else near)
    return {split: (path, images or beside) for split, (path, beside) in found.items()}


def find_layout(folder: Path) -> Located:
    """The annotation files and folders of images in a folder; empty where there is no known layout."""
    for layout in (_coco, _split_folders, _plain, _lone):
        if found := layout(folder):
            return found
    return {}


def other_format(folder: Path) -> str | None:
    """What a folder without COCO files looks like: "YOLO", "Pascal VOC" or "labelme"; None if like none of them."""
    names = {path.name.lower() for path in folder.iterdir()}
    splits = [folder, *(folder / name for name in SPLITS)]
    named = any(re.search(rb"^names\s*:", path.read_bytes(), re.M) for path in folder.glob("*.y*ml") if path.is_file())
    if named or any(next((s / "labels").rglob("*.txt"), None) for s in splits):
        return "YOLO"
    if {"annotations", "jpegimages"} <= names or "segmentationobject" in names:
        return "Pascal VOC"
    for path in sorted(folder.glob("*.json"))[:1]:
        with path.open("rb") as file:
            return "labelme" if b'"shapes"' in file.read(2**16) else None
    return None


def locate_test(folder: Path) -> tuple[Path, Path]:
    """The annotation file, or list, of a folder's test images, and their folder.

    Raises:
        SOTRError: there is none, or several.
    """
    places = [folder / "test.json", *(folder / "test" / name for name in ("_annotations.coco.json", "labels.json"))]
    named = (path for path in sorted(folder.glob("annotations/*.json")) if _NAMED.fullmatch(path.stem))
    places += [path for path in named if path.stem.partition("_test")[1]]
    found = [path for path in places if path.is_file()]
    if len(found) != 1:
        there = f"several test splits, {', '.join(path.name for path in found)}" if found else "no test split"
        raise SOTRError(f"{folder}: has {there}; name the file with --val-json and --split val")
    (path,) = found
    if path.parent.name == "test":
        return path, _images(path.parent)
    name = path.stem.partition("_")[2].removeprefix("info_")
    return path, _images(folder, name, name.replace("-dev", ""), "test")  # test-dev is a part of test


def _given(path: str | Path, folder: Path, flag: str) -> Path:
    for candidate in (Path(path), folder / path):
        if candidate.exists():
            return candidate
    raise SOTRError(f"{path}: no such file or folder, neither here nor in {folder}; check {flag}")


def _coco(folder: Path) -> Located:
    """annotations/instances_SPLIT.json, and LVIS's files there or beside the images."""
    named: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted({*folder.glob("annotations/*.json"), *folder.glob("lvis_v*.json")}):
        if (match := _NAMED.fullmatch(path.stem)) and not path.stem.startswith("image_info"):
            word = match[1].lower()
            kind = next((k for k in ("train", "val", "test") if word.startswith(k)), "default")
            named.setdefault(kind, []).append((match[1], path))
    if not {"train", "val"} & set(named) and "default" in named:
        named["train"] = named.pop("default")
    if "val" not in named and "test" in named:
        named["val"] = named["test"]
    found: Located = {}
    for split in ("train", "val"):
        files = named.get(split, [])
        if len(files) > 1:
            raise SOTRError(
                f"{folder}: {' and '.join(path.name for _, path in files)} are all there; "
                f"choose one with --{split}-json"
            )
        for name, path in files:
            found[split] = (path, _images(folder, name, split))
    return found


def _images(folder: Path, *names: str) -> Path:
    """The folder of a split's images."""
    candidates = [base / name for name in names for base in (folder, folder / "images")]
    candidates += [folder / "images", folder / "data"]
    return next((candidate for candidate in candidates if candidate.is_dir()), folder)


def _split_folders(folder: Path) -> Located:
    """SPLIT/_annotations.coco.json (Roboflow) or SPLIT/labels.json (FiftyOne)."""
    found: Located = {}
    for name, split in SPLITS.items():
        for file in ("_annotations.coco.json", "labels.json"):
            path = folder / name / file
            if split not in found and path.is_file():
                found[split] = (path, _images(path.parent))
    return found


def _plain(folder: Path) -> Located:
    return {s: (folder / f"{s}.json", _images(folder)) for s in ("train", "val") if (folder / f"{s}.json").is_file()}


def _lone(folder: Path) -> Located:
    """One file for all; of several, none whose name is not known is chosen."""
    for place in (folder, folder / "annotations"):
        for name in _LONE:
            if is_coco(place / name):
                return {"train": (place / name, _images(folder, "default"))}
    files = [path for place in (folder, folder / "annotations") for path in sorted(place.glob("*.json"))[:20]]
    known = [path for path in files if is_coco(path)]
    return {"train": (known[0], _images(folder, "default"))} if len(known) == 1 else {}


def is_coco(path: Path) -> bool:
    """Whether a JSON file lists images, annotations and categories as COCO does; read as far as the first image."""
    if not path.is_file():
        return False
    try:
        return next(_entries(path), None) is not None
    except SOTRError:
        return False


def _entries(path: Path) -> Iterator[object]:
    for key, entry in read_lists(path, ("images", "annotations", "categories")):
        if key == "images" and isinstance(entry, dict) and {"file_name", "coco_url"} & set(entry):
            yield entry
