"""Data sets as other tools write them: every object arrives with its class and its very mask, or is told of."""

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as reference

from sotr.cli import run
from sotr.curation.convert import Conversion, convert_data
from sotr.curation.formats.label_images import voc_colors
from sotr.data.coco import find_data
from sotr.errors import SOTRError
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


def cvat(folder: Path, kind: str, name: str = "a.png") -> None:
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
        folder / "annotations.xml",
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
    "voc in grey, class names": lambda f: voc(f, NUMBERS, CLASS_NUMBERS, False, CLASS_FILE),
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


def converted(folder: Path, **options: Any) -> Conversion:
    out = folder.parent / "out"
    return convert_data(str(folder), str(out), val_share=0, quiet=True, **options)


def found_masks(folder: Path) -> tuple[np.ndarray, list[str], tuple[str, ...]]:
    data = find_data(folder.parent / "out").train
    assert data is not None
    assert (folder.parent / "out" / "images").is_dir()
    record = data.record(0)
    assert Image.open(record.path).size == (WIDTH, HEIGHT)
    return data.masks(record), [data.class_names[label] for label in record.labels_I], data.class_names


@pytest.mark.parametrize("write", WHOLE.values(), ids=WHOLE)
def test_every_object_arrives_with_its_class_and_mask(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    write(folder)
    result = converted(folder)
    assert (result.pictures, result.objects, result.failures) == ({"train": 1}, {"train": 4}, [])
    masks, names, classes = found_masks(folder)
    for mask, name in zip(MASKS, NAMES, strict=True):
        (same,) = [i for i, other in enumerate(masks) if np.array_equal(other, mask)]
        assert names[same] == name
    in_order = [name for name in CLASSES if name in classes]
    assert list(classes) == in_order or classes == tuple(sorted(classes))


NUMBERED: dict[str, Write] = {
    "numbers": lambda f: label_image(f / "masks/a.png", NUMBERS),
    "NAME_mask": lambda f: label_image(f / "masks/a_mask.png", NUMBERS),
    "split folders": lambda f: label_image(f / "masks/train/a.png", NUMBERS),
    "float TIFF": lambda f: tiff(f / "masks/a.tif", NUMBERS.astype(np.float32)),
    "white is 0": lambda f: tiff(f / "masks/a.tif", NUMBERS, photometric="miniswhite"),
    "a tag to turn": lambda f: tiff(f / "masks/a.tif", NUMBERS, extratags=[(274, 3, 1, 6, True)]),
    "alpha": lambda f: label_image(f / "masks/a.png", np.dstack([NUMBERS * 0, NUMBERS * 0, NUMBERS * 0, NUMBERS])),
    "Thumbs.db": lambda f: (label_image(f / "masks/a.png", NUMBERS), text(f / "masks/Thumbs.db", "x")),
    "a file for each": lambda f: [label_image(f / f"masks/a/{i}.png", m * np.uint8(255)) for i, m in enumerate(MASKS)],
    "soft edges, a file for each": lambda f: [
        label_image(f / f"masks/a/{i}.png", cv2.blur(m * np.uint8(255), (3, 3))) for i, m in enumerate(MASKS)
    ],
    "JPEG, a file for each": lambda f: [
        label_image(f / f"masks/a/{i}.jpg", m * np.uint8(255)) for i, m in enumerate(MASKS)
    ],
}


def tiff(path: Path, values: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, **options)
    return path


@pytest.mark.parametrize("write", NUMBERED.values(), ids=NUMBERED)
def test_masks_of_all_kinds(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "source"
    write(folder)
    split = "train/" if (folder / "masks/train").is_dir() else ""
    image(folder / f"images/{split}a.jpg")
    result = converted(folder, class_name="cell")
    assert (result.objects, result.failures) == ({"train": 4}, [])
    masks, _, classes = found_masks(folder)
    assert classes == ("cell",)
    exact = not any("soft edges" in note for note in result.notes)
    for mask in MASKS:
        overlaps = (masks & mask).sum((1, 2)) / (masks | mask).sum((1, 2))
        assert overlaps.max() == 1 or (not exact and overlaps.max() > 0.9)


def test_cellpose_writes_masks_beside_the_images(tmp_path: Path) -> None:
    image(tmp_path / "source/a.png")
    tiff(tmp_path / "source/a_cp_masks.tif", NUMBERS.astype(np.uint16))
    image(tmp_path / "source/b.png")
    label_image(tmp_path / "source/b_masks.png", NUMBERS)
    assert converted(tmp_path / "source").objects == {"train": 8}
    np.testing.assert_array_equal(found_masks(tmp_path / "source")[0], MASKS)


def test_numbers_that_are_no_objects_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "jpeg/images/a.png")
    label_image(tmp_path / "jpeg/masks/a.jpg", NUMBERS * 60)
    with pytest.raises(SOTRError, match=r"a\.jpg: is a JPEG, whose compression makes numbers of its own"):
        converted(tmp_path / "jpeg")
    image(tmp_path / "soft/images/a.png")
    label_image(tmp_path / "soft/masks/a.png", cv2.GaussianBlur((NUMBERS > 0) * np.uint8(255), (0, 0), 1.5))
    with pytest.raises(SOTRError, match=r"a\.png: has soft edges, whose \d+ numbers are no objects"):
        converted(tmp_path / "soft")
    small = np.zeros((HEIGHT, WIDTH), np.uint16)
    small[::3, ::3] = np.arange(16 * 22).reshape(16, 22)  # objects of one pixel are no edges
    image(tmp_path / "small/images/a.png")
    label_image(tmp_path / "small/masks/a.png", small)
    assert converted(tmp_path / "small").objects == {"train": 16 * 22 - 1}


def test_what_was_assumed_of_masks_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "source"
    image(folder / "images/a.png")
    label_image(folder / "masks/a.png", (NUMBERS > 0) * np.uint8(255))
    result = converted(folder)
    assert result.objects == {"train": 1}
    assert (
        "note: a number with several separate parts was taken for one object (--numbers parts" in capfd.readouterr().err
    )
    (tmp_path / "out").rename(tmp_path / "one")
    assert converted(folder, numbers="parts").objects == {"train": 4}
    assert sorted(map(int, found_masks(folder)[0].sum((1, 2)))) == sorted(map(int, MASKS.sum((1, 2))))
    (tmp_path / "out").rename(tmp_path / "parts")
    label_image(folder / "masks/a.png", CLASS_NUMBERS)
    assert converted(folder, numbers="classes").objects == {"train": 4}
    assert set(found_masks(folder)[1]) == {"class 1", "class 2"}
    (tmp_path / "out").rename(tmp_path / "classes")
    label_image(folder / "masks/a.png", (NUMBERS == 0) * np.uint8(255))
    assert any("if its objects are 0, invert it" in note for note in converted(folder).notes)


def test_voc_numbers_beyond_255_and_unnamed_classes(tmp_path: Path) -> None:
    many = np.zeros((HEIGHT, WIDTH), np.uint16)
    many[::2, ::2] = np.arange(24 * 32).reshape(24, 32)
    folder = tmp_path / "source"
    voc(folder, many, (many > 0).astype(np.uint8), False, CLASS_FILE)
    assert converted(folder).objects == {"train": 24 * 32 - 1}
    assert set(found_masks(folder)[1]) == {"wheel"}
    voc(tmp_path / "unnamed", NUMBERS, CLASS_NUMBERS * 30, True, CLASS_FILE)
    with pytest.raises(SOTRError, match=r"object 1: nothing names its class, 60; add it to labelmap\.txt"):
        convert_data(str(tmp_path / "unnamed"), str(tmp_path / "no"), quiet=True)
    assert not (tmp_path / "no").exists()
    voc(tmp_path / "plain", NUMBERS, CLASS_NUMBERS, True, {})
    result = convert_data(str(tmp_path / "plain"), str(tmp_path / "named"), quiet=True)
    assert any("were taken for VOC 2012's classes" in note for note in result.notes)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb2312", "gb18030", "shift_jis", "euc-kr", "latin-1"])
def test_voc_xml_in_the_encoding_that_it_declares(tmp_path: Path, encoding: str) -> None:
    name = {"latin-1": "Schlüssel", "euc-kr": "자동차", "gb2312": "车"}.get(encoding, "車")
    entries = ""
    for mask in MASKS:
        x0, y0, x1, y1 = box(mask)
        corners = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1 + 1}</xmax><ymax>{y1 + 1}</ymax>"
        entries += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
    folder = tmp_path / "source"
    image(folder / "JPEGImages/a.jpg")
    label_image(folder / "SegmentationObject/a.png", NUMBERS)
    declared = f'<?xml version="1.0" encoding="{encoding}"?><annotation>{entries}</annotation>'
    text(folder / "Annotations/a.xml", declared, encoding)
    assert converted(folder).objects == {"train": 4}
    assert found_masks(folder)[2] == (name,)


def test_yolo_says_what_it_cannot_take(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    yolo(folder, "images/train/a.png", "labels/train/a.txt", YAML + "train: images/train\nval: images/vall")
    with pytest.raises(SOTRError, match="val: images/vall is not there; correct it, or drop the line"):
        converted(folder)
    text(folder / "labels/train/alone.txt", "")
    text(folder / "data.yaml", YAML + "train: images/train\ntest: images/test\nkpt_shape: [3, 2]")
    text(folder / "labels/train/a.txt", "0 0.5 0.5 0.2 0.2 0.4 0.4 0.6 0.6 0.5 0.45\n" + yolo_lines())
    result = converted(folder)
    assert result.objects == {"train": 4}
    assert [line.split(": ")[-1] for line in result.failures] == ["is a pose without a mask"]
    assert any("labels without an image" in note and "alone.txt" in note for note in result.notes)
    assert any("test: images/test is not there" in note for note in result.notes)
    yolo(tmp_path / "nameless", "images/a.png", "labels/a.txt", None)
    with pytest.raises(SOTRError, match=r"nothing names its classes; add a classes\.txt"):
        converted(tmp_path / "nameless")


def test_all_that_is_broken_is_listed_and_may_be_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "source"
    yolo(folder, "images/a.png", "labels/a.txt", YAML + "train: images")
    text(
        folder / "labels/a.txt", yolo_lines() + "\n7 0.1 0.1 0.2 0.1 0.2 0.2\n0 0.1 0.1 0.2\n0 0.1 0.1 nan 0.1 0.2 0.2"
    )
    text(folder / "images/b.png", "no image")
    arguments = ["data", "convert", str(folder), str(tmp_path / "out"), "--val-share", "0"]
    assert run(arguments) == 2
    said = capfd.readouterr().err
    assert said.count("\nbroken: ") + said.startswith("broken: ") == 4
    assert "(and 3 more, listed above); --skip-broken leaves them out" in said
    assert not (tmp_path / "out").exists()
    assert run([*arguments, "--skip-broken"]) == 1
    assert "4 left out (4 broken, 0 without a mask)" in capfd.readouterr().err
    np.testing.assert_array_equal(found_masks(folder)[0], MASKS)


def test_odd_shapes_of_labelme_and_xanylabeling(tmp_path: Path) -> None:
    four = [[10, 5], [40, 5], [40, 25], [10, 25]]
    folder = tmp_path / "source"
    own: list[dict[str, Any]] = [
        {"label": "a", "points": four, "shape_type": "rectangle"},
        {"label": "b", "points": four, "shape_type": "rotation", "direction": 0.3},
        {"label": "c", "points": four[:3], "shape_type": "oriented_rectangle"},
        {"label": "d", "points": [[10, 5], [40, 25]], "shape_type": "rectangle"},
    ]
    overhang = base64.b64encode(png(np.ones((10, 12), np.bool_))).decode()
    own.append({"label": "e", "points": [[-3, 20], [8, 29]], "shape_type": "mask", "mask": overhang})
    image(folder / "a.png")
    labelme(folder, own)
    converted(folder)
    masks, names, _ = found_masks(folder)
    assert dict(zip(names, masks.sum((1, 2)).tolist(), strict=True)) == {
        "a": 600,
        "b": 600,
        "c": 600,
        "d": 600,
        "e": 90,
    }


ODD: dict[str, Any] = {
    "no points": {},
    "points a dict": {"points": {"a": 1}},
    "a point of one": {"points": [[1], [2], [3]]},
    "huge": {"points": [[0, 0], [1e9, 0], [1e9, 1e9]]},
    "beyond floats": {"points": [[0, 0], [10**400, 0], [1, 1]]},
    "infinite mask": {"points": [[0, 0], [float("inf"), 9]], "shape_type": "mask", "mask": ""},
    "mask that is none": {"points": [[0, 0], [3, 3]], "shape_type": "mask", "mask": "AAAA"},
    "mask without a key": {"points": [[0, 0], [3, 3]], "shape_type": "mask"},
    "group a list": {"points": [[0, 0], [1e9, 0], [1e9, 1e9]], "group_id": [1]},
}


@pytest.mark.parametrize("shape", ODD.values(), ids=ODD)
def test_odd_shapes_are_one_line(tmp_path: Path, shape: Any) -> None:
    folder = tmp_path / "source"
    image(folder / "a.png")
    labelme(folder, [{"label": "x", **shape}])
    with pytest.raises(SOTRError, match=r"a\.json (shape|group) ") as caught:
        converted(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_deep_and_endless_files_are_one_line(tmp_path: Path) -> None:
    image(tmp_path / "deep/a.png")
    text(tmp_path / "deep/a.json", '{"shapes": ' + "[" * 100_000 + "]" * 100_000 + "}")
    labelme(tmp_path / "deep", file="b.json")
    with pytest.raises(SOTRError, match="is nested too deeply"):
        converted(tmp_path / "deep")
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    for content, message in ((bomb, "references"), ("names: 2026-99-99\n", "not valid YAML"), ("a: " * 9, "not valid")):
        yolo(tmp_path / "yaml", "images/a.png", "labels/a.txt", content)
        with pytest.raises(SOTRError, match=message):
            converted(tmp_path / "yaml")


def test_crowds_of_coco_stay_crowds(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    image(folder / "images/a.png")
    coco(folder, "result.json", "a.png")
    content = json.loads((folder / "result.json").read_text())
    rle = reference.encode(np.asfortranarray(MASKS[0].astype(np.uint8)))
    content["annotations"][0].update(iscrowd=1, segmentation={**rle, "counts": rle["counts"].decode()})
    text(folder / "result.json", content)
    converted(folder)
    data = find_data(tmp_path / "out").train
    assert data is not None
    assert data.iscrowd.tolist() == [True, False, False, False]
