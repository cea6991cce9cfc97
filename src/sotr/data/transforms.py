"""Images to network input: the one preprocessing, and the augmentation of training images with their objects."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tvf

from sotr.data.sizes import resize_ratio, resized_size
from sotr.errors import SOTRError
from sotr.learning import Targets
from sotr.masks import run_lengths as rle

MEAN = (0.485, 0.456, 0.406)
"""ImageNet mean of R, G, B in 0..1."""
STD = (0.229, 0.224, 0.225)
"""ImageNet standard deviation of R, G, B in 0..1."""


def preprocess(image_HW3: NDArray[np.uint8], image_size: int, max_image_size: int) -> Tensor:
    """A loaded RGB image as normalized network input, float32 3 x h x w (see `resized_size`); not padded."""
    size = resized_size(image_HW3.shape[0], image_HW3.shape[1], image_size, max_image_size)
    return _normalize(_unit_range(_resize(_channels_first(image_HW3), size)))


def pad_batch(images: Sequence[Tensor], divisor: int = 32) -> Tensor:
    """Stack 3 x h x w tensors as B x 3 x H x W, padded at the bottom and the right to the largest height and width and
    on to multiples of `divisor`. The padding is zero after normalization, that is the mean color.

    Raises:
        SOTRError: for no images.
    """
    if not images:
        raise SOTRError("a batch needs at least one image; give some")
    height, width = (math.ceil(max(image.shape[d] for image in images) / divisor) * divisor for d in (1, 2))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    return batch


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied; the defaults only flip."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Range of a factor on the size that preprocessing would give, drawn log-uniformly (large-scale jitter)."""
    crop: int = 0
    """Side in pixels of a random square crop, padded at the bottom and the right if the image is smaller; 0 takes
    the whole image, whose longest edge then never exceeds the configuration's cap."""
    horizontal_flip: bool = True
    """Mirror left and right in half of the cases."""
    vertical_flip: bool = False
    """Mirror top and bottom in half of the cases (microscopy, aerial images)."""
    rotate90: bool = False
    """Turn by 0, 90, 180 or 270 degrees with equal chances."""
    color: float = 0.0
    """Strength of photometric jitter: brightness, contrast and saturation vary by the factor 1 +- 0.4 color, hue by
    +- 0.1 color of the color circle; 0 is off, at most 2."""
    greyscale: float = 0.0
    """Probability of taking all color away."""
    invert: float = 0.0
    """Probability of inverting the image (bright on dark, dark on bright)."""
    copy_paste: float = 0.0
    """Probability of pasting objects of another training image into an image."""
    copy_paste_most: int = 10
    """Objects that are pasted at most."""

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise SOTRError(f"augmentation scale is {self.scale}; give two positive factors, the smaller first")
        if self.crop < 0:
            raise SOTRError(f"augmentation crop is {self.crop}; give a side in pixels, or 0 for the whole image")
        if not 0 <= self.color <= 2:
            raise SOTRError(f"augmentation color is {self.color}; it must lie in 0..2")
        if self.copy_paste_most < 1:
            raise SOTRError(f"augmentation copy_paste_most is {self.copy_paste_most}; it must be at least 1")
        for name in ("greyscale", "invert", "copy_paste"):
            if not 0 <= getattr(self, name) <= 1:
                raise SOTRError(f"augmentation {name} is {getattr(self, name)}; it is a probability in 0..1")

    @property
    def mirrors(self) -> bool:
        """Whether left may become right; turning an image does not do that."""
        return self.horizontal_flip or self.vertical_flip


@dataclass(frozen=True)
class Objects:
    """The objects of one image as augmentation wants them: nothing is rasterised yet."""

    labels_I: NDArray[np.int64]
    boxes_I4: NDArray[np.int64]
    """Tight around the mask, xyxy in pixels, half-open."""
    rles: Sequence[bytes]
    """Compressed COCO RLE strings at the image's size."""


@dataclass(frozen=True)
class Augmented:
    """A training image and its objects in the pixels of the network input."""

    image_3hw: Tensor
    """float32, normalized; with a crop, padded to the full square."""
    size: tuple[int, int]
    """(h, w) of the part of `image_3hw` that is image, not padding."""
    targets: Targets


@dataclass(frozen=True)
class _View:
    """What augmentation takes of an image: a window in its pixels, and the size to which that is brought."""

    left: int
    top: int
    right: int
    bottom: int
    size: tuple[int, int]

    @property
    def window(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left


def augment(
    image_HW3: NDArray[np.uint8],
    objects: Objects,
    augmentation: Augmentation,
    image_size: int,
    max_image_size: int,
    *,
    mask_stride: int,
    generator: np.random.Generator,
) -> Augmented:
    """Vary an image and its objects at random, and bring them to network input.

    The window is chosen first, in the pixels of the file: only it is resized, and only objects that it shows are
    rasterised, each in the part of its box that is visible. Boxes, centers of mass and the coverage of the stride's
    blocks are then exact area sums over the file's mask pixels, not resampled masks. Objects of which less than one
    pixel of network input shows vanish.

    Args:
        image_HW3: RGB image.
        objects: its objects.
        augmentation: what to vary.
        image_size, max_image_size: shortest edge and cap of the longest, before `augmentation.scale`.
        mask_stride: side, in pixels of network input, of the blocks whose coverage `Targets.masks_Ihw` holds.
        generator: source of all chance; the result is a function of its state.
    """
    view = _choose_view(image_HW3.shape[0], image_HW3.shape[1], augmentation, image_size, max_image_size, generator)
    orientation = (
        augmentation.horizontal_flip and generator.random() < 0.5,
        augmentation.vertical_flip and generator.random() < 0.5,
        int(generator.integers(4)) if augmentation.rotate90 else 0,
    )
    size = view.size if orientation[2] % 2 == 0 else view.size[::-1]
    picture = tv_tensors.Image(_channels_first(image_HW3[view.top : view.bottom, view.left : view.right]))
    picture = _resize(_orient(picture, *orientation), size).as_subclass(Tensor)
    image = _normalize(_recolor(_unit_range(picture), augmentation, generator))
    if augmentation.crop:
        image = F.pad(image, (0, augmentation.crop - size[1], 0, augmentation.crop - size[0]))
    return Augmented(image, size, _visible_targets(objects, image_HW3.shape[0], view, orientation, size, mask_stride))


def _choose_view(
    height: int, width: int, augmentation: Augmentation, image_size: int, max_image_size: int, rng: np.random.Generator
) -> _View:
    low, high = augmentation.scale
    factor = math.exp(rng.uniform(math.log(low), math.log(high)))
    if not augmentation.crop:
        size = resized_size(height, width, max(1, round(image_size * factor)), max_image_size)
        return _View(0, 0, width, height, size)
    ratio = resize_ratio(height, width, image_size, max_image_size) * factor
    window_h, window_w = (min(length, max(1, round(augmentation.crop / ratio))) for length in (height, width))
    size_h, size_w = (min(augmentation.crop, max(1, round(part * ratio))) for part in (window_h, window_w))
    top, left = int(rng.integers(height - window_h + 1)), int(rng.integers(width - window_w + 1))
    return _View(left, top, left + window_w, top + window_h, (size_h, size_w))


def _orient(item: Any, horizontal: bool, vertical: bool, quarter_turns: int) -> Any:
    """Flip and turn a tv_tensor: image, boxes or mask alike."""
    if horizontal:
        item = tvf.horizontal_flip(item)
    if vertical:
        item = tvf.vertical_flip(item)
    if quarter_turns:
        item = tvf.rotate(item, angle=90.0 * quarter_turns, expand=True)
    return item


def _recolor(image_3hw: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    """Photometric jitter of an image in 0..1."""
    if augmentation.color:
        brightness, contrast, saturation = 1 + 0.4 * augmentation.color * rng.uniform(-1, 1, 3)
        hue = 0.1 * augmentation.color * rng.uniform(-1, 1)
        image_3hw = tvf.adjust_brightness(image_3hw, brightness)
        image_3hw = tvf.adjust_contrast(image_3hw, contrast)
        # Saturation and hue leave gray images as they are, and hue is by far the most expensive of the four.
        if not _is_grey(image_3hw):
            image_3hw = tvf.adjust_hue(tvf.adjust_saturation(image_3hw, saturation), hue)
    if augmentation.greyscale and rng.random() < augmentation.greyscale:
        image_3hw = tvf.rgb_to_grayscale(image_3hw, num_output_channels=3)
    if augmentation.invert and rng.random() < augmentation.invert:
        image_3hw = tvf.invert(image_3hw)
    return image_3hw


def _is_grey(image_3hw: Tensor) -> bool:
    return torch.equal(image_3hw[0], image_3hw[1]) and torch.equal(image_3hw[1], image_3hw[2])


def _visible_targets(
    objects: Objects,
    height: int,
    view: _View,
    orientation: tuple[bool, bool, int],
    size: tuple[int, int],
    stride: int,
) -> Targets:
    """Targets of the objects that a view shows, flipped and turned, at its final `size`."""
    corner = np.array([view.left, view.top] * 2)
    parts = np.clip(objects.boxes_I4, corner, [view.right, view.bottom] * 2)
    shown = np.flatnonzero((parts[:, 0] < parts[:, 2]) & (parts[:, 1] < parts[:, 3]))
    patches = rle.patches(rle.runs_of([objects.rles[i] for i in shown.tolist()], height), parts[shown])
    places = tv_tensors.BoundingBoxes(
        torch.from_numpy(parts[shown] - corner).float(), format="XYXY", canvas_size=view.window
    )
    turned = _orient(places, *orientation)
    window = turned.canvas_size
    places_J4 = turned.as_subclass(Tensor).round().long().tolist()
    rows_hy, columns_wx = (_shares(length, new, stride) for length, new in zip(window, size, strict=True))
    scale_y, scale_x = size[0] / window[0], size[1] / window[1]

    masks = torch.zeros(len(shown), len(rows_hy), len(columns_wx), dtype=torch.uint8)
    kept: list[int] = []
    boxes, centers = [], []
    for index, (patch, (left, top, right, bottom)) in enumerate(zip(patches, places_J4, strict=True)):
        mask = torch.from_numpy(patch)
        if any(orientation):
            mask = _orient(tv_tensors.Mask(mask), *orientation).as_subclass(Tensor)
        mask = mask.float()
        per_row, per_column = mask.sum(1).numpy(), mask.sum(0).numpy()
        area = float(per_row.sum(dtype=np.float64))
        if area * scale_x * scale_y < 1:
            continue
        filled_y, filled_x = np.flatnonzero(per_row), np.flatnonzero(per_column)
        boxes.append(
            (
                (left + filled_x[0]) * scale_x,
                (top + filled_y[0]) * scale_y,
                (left + filled_x[-1] + 1) * scale_x,
                (top + filled_y[-1] + 1) * scale_y,
            )
        )
        centers.append(
            (
                (left + 0.5 + per_column @ np.arange(right - left, dtype=np.float64) / area) * scale_x,
                (top + 0.5 + per_row @ np.arange(bottom - top, dtype=np.float64) / area) * scale_y,
            )
        )
        y0, x0 = int(top * scale_y) // stride, int(left * scale_x) // stride
        y1, x1 = math.ceil(bottom * scale_y / stride), math.ceil(right * scale_x / stride)
        covered = rows_hy[y0:y1, top:bottom] @ mask @ columns_wx[x0:x1, left:right].T
        masks[len(kept), y0:y1, x0:x1] = covered.mul_(255).round_().clamp_(max=255)
        kept.append(index)
    return Targets(
        labels_I=torch.from_numpy(objects.labels_I[shown[kept]]),
        boxes_I4=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        centers_I2=torch.tensor(centers, dtype=torch.float32).reshape(-1, 2),
        masks_Ihw=masks[: len(kept)],
    )


def _shares(length: int, new_length: int, stride: int) -> Tensor:
    """(blocks, length): share of each block of `stride` pixels that each of `length` old pixels covers along an axis on
    which these are resized to `new_length`."""
    scale = new_length / length
    old = torch.arange(length, dtype=torch.float64) * scale
    block = torch.arange(math.ceil(new_length / stride), dtype=torch.float64)[:, None] * stride
    overlap = torch.minimum(old + scale, block + stride) - torch.maximum(old, block)
    return (overlap.clamp_(min=0) / stride).float()


def _channels_first(image_HW3: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image_HW3).permute(2, 0, 1)


def _resize(image_3HW: Tensor, size: tuple[int, int]) -> Tensor:
    return tvf.resize(image_3HW, list(size), interpolation=tvf.InterpolationMode.BILINEAR, antialias=True)


def _unit_range(image_3hw: Tensor) -> Tensor:
    return tvf.to_dtype(image_3hw, torch.float32, scale=True)


def _normalize(image_3hw: Tensor) -> Tensor:
    return tvf.normalize(image_3hw, list(MEAN), list(STD))
