"""An endless data set of overlapping, textured shapes with exact masks: for tests, measurements and first steps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from sotr.data.coco_writer import CocoWriter
from sotr.errors import SOTRError
from sotr.files import atomic_folder
from sotr.progress import progress_bar
from sotr.results.instances import encode_masks

Floats = NDArray[np.float32]

VAL_START = 10**9
"""Images from this number on are for validation: however many one trains on, it never sees them."""

MIN_SIDE = 12
"""Shapes are at least so many pixels wide: below, a ring would lose its hole."""

MIN_VISIBLE = 0.35
"""A shape of which others, and the image's edges, leave less than this share to be seen is not placed."""


def _star(x: Floats, y: Floats) -> NDArray[np.bool_]:
    radius, angle = np.hypot(x, y), np.abs((np.arctan2(y, x) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    # In each of the ten alike sectors an edge runs from the outer corner at (1, 0) to the inner one at 36 degrees.
    inner_x, inner_y = 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    inside: NDArray[np.bool_] = (px - 1) * inner_y - py * (inner_x - 1) <= 0
    return inside


def _triangle(x: Floats, y: Floats) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = np.maximum(-x, x / 2 + np.sqrt(3) / 2 * np.abs(y)) <= 0.5
    return inside


SHAPES: dict[str, Callable[[Floats, Floats], NDArray[np.bool_]]] = {
    "disc": lambda x, y: x * x + y * y <= 1,
    "box": lambda x, y: (abs(x) <= 0.8) & (abs(y) <= 0.6),
    "star": _star,
    "ring": lambda x, y: (x * x + y * y <= 1) & (x * x + y * y >= 0.3),
    "bar": lambda x, y: (abs(x) <= 1) & (abs(y) <= 0.2),
    "triangle": _triangle,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.28) & (np.maximum(abs(x), abs(y)) <= 0.95),
}
"""Class -> which points of the square -1..1 belong to the shape."""


@dataclass(frozen=True, eq=False)
class SyntheticPicture:
    """An image and its I objects."""

    image_HW3: NDArray[np.uint8]
    labels_I: NDArray[np.int64]
    """Contiguous class indices."""
    objects_HW: NDArray[np.int32]
    """Which object each pixel shows: 1 + its index, 0 for the background. Hidden parts belong to what hides them."""

    @property
    def masks_IHW(self) -> NDArray[np.bool_]:
        """The visible part of each object."""
        masks: NDArray[np.bool_] = self.objects_HW == np.arange(1, len(self.labels_I) + 1)[:, None, None]
        return masks


@dataclass(frozen=True)
class SyntheticShapes:
    """An endless data set: `shapes[i]` is a function of these settings and of i, from 0 on, alone.

    Shapes are of all sizes from `MIN_SIDE` pixels to half the shortest edge (less where there are many), turned at
    will, striped, chequered, shaded or plain, and may hide one another or leave the image; but at least `MIN_VISIBLE`
    of each is seen, and its mask is exactly what is seen.

    Raises:
        SOTRError: a setting is out of range.
    """

    height: int = 256
    """Of each image, in pixels."""
    width: int = 320
    min_objects: int = 1
    """Fewest shapes in an image."""
    max_objects: int = 8
    """Most shapes in an image; where so many find no room there are fewer."""
    classes: int = 5
    """The first so many of `SHAPES`."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if not 2 * MIN_SIDE <= getattr(self, name) <= 16_384:
                raise SOTRError(f"{name} is {getattr(self, name)}; it must lie in {2 * MIN_SIDE}..16384")
        if not 0 <= self.min_objects <= self.max_objects:
            raise SOTRError(
                f"min_objects is {self.min_objects} and max_objects {self.max_objects}; give 0 <= min <= max"
            )
        if not 1 <= self.classes <= len(SHAPES):
            raise SOTRError(f"classes is {self.classes}; there are 1 to {len(SHAPES)}: {', '.join(SHAPES)}")
        if self.seed < 0:
            raise SOTRError(f"seed is {self.seed}; it must be 0 or more")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class of each label."""
        return tuple(SHAPES)[: self.classes]

    def __getitem__(self, index: int) -> SyntheticPicture:
        """Image `index`, from 0 on without end."""
        rng = np.random.default_rng((self.seed, index))
        image_HW3 = _background(self.height, self.width, rng)
        objects_HW = np.zeros((self.height, self.width), np.int32)
        labels: list[int] = []
        wanted = int(rng.integers(self.min_objects, self.max_objects + 1))
        for _ in range(wanted):
            label = int(rng.integers(self.classes))
            if self._place(label, len(labels) + 1, wanted, image_HW3, objects_HW, rng):
                labels.append(label)
        noise = rng.normal(0, rng.uniform(1, 5), image_HW3.shape[:2]).astype(np.float32)
        image_HW3 += noise[..., None]
        pixels = np.clip(np.rint(image_HW3), 0, 255).astype(np.uint8)
        return SyntheticPicture(pixels, np.array(labels, np.int64), objects_HW)

    def _place(
        self,
        label: int,
        number: int,
        wanted: int,
        image_HW3: Floats,
        objects_HW: NDArray[np.int32],
        rng: np.random.Generator,
    ) -> bool:
        """Paint one shape behind those that are there; False if no place of 20 shows enough of it."""
        shortest = min(self.height, self.width)
        largest = max(MIN_SIDE, min(shortest / 2, 1.5 * np.sqrt(self.height * self.width / max(1, wanted))))
        side = float(np.exp(rng.uniform(np.log(MIN_SIDE), np.log(largest))))
        for _ in range(20):
            center_y, center_x = rng.uniform(0, self.height), rng.uniform(0, self.width)
            x, y, top, left = _own_coordinates(center_x, center_y, side / 2, rng.uniform(0, 2 * np.pi))
            shape = SHAPES[tuple(SHAPES)[label]](x, y)
            y0, x0 = max(0, top), max(0, left)
            y1, x1 = min(self.height, top + shape.shape[0]), min(self.width, left + shape.shape[1])
            window = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
            seen = shape[window] & (objects_HW[y0:y1, x0:x1] == 0)
            if np.count_nonzero(seen) >= max(1, MIN_VISIBLE * np.count_nonzero(shape)):
                texture = _texture(x[window], y[window], rng)
                image_HW3[y0:y1, x0:x1][seen] = texture[seen]
                objects_HW[y0:y1, x0:x1][seen] = number
                return True
            side = max(MIN_SIDE, 0.9 * side)
        return False


def _own_coordinates(center_x: float, center_y: float, radius: float, angle: float) -> tuple[Floats, Floats, int, int]:
    """Coordinates x, y of the pixels around a turned shape in its own frame, where it fills -1..1 and may reach on to
    its corners; and the row and column of their first pixel."""
    reach = int(np.ceil(radius * np.sqrt(2))) + 1
    top, left = int(center_y) - reach, int(center_x) - reach
    # Pixels are judged by their middles.
    along = (np.arange(2 * reach + 1) + 0.5).astype(np.float32)
    dy, dx = (along[:, None] + top - center_y) / radius, (along[None] + left - center_x) / radius
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = dx * cosine + dy * sine, dy * cosine - dx * sine
    return x.astype(np.float32), y.astype(np.float32), top, left


def _background(height: int, width: int, rng: np.random.Generator) -> Floats:
    """Clouds between two dull colors, height x width x 3 in 0..255."""
    first, second = rng.uniform(20, 200, 3), rng.uniform(20, 200, 3)
    cells = int(rng.integers(2, 12))
    clouds = cv2.resize(rng.random((cells, cells)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return (first + (second - first) * clouds[..., None]).astype(np.float32)


def _texture(x: Floats, y: Floats, rng: np.random.Generator) -> Floats:
    """The colors of a shape's pixels, from two colors of its own."""
    # The hue is free, so no class can be told by its color.
    first, second = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    waves = rng.uniform(4, 12)
    kind = int(rng.integers(4))
    if kind == 0:
        share = np.zeros_like(x)
    elif kind == 1:
        share = (np.sin(waves * x) > 0).astype(np.float32)
    elif kind == 2:
        share = (np.sin(waves * x) * np.sin(waves * y) > 0).astype(np.float32)
    else:
        share = np.clip((x + 1) / 2, 0, 1)
    return (first + (second - first) * share[..., None]).astype(np.float32)


def write_synthetic(
    out: str | Path,
    train: int = 200,
    val: int = 40,
    height: int = SyntheticShapes.height,
    width: int = SyntheticShapes.width,
    min_objects: int = SyntheticShapes.min_objects,
    max_objects: int = SyntheticShapes.max_objects,
    classes: int = SyntheticShapes.classes,
    seed: int = 0,
    quiet: bool = False,
) -> Path:
    """Make a COCO data set of overlapping, textured shapes with exact masks: train.json, val.json and images/.

    The same arguments give the same bytes. More images of a split leave those there were as they are.

    Args:
        out: New folder of the data set.
        train: Images to train on.
        val: Images to validate on; 0 leaves that split out.
        height, width: Of each image, in pixels.
        min_objects: Fewest shapes in an image.
        max_objects: Most shapes in an image; where so many find no room there are fewer.
        classes: The first so many of disc, box, star, ring, bar, triangle and cross.
        seed: Of all chance.
        quiet: Print nothing but errors.

    Returns:
        The folder.

    Raises:
        SOTRError: a number is out of range, or `out` is there already.
    """
    shapes = SyntheticShapes(height, width, min_objects, max_objects, classes, seed)
    for name, count in (("train", train), ("val", val)):
        if not 0 <= count <= VAL_START:
            raise SOTRError(f"{name} is {count}; give a number of images, at most {VAL_START:,}")
    if not train + val:
        raise SOTRError("train and val are both 0; give a number of images")
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
    with atomic_folder(out) as folder:
        (folder / "images").mkdir()
        numbers = [(split, i) for split, count in (("train", train), ("val", val)) for i in range(count)]
        writer = CocoWriter(f"overlapping shapes, seed {seed}", shapes.class_names)
        with progress_bar("drawing", len(numbers), console) as advance:
            for split, i in numbers:
                picture = shapes[i + (VAL_START if split == "val" else 0)]
                name = f"{split}_{i:06}.jpg"
                Image.fromarray(picture.image_HW3).save(folder / "images" / name, quality=92)
                writer.add_image(split, name, height, width)
                for mask_HW, label in zip(picture.masks_IHW, picture.labels_I.tolist(), strict=True):
                    writer.add_object(split, label + 1, encode_masks(mask_HW[None])[0])
                advance(1)
        writer.write(folder)
    counts = writer.counts().items()
    objects = ", ".join(f"{split} {images} images with {count} objects" for split, (images, count) in counts)
    console.print(f"{out}: {objects}", soft_wrap=True)
    return Path(out)
