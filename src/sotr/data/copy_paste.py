"""Copy-paste augmentation (Ghiasi et al. 2021): objects of one image put into another, masks and all."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from sotr.data.transforms import Objects


@dataclass(frozen=True)
class Scene:
    """An image and its objects, before any augmentation."""

    image_HW3: NDArray[np.uint8]
    objects: Objects


def paste(onto: Scene, source: Scene, most: int, generator: np.random.Generator) -> Scene:
    """Put some objects of `source`, each at a random place and mirrored in half of the cases, into a copy of `onto`.

    Pixels are copied, not resampled, so the masks remain exact. An object below another loses the pixels that it hides;
    one of which nothing is left vanishes. What would lie outside the image is cut off.

    Args:
        onto: the image that gets objects.
        source: the image that they are copied from.
        most: objects to paste at most.
        generator: source of all chance; the result is a function of its state.
    """
    count = len(source.objects.rles)
    if count == 0 or most < 1:
        return onto
    image = onto.image_HW3.copy()
    height, width = image.shape[:2]
    chosen = generator.permutation(count)[: int(generator.integers(1, min(most, count) + 1))]
    covers: list[tuple[NDArray[np.bool_], int, int]] = []  # patches with their left and top, bottom-most first
    labels: list[int] = []
    for index in chosen.tolist():
        left, top, right, bottom = map(int, source.objects.boxes_I4[index])
        if right <= left or bottom <= top:
            continue
        mask = _decode(source.objects.rles[index], source.image_HW3.shape[:2])[top:bottom, left:right]
        pixels = source.image_HW3[top:bottom, left:right]
        if generator.random() < 0.5:
            mask, pixels = mask[:, ::-1], pixels[:, ::-1]
        # Anywhere, as long as the middle of its box is inside.
        x = int(generator.integers(width)) - (right - left) // 2
        y = int(generator.integers(height)) - (bottom - top) // 2
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + right - left, width), min(y + bottom - top, height)
        mask, pixels = mask[y0 - y : y1 - y, x0 - x : x1 - x], pixels[y0 - y : y1 - y, x0 - x : x1 - x]
        if not mask.any():
            continue
        image[y0:y1, x0:x1][mask] = pixels[mask]
        covers.append((np.ascontiguousarray(mask), x0, y0))
        labels.append(int(source.objects.labels_I[index]))

    kept: list[tuple[int, bytes, tuple[int, int, int, int]]] = []
    for index, rle in enumerate(onto.objects.rles):
        box = tuple(int(side) for side in onto.objects.boxes_I4[index])
        hiding = [cover for cover in covers if _overlap(box, cover)]
        if not hiding:
            kept.append((int(onto.objects.labels_I[index]), rle, (box[0], box[1], box[2], box[3])))
        else:
            _keep(kept, int(onto.objects.labels_I[index]), _decode(rle, (height, width)), hiding)
    for index, (mask, x, y) in enumerate(covers):
        whole = np.zeros((height, width), np.bool_)
        whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        _keep(kept, labels[index], whole, covers[index + 1 :])
    return Scene(
        image,
        Objects(
            np.array([label for label, _, _ in kept], np.int64),
            np.array([box for _, _, box in kept], np.int64).reshape(-1, 4),
            [rle for _, rle, _ in kept],
        ),
    )


def _overlap(box: tuple[int, ...], cover: tuple[NDArray[np.bool_], int, int]) -> bool:
    mask, x, y = cover
    return box[0] < x + mask.shape[1] and x < box[2] and box[1] < y + mask.shape[0] and y < box[3]


def _keep(
    kept: list[tuple[int, bytes, tuple[int, int, int, int]]],
    label: int,
    mask_HW: NDArray[np.bool_],
    hiding: list[tuple[NDArray[np.bool_], int, int]],
) -> None:
    """Add an object without the pixels that those over it hide, unless nothing is left."""
    for cover, x, y in hiding:
        mask_HW[y : y + cover.shape[0], x : x + cover.shape[1]] &= ~cover
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if len(rows):
        box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        kept.append((label, _encode(mask_HW), box))


def _decode(rle: bytes, size: tuple[int, ...]) -> NDArray[np.bool_]:
    decoded: NDArray[np.uint8] = coco_mask.decode({"size": list(size), "counts": rle})
    return np.ascontiguousarray(decoded).view(np.bool_)


def _encode(mask_HW: NDArray[np.bool_]) -> bytes:
    encoded: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask_HW, np.uint8))
    counts = encoded["counts"]
    return counts if isinstance(counts, bytes) else counts.encode("ascii")
