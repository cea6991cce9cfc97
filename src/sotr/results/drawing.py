"""Drawing objects over their image."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sotr.data.images import load_image
from sotr.errors import SOTRError

if TYPE_CHECKING:
    from sotr.results.instances import Instances

SMALL_PICTURE = 600
"""Images whose shortest edge is below this many pixels are enlarged, so that outlines are thin beside the objects."""

MAX_SCALE = 6
"""Largest enlargement that is chosen without being asked for."""

MAX_LABELS = 40
"""At most so many labels; and none at all where a model of one class finds more objects than this."""

MANY_OBJECTS = 12
"""With more objects than this a label needs twice the room; if few scores of a single class fit, none is written."""

FILL = 0.35
"""Opacity of the color inside an object."""

HALO = 0.55
"""Opacity of the dark rim beside an outline, which keeps it visible on bright ground and on its own color."""

_UNIVERSAL = "uni"
"""OpenCV's font with the characters of most scripts, from its version 5."""

ROWS_AT_ONCE = 256
"""Rows of the image that are in floating point together."""

# Bright, and told apart with the common kinds of color blindness: Okabe and Ito's set without its black and its dark
# blue, filled up in the spirit of Paul Tol's schemes. Neighbors in the list differ much.
COLORS: tuple[tuple[int, int, int], ...] = (
    (255, 176, 0),
    (86, 180, 233),
    (240, 228, 66),
    (230, 110, 170),
    (0, 205, 155),
    (235, 100, 30),
    (130, 155, 255),
    (175, 225, 90),
    (255, 150, 140),
    (0, 220, 240),
    (200, 145, 255),
    (255, 215, 150),
)


class _Shape(NamedTuple):
    """An object's mask at the overlay's scale; its top-left pixel is (x, y)."""

    mask_hw: NDArray[np.bool_]
    x: int
    y: int
    contours: Sequence[NDArray[Any]]


def draw_overlay(
    instances: "Instances",
    image: NDArray[np.uint8] | Image.Image | str | Path,
    scale: int | None = None,
    tracks: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """See `Instances.draw`, which is the way to call this for images.

    For frames of a video, `tracks` gives each object the number that it has in all of them, or -1: objects are then
    colored by it, and labeled with class and number.
    """
    picture = load_image(image)
    height, width = picture.shape[:2]
    if (height, width) != instances.image_size:
        raise SOTRError(
            f"the image is {height} x {width} (height x width), but the objects were found in one of "
            f"{instances.image_size[0]} x {instances.image_size[1]}; draw them on that"
        )
    if scale is None:
        scale = min(MAX_SCALE, -(-SMALL_PICTURE // min(height, width)))
    elif scale < 1:
        raise SOTRError(f"scale is {scale}; it must be a whole number of at least 1")
    if scale > 1:
        size = (width * scale, height * scale)
        canvas = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LANCZOS4), np.uint8)
    else:
        canvas = picture

    # Large objects first: a small one on top of a large one stays visible.
    painted = [i for i in np.argsort(-instances.areas_I, kind="stable") if instances.areas_I[i]]
    colors = _object_colors(instances) if tracks is None else [_class_color(track) for track in tracks]
    shapes = {i: _shape(instances, i, scale) for i in painted}
    for i in painted:
        mask_hw, x, y, _ = shapes[i]
        region = canvas[y : y + mask_hw.shape[0], x : x + mask_hw.shape[1]]
        region[mask_hw] = region[mask_hw] * (1 - FILL) + np.float32(colors[i]) * FILL

    thickness = _thickness(instances, scale)
    rims = np.zeros(canvas.shape[:2], np.uint8)
    for i in painted:
        cv2.polylines(rims, shapes[i].contours, True, 255, thickness + 2, cv2.LINE_AA)
    for top in range(0, canvas.shape[0], ROWS_AT_ONCE):
        band, rim = canvas[top : top + ROWS_AT_ONCE], rims[top : top + ROWS_AT_ONCE, :, None]
        np.multiply(band, 1 - HALO / 255 * rim, out=band, casting="unsafe")
    for i in painted:
        cv2.polylines(canvas, shapes[i].contours, True, _lighter(colors[i]), thickness, cv2.LINE_AA)
    return _with_labels(canvas, shapes, colors, _texts(instances, tracks), one_class=len(instances.class_names) == 1)


def _object_colors(instances: "Instances") -> list[tuple[int, int, int]]:
    """One color per object: its class's where the model has several, else one that no near object has."""
    if len(instances.class_names) > 1:
        return [_class_color(int(label)) for label in instances.labels_I]
    centers_I2 = (instances.boxes_I4[:, :2] + instances.boxes_I4[:, 2:]) / 2
    chosen = np.zeros(len(instances), np.int64)
    for i in range(1, len(instances)):
        distances = np.square(centers_I2[:i] - centers_I2[i]).sum(1)
        nearest = np.full(len(COLORS), np.inf)
        np.minimum.at(nearest, chosen[:i], distances)
        chosen[i] = nearest.argmax()
    return [COLORS[color] for color in chosen]


def _class_color(label: int) -> tuple[int, int, int]:
    """The palette, then its light shades, then its dark ones, then from the start."""
    turn, position = divmod(label, len(COLORS))
    red, green, blue = COLORS[position]
    toward, amount = ((0, 0.0), (255, 0.5), (0, 0.3))[turn % 3]
    return _mix((red, green, blue), toward, amount)


def _mix(color: tuple[int, int, int], toward: int, amount: float) -> tuple[int, int, int]:
    red, green, blue = (round(value + (toward - value) * amount) for value in color)
    return red, green, blue


def _lighter(color: tuple[int, int, int]) -> tuple[int, int, int]:
    return _mix(color, 255, 0.15)


def _shape(instances: "Instances", i: int, scale: int) -> _Shape:
    mask_hw, x, y = instances.mask_crop(i)
    # The zeros around it let enlarging round the mask's outer corners as well as its inner ones.
    padded = np.pad(mask_hw.view(np.uint8) * 255, 1)
    if scale > 1:
        size = (padded.shape[1] * scale, padded.shape[0] * scale)
        enlarged = cv2.resize(padded, size, interpolation=cv2.INTER_LINEAR)
        # Half a pixel of blur turns the steps of the mask's outline into a curve.
        padded = np.asarray(cv2.GaussianBlur(enlarged, (0, 0), scale / 2), np.uint8)
    inside = np.ascontiguousarray(padded[scale:-scale, scale:-scale] > 127)
    x, y = x * scale, y * scale
    contours, _ = cv2.findContours(inside.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))
    return _Shape(inside, x, y, contours)


def _thickness(instances: "Instances", scale: int) -> int:
    """Outline width in pixels: grows with the image, stays thin where objects are tiny."""
    if not len(instances) or np.median(np.sqrt(instances.areas_I)) * scale < 24:
        return 1
    return max(1, round(min(instances.image_size) * scale / 500))


def _texts(instances: "Instances", tracks: Sequence[int] | None) -> list[str]:
    """What to write on each object."""
    names = [instances.class_names[label] for label in instances.labels_I]
    if tracks is not None:
        return [f"{name} {track}" if track >= 0 else name for name, track in zip(names, tracks, strict=True)]
    # Labeled data have no scores worth writing: all are 1.
    if not (instances.scores_I < 1).any():
        return names
    return [f"{name} {score:.2f}" for name, score in zip(names, instances.scores_I, strict=True)]


def _with_labels(
    canvas: NDArray[np.uint8],
    shapes: dict[int, _Shape],
    colors: list[tuple[int, int, int]],
    texts: Sequence[str],
    one_class: bool,
) -> NDArray[np.uint8]:
    """Write the texts on the objects that have room for it, best score first; labels never overlap."""
    if not shapes or (one_class and len(shapes) > MAX_LABELS):
        return canvas
    height, width = canvas.shape[:2]
    font = ImageFont.load_default(int(np.clip(min(height, width) * 0.022, 11, 40)))
    padding = max(2, round(font.size / 5)) if isinstance(font, ImageFont.FreeTypeFont) else 2
    few = len(shapes) <= MANY_OBJECTS
    sizes: dict[int, tuple[str, int, int]] = {}
    for i, shape in shapes.items():
        text = texts[i]
        text_w, text_h = _text_size(text, font)
        w, h = text_w + 2 * padding, text_h + 2 * padding
        if np.count_nonzero(shape.mask_hw) >= (0.6 if few else 1.2) * w * h:
            sizes[i] = (text, w, h)
    if one_class and not few and len(sizes) < len(shapes) / 2:
        return canvas

    sheet = Image.fromarray(canvas)
    pen = ImageDraw.Draw(sheet)
    taken: list[tuple[int, int, int, int]] = []
    for i in sorted(sizes)[:MAX_LABELS]:
        text, w, h = sizes[i]
        for x, y in _label_places(shapes[i], w, h):
            x0, y0 = int(np.clip(x, 0, max(0, width - w))), int(np.clip(y, 0, max(0, height - h)))
            box = (x0, y0, x0 + w, y0 + h)
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                pen.rounded_rectangle(box, radius=padding, fill=_lighter(colors[i]))
                ink = (16, 16, 16) if np.dot(colors[i], (0.299, 0.587, 0.114)) > 100 else (250, 250, 250)
                _write(sheet, pen, text, (x0 + w / 2, y0 + h / 2), font, ink)
                taken.append(box)
                break
    return np.array(sheet)


_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def _is_plain(text: str, font: _Font) -> bool:
    """Whether Pillow's own font has all characters of a text; others it draws as boxes."""
    missing = bytes(font.getmask("\uffff"))
    return text.isascii() or not any(bytes(font.getmask(c)) == missing for c in set(text) if not c.isspace())


def _text_size(text: str, font: _Font) -> tuple[int, int]:
    if _is_plain(text, font) or not hasattr(cv2, "FontFace"):
        left, top, right, bottom = font.getbbox(text, anchor="ls")
        return round(right - left), round(bottom - top)
    _, _, w, h = cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace(_UNIVERSAL), round(_size_of(font)))
    return w, h


def _write(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    text: str,
    center: tuple[float, float],
    font: _Font,
    ink: tuple[int, int, int],
) -> None:
    """Write a text around a point: with Pillow's font if that has its characters, else with OpenCV's universal one."""
    if _is_plain(text, font) or not hasattr(cv2, "FontFace"):
        pen.text(center, text, ink, font, anchor="mm")
        return
    face, size = cv2.FontFace(_UNIVERSAL), round(_size_of(font))
    x, y, w, h = cv2.getTextSize((0, 0), text, (0, 0), face, size)
    left, top = round(center[0] - w / 2), round(center[1] - h / 2)
    part = np.array(sheet.crop((left, top, left + w, top + h)))
    cv2.putText(part, text, (-x, -y), ink, face, size)
    sheet.paste(Image.fromarray(part), (left, top))


def _size_of(font: _Font) -> float:
    return font.size if isinstance(font, ImageFont.FreeTypeFont) else 11


def _label_places(shape: _Shape, w: int, h: int) -> list[tuple[int, int]]:
    """Top-left corners worth trying for a w x h label: in the thick of the object if it is large, else at its edge."""
    mask_h, mask_w = shape.mask_hw.shape
    edges = [(shape.x, shape.y - h), (shape.x, shape.y + mask_h), (shape.x, shape.y)]
    if w > 0.9 * mask_w or w * h > 0.2 * np.count_nonzero(shape.mask_hw):
        return edges
    depth = cv2.distanceTransform(np.pad(shape.mask_hw.view(np.uint8), 1), cv2.DIST_L2, 3)
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return [(shape.x + int(column) - 1 - w // 2, shape.y + int(row) - 1 - h // 2), *edges]
