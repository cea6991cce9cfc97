"""One scene of four objects, as every tool writes it."""

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from sotr.curation.formats.label_images import voc_colors
from sotr.masks.polygons import polygons

HEIGHT, WIDTH = 48, 64
CLASSES = ("wheel", "door", "axle")
"""The order that the data set gives; axle does not occur."""


def scene() -> tuple[np.ndarray, list[str]]:
    """Masks without holes, of one part each, and their classes."""
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(numbers, (16, 14), (11, 7), 20, 0, 360, 1, -1)
    cv2.rectangle(numbers, (34, 4), (58, 20), 2, -1)
    cv2.ellipse(numbers, (20, 36), (9, 9), 0, 0, 360, 3, -1)
    numbers[30:44, 40:60] = 4
    return np.stack([numbers == i for i in range(1, 5)]), ["door", "wheel", "door", "wheel"]


MASKS, NAMES = scene()
NUMBERS = (MASKS * np.arange(1, 5)[:, None, None]).sum(0).astype(np.uint8)
CLASS_NUMBERS = (MASKS * np.array([CLASSES.index(name) + 1 for name in NAMES])[:, None, None]).sum(0).astype(np.uint8)
OUTLINES = [polygons(mask)[0] for mask in MASKS]


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(NUMBERS[..., None] * 50, 3, 2)).save(path)
    return path


def text(path: Path, content: Any, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode(encoding))
    return path


def label_image(path: Path, values: np.ndarray, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values, "P" if palette else None)
    if palette:
        colors = voc_colors()
        picture.putpalette([int(v) for c in colors for v in (c // 65536, c // 256 % 256, c % 256)])
    picture.save(path)
    return path


def as_color(numbers: np.ndarray, colors: np.ndarray) -> np.ndarray:
    own = colors[numbers]
    return np.stack([own // 65536, own // 256 % 256, own % 256], -1).astype(np.uint8)


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """left, top, right, bottom; the last two are the last column and row."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def yolo_lines(points: bool = False) -> str:
    shares = [outline / (WIDTH, HEIGHT) for outline in OUTLINES]
    return "\n".join(
        f"{CLASSES.index(name)} " + " ".join(f"{value:.9f}" for value in share.ravel())
        for name, share in zip(NAMES, shares, strict=True)
    )


def yolo(folder: Path, images: str, labels: str, settings: str | None, extra: dict[str, str] | None = None) -> None:
    image(folder / images)
    text(folder / labels, yolo_lines())
    if settings is not None:
        text(folder / "data.yaml", settings)
    for name, content in (extra or {}).items():
        text(folder / name, content)


def shapes() -> list[dict[str, Any]]:
    return [
        {"label": name, "points": outline.tolist(), "shape_type": "polygon", "group_id": None}
        for name, outline in zip(NAMES, OUTLINES, strict=True)
    ]


def labelme(folder: Path, own: list[dict[str, Any]] | None = None, file: str = "a.json", **changes: Any) -> None:
    content = {
        "shapes": shapes() if own is None else own,
        "imagePath": "a.png",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    text(folder / file, content | changes)


def labelme_masks(shift: float) -> list[dict[str, Any]]:
    found = []
    for name, mask in zip(NAMES, MASKS, strict=True):
        x0, y0, x1, y1 = box(mask)
        encoded = base64.b64encode(png(mask[y0 : y1 + 1, x0 : x1 + 1])).decode()
        points = [[x0 + shift, y0 + shift], [x1 + shift, y1 + shift]]
        found.append({"label": name, "points": points, "shape_type": "mask", "mask": encoded})
    return found


def cvat(folder: Path, kind: str, name: str = "a.png", file: str = "annotations.xml") -> None:
    entries = []
    for label, mask, outline in zip(NAMES, MASKS, OUTLINES, strict=True):
        if kind == "polygon":
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in outline)
            entries.append(f'<polygon label="{label}" source="manual" occluded="0" points="{points}" z_order="0"/>')
        else:
            x0, y0, x1, y1 = box(mask)
            part = mask[y0 : y1 + 1, x0 : x1 + 1].ravel().astype(int)
            ends = np.flatnonzero(np.diff(np.concatenate(([0], part, [1 - part[-1]]))))
            counts = np.diff(np.concatenate(([0], ends))).tolist()
            entries.append(
                f'<mask label="{label}" rle="{", ".join(map(str, counts))}" left="{x0}" top="{y0}" '
                f'width="{x1 - x0 + 1}" height="{y1 - y0 + 1}"/>'
            )
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    text(
        folder / file,
        '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>'
        f"<meta><task><labels>{labels}</labels>"
        f'</task></meta><image id="0" name="{name}" width="{WIDTH}" height="{HEIGHT}">{"".join(entries)}</image>'
        "</annotations>",
    )


def packed(mask: np.ndarray) -> list[int]:
    """A mask as Label Studio's brush has it: all four channels of each pixel, in pieces of up to 2 to the power 15."""
    values = np.repeat(mask.ravel().astype(int) * 255, 4)
    sizes = (3, 5, 8, 15)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        for at in range(start, end, 2**15):
            count = min(end - at, 2**15)
            which = next(i for i, size in enumerate(sizes) if count <= 2**size)
            if count == 8:  # such a piece is written value by value, which the format allows
                bits += f"0{which:02b}{count - 1:0{sizes[which]}b}" + f"{values[at]:08b}" * count
            else:
                bits += f"1{which:02b}{count - 1:0{sizes[which]}b}{values[at]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def label_studio(folder: Path, kind: str, short: bool = False, address: str = "/data/upload/1/0123abcd-a.png") -> None:
    regions = []
    for name, mask, outline in zip(NAMES, MASKS, OUTLINES, strict=True):
        value: dict[str, Any] = (
            {"points": (outline * [100 / WIDTH, 100 / HEIGHT]).tolist(), "closed": True, "polygonlabels": [name]}
            if kind == "polygon"
            else {"format": "rle", "rle": packed(mask), "brushlabels": [name]}
        )
        size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        regions.append({**value, **size} if short else {"value": value, **size, "type": f"{kind}labels"})
    task = (
        {"id": 1, "image": address, "label": regions}
        if short
        else {"id": 1, "data": {"image": address}, "annotations": [{"result": regions, "was_cancelled": False}]}
    )
    text(folder / "export.json", [task])


def via(folder: Path, project: bool) -> None:
    regions = [
        {
            "shape_attributes": {
                "name": "polygon",
                "all_points_x": outline[:, 0].tolist(),
                "all_points_y": outline[:, 1].tolist(),
            },
            "region_attributes": {"class": name},
        }
        for name, outline in zip(NAMES, OUTLINES, strict=True)
    ]
    entries = {"a.png123": {"filename": "a.png", "size": 123, "regions": regions, "file_attributes": {}}}
    text(folder / "via.json", {"_via_img_metadata": entries, "_via_settings": {}} if project else entries)


def supervisely(folder: Path, kind: str) -> None:
    objects = []
    for name, mask, outline in zip(NAMES, MASKS, OUTLINES, strict=True):
        x0, y0, x1, y1 = box(mask)
        bitmap = base64.b64encode(zlib.compress(png(mask[y0 : y1 + 1, x0 : x1 + 1]))).decode()
        objects.append(
            {"classTitle": name, "geometryType": "polygon", "points": {"exterior": outline.tolist(), "interior": []}}
            if kind == "polygon"
            else {"classTitle": name, "geometryType": "bitmap", "bitmap": {"data": bitmap, "origin": [x0, y0]}}
        )
    text(folder / "ds/ann/a.png.json", {"size": {"height": HEIGHT, "width": WIDTH}, "objects": objects})
    text(folder / "meta.json", {"classes": [{"title": name} for name in CLASSES]})


def coco(folder: Path, file: str, name: str) -> None:
    text(
        folder / file,
        {
            "images": [{"id": 0, "file_name": name, "height": HEIGHT, "width": WIDTH}],
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
            "annotations": [
                {
                    "id": i,
                    "image_id": 0,
                    "category_id": str(CLASSES.index(name)),
                    "segmentation": outline.ravel().tolist(),
                }
                for i, (name, outline) in enumerate(zip(NAMES, OUTLINES, strict=True))
            ],
        },
    )


def voc(folder: Path, objects: np.ndarray, classes: np.ndarray, palette: bool, names: dict[str, str]) -> None:
    image(folder / "JPEGImages/a.jpg")
    label_image(folder / "SegmentationObject/a.png", objects, palette)
    label_image(folder / "SegmentationClass/a.png", classes, palette)
    for name, content in names.items():
        text(folder / name, content)


LABEL_MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\n" + "".join(
    f"{name}:{50 + 9 * i},{i},{200 - i}::\n" for i, name in enumerate(CLASSES)
)
MAP_COLORS = np.array([0, *((50 + 9 * i) * 65536 + i * 256 + 200 - i for i in range(3))])
CLASS_FILE = {"class_names.txt": "_background_\n" + "\n".join(CLASSES)}
YAML = f"names: [{', '.join(CLASSES)}]\n"

Write = Callable[[Path], Any]
WHOLE: dict[str, Write] = {
    "yolo": lambda f: yolo(f, "images/train/a.png", "labels/train/a.txt", YAML + "train: images/train"),
    "yolo, folders in folders": lambda f: yolo(
        f, "images/train/cam/1/a.png", "labels/train/cam/1/a.txt", YAML + "train: images/train"
    ),
    "yolo of another computer": lambda f: yolo(
        f, "images/train/a.png", "labels/train/a.txt", YAML + "path: /content/ds\ntrain: /content/ds/images/train"
    ),
    "yolo of Windows": lambda f: yolo(
        f, "images/train/a.png", "labels/train/a.txt", YAML + "path: D:\\ds\ntrain: D:\\ds\\images\\train"
    ),
    "yolo of CVAT": lambda f: yolo(
        f,
        "images/train/a.png",
        "labels/train/a.txt",
        YAML + "path: .\ntrain: train.txt",
        {"train.txt": "\ufeffdata/images/train/a.png  \n\n"},
    ),
    "yolo of Label Studio": lambda f: yolo(
        f, "images/a.png", "labels/a.txt", None, {"classes.txt": "\n".join(CLASSES), "notes.json": '{"categories": []}'}
    ),
    "yolo without YAML, split": lambda f: yolo(
        f, "train/images/a.png", "train/labels/a.txt", None, {"classes.txt": "\n".join(CLASSES)}
    ),
    "yolo of supervision": lambda f: yolo(f, "images/a.png", "labels/a.txt", YAML + "nc: 3"),
    "labelme": lambda f: (image(f / "a.png"), labelme(f)),
    "labelme, UTF-16": lambda f: (
        image(f / "a.png"),
        labelme(f),
        text(f / "a.json", (f / "a.json").read_text(), "utf-16"),
    ),
    "labelme of another computer": lambda f: (image(f / "a.png"), labelme(f, imagePath="D:\\data\\a.png")),
    "labelme, image renamed": lambda f: (image(f / "a.png"), labelme(f, imagePath="../old name.png")),
    "labelme, image inside": lambda f: labelme(
        f, imageData=base64.b64encode(png(np.zeros((HEIGHT, WIDTH), np.uint8))).decode()
    ),
    "labelme, nested, other JSON": lambda f: (
        image(f / "cam/a.png"),
        labelme(f / "cam"),
        text(f / "_annotations.coco.json", {"images": [], "annotations": [], "categories": []}),
    ),
    "labelme, ignored": lambda f: (
        image(f / "a.png"),
        labelme(f, [*shapes(), {**shapes()[0], "label": "__ignore__"}]),
    ),
    "labelme masks": lambda f: (image(f / "a.png"), labelme(f, labelme_masks(0))),
    "labelme masks, fractions": lambda f: (image(f / "a.png"), labelme(f, labelme_masks(0.6))),
    "voc of labelme2voc": lambda f: voc(f, NUMBERS, CLASS_NUMBERS, True, CLASS_FILE),
    "voc of labelme2voc, with ignore": lambda f: voc(
        f, NUMBERS, CLASS_NUMBERS, True, {"class_names.txt": "__ignore__\n" + CLASS_FILE["class_names.txt"]}
    ),
    "voc of CVAT": lambda f: voc(
        f, as_color(NUMBERS, voc_colors()), as_color(CLASS_NUMBERS, MAP_COLORS), False, {"labelmap.txt": LABEL_MAP}
    ),
    "voc of Datumaro": lambda f: voc(
        f,
        as_color(NUMBERS, voc_colors()),
        as_color(CLASS_NUMBERS, voc_colors()),
        False,
        {"labelmap.txt": "# label:color_rgb:parts:actions\n" + "".join(f"{n}:::\n" for n in ("background", *CLASSES))},
    ),
    "voc in gray, class names": lambda f: voc(f, NUMBERS, CLASS_NUMBERS, False, CLASS_FILE),
    "cvat polygons": lambda f: (image(f / "images/a.png"), cvat(f, "polygon")),
    "cvat masks": lambda f: (image(f / "images/default/a.png"), cvat(f, "mask")),
    "cvat, folders in names": lambda f: (image(f / "images/cam/a.png"), cvat(f, "mask", "cam/a.png")),
    "label studio polygons": lambda f: (image(f / "images/a.png"), label_studio(f, "polygon")),
    "label studio brush": lambda f: (image(f / "0123abcd-a.png"), label_studio(f, "brush")),
    "label studio brush, short": lambda f: (image(f / "a.png"), label_studio(f, "brush", short=True)),
    "label studio, local files": lambda f: (
        image(f / "a b.png"),
        label_studio(f, "brush", address="/data/local-files/?d=x/a%20b.png"),
    ),
    "via": lambda f: (image(f / "a.png"), via(f, False)),
    "via project": lambda f: (image(f / "a.png"), via(f, True)),
    "supervisely polygons": lambda f: (image(f / "ds/img/a.png"), supervisely(f, "polygon")),
    "supervisely bitmaps": lambda f: (image(f / "ds/img/a.png"), supervisely(f, "bitmap")),
    "coco of Label Studio": lambda f: (image(f / "images/a.png"), coco(f, "result.json", "images\\a.png")),
    "coco of CVAT": lambda f: (image(f / "images/a.png"), coco(f, "annotations/instances_default.json", "a.png")),
}
