"""`sotr data show`: some images of a data set with their truth, on one sheet."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from sotr.data.coco import CocoDataset, find_data
from sotr.data.images import load_image
from sotr.errors import SOTRError
from sotr.files import atomic_write
from sotr.progress import progress_bar
from sotr.results.instances import Instances

BACKGROUND, INK = (250, 250, 250), (20, 20, 20)
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}


def show_data(
    data: str,
    out: str = "contact_sheet.jpg",
    count: int = 24,
    columns: int = 6,
    tile: int = 360,
    split: str = "train",
    seed: int | None = None,
    train_json: str | None = None,
    val_json: str | None = None,
    images: str | None = None,
    quiet: bool = False,
) -> Path:
    """Draw images of a data set with their labeled objects on one contact sheet.

    Args:
        data: Folder of the data set, in any of the layouts that `sotr train` takes.
        out: PNG or JPEG file to write.
        count: Images on the sheet, evenly spread over the split.
        columns: Images side by side.
        tile: Longest edge of an image on the sheet, in pixels.
        split: train or val; train_json or val_json names its file, if `data` has another layout.
        seed: Take images at random, by this number, instead of evenly spread ones.
        train_json: Annotation file of the training images.
        val_json: Annotation file of the validation images.
        images: Folder of the images, if `data` has another layout.
        quiet: Print nothing but errors.

    Returns:
        The file.

    Raises:
        SOTRError: the data cannot be used, or a setting is out of range.
    """
    path = Path(out)
    if path.suffix.lower() not in FORMATS:
        raise SOTRError(f"{out}: give a file that ends in {', '.join(FORMATS)}")
    for name, value, least in (("count", count, 1), ("columns", columns, 1), ("tile", tile, 64)):
        if value < least:
            raise SOTRError(f"{name} is {value}; it must be at least {least}")
    if split not in ("train", "val"):
        raise SOTRError(f"there is no split {split!r}; choose train or val")
    found = find_data(
        data, train_json=train_json, val_json=val_json, images=images, only="val" if split == "val" else "train"
    )
    dataset = found.val if split == "val" else found.train
    assert dataset is not None  # find_data has said so otherwise
    count = min(count, len(dataset))
    if seed is None:
        chosen = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)).tolist()
    else:
        chosen = sorted(np.random.default_rng(seed).choice(len(dataset), count, replace=False).tolist())
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
    tiles = []
    with progress_bar("drawing", len(chosen), console) as advance:
        for index in chosen:
            tiles.append((_title(dataset, index), draw_truth(dataset, index, tile)))
            advance(1)
    sheet = contact_sheet(tiles, min(columns, len(tiles)), tile)
    with atomic_write(path) as file:
        Image.fromarray(sheet).save(file, format=FORMATS[path.suffix.lower()], quality=88)
    console.print(f"{len(tiles)} of {len(dataset)} {split} images are on {path}", soft_wrap=True)
    return path


def _title(data: CocoDataset, index: int) -> str:
    own = slice(int(data.offsets[index]), int(data.offsets[index + 1]))
    objects, crowds = int((~data.iscrowd[own]).sum()), int(data.iscrowd[own].sum())
    extra = f", {crowds} crowd{'s' if crowds > 1 else ''}" if crowds else ""
    return f"{Path(data.file_names[index]).name} · {objects} object{'' if objects == 1 else 's'}{extra}"


def draw_truth(data: CocoDataset, index: int, longest: int) -> NDArray[np.uint8]:
    """Image `index` with its objects drawn on it, crowds aside, its longest edge at `longest` pixels; RGB.

    Raises:
        SOTRError: the image cannot be read, or has another size than recorded.
    """
    record = data.record(index)
    image_HW3 = load_image(record.path)
    if image_HW3.shape[:2] != (record.height, record.width):
        raise SOTRError(
            f"{record.path}: is {image_HW3.shape[1]} x {image_HW3.shape[0]} pixels, but recorded as "
            f"{record.width} x {record.height}; see sotr data check"
        )
    kept = np.flatnonzero(~record.iscrowd_I)
    rles = [record.segmentations[i] for i in kept]
    # Drawn at the size it is shown in, so that outlines and labels keep theirs.
    ratio = longest / max(image_HW3.shape[:2])
    if ratio < 1:
        height, width = (max(1, round(side * ratio)) for side in image_HW3.shape[:2])
        small = [  # one at a time: hundreds of whole masks of a large image would take gigabytes
            cv2.resize(coco_mask.decode(rle), (width, height), interpolation=cv2.INTER_NEAREST_EXACT) for rle in rles
        ]
        shrunk = np.asarray(cv2.resize(image_HW3, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        stacked = np.stack(small).astype(np.bool_) if small else np.zeros((0, height, width), np.bool_)
        truth = Instances.from_masks(
            np.ones(len(kept)), record.labels_I[kept], stacked, data.class_names, data.category_ids
        )
        return truth.draw(shrunk, scale=1)
    truth = Instances.from_rles(
        np.ones(len(kept)),
        record.labels_I[kept],
        rles,
        data.class_names,
        data.category_ids,
        (record.height, record.width),
    )
    drawn = truth.draw(image_HW3, scale=max(1, int(ratio)))
    ratio = longest / max(drawn.shape[:2])
    size = (max(1, round(drawn.shape[1] * ratio)), max(1, round(drawn.shape[0] * ratio)))
    return np.asarray(cv2.resize(drawn, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def contact_sheet(tiles: Sequence[tuple[str, NDArray[np.uint8]]], columns: int, tile: int) -> NDArray[np.uint8]:
    """Images (RGB, no edge longer than `tile`) in rows, each over its title; RGB."""
    gap, font = 12, ImageFont.load_default(15)
    bar = 26
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    heights = [max(picture.shape[0] for _, picture in row) + bar + gap for row in rows]
    sheet = Image.new("RGB", (columns * (tile + gap) + gap, sum(heights) + gap), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, (title, picture) in enumerate(row):
            left = gap + column * (tile + gap)
            pen.text((left, top + bar / 2), _shortened(title, font, tile), INK, font, anchor="lm")
            sheet.paste(Image.fromarray(picture), (left, top + bar))
        top += height
    return np.asarray(sheet)


def _shortened(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The title with its middle left out as far as it is too long: names differ at their ends."""
    if font.getlength(title) <= width:
        return title
    for kept in range(len(title) - 1, 1, -1):
        short = f"{title[: kept // 3]}...{title[len(title) - (kept - kept // 3) :]}"
        if font.getlength(short) <= width:
            return short
    return title[:1]
