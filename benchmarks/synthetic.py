"""Made-up images and objects of which a benchmark knows the number."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sotr.data.transforms import Objects
from sotr.results.instances import encode_masks


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth RGB image with some noise, HW3: as much work for a decoder as a photo."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(9, 60) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(9, 60)) for _ in range(3)]
    noise = rng.normal(0, 8, (height, width, 3))
    return np.clip(128 + 80 * np.stack(waves, 2) + noise, 0, 255).astype(np.uint8)


def ellipses(count: int, height: int, width: int, seed: int = 0) -> NDArray[np.bool_]:
    """(count, height, width) masks, the smaller the more there are, none empty."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((count, height, width), bool)
    largest = max(6.0, 0.6 * min(height, width) / max(1.0, count**0.5))
    for mask in masks:
        cy, cx, (ry, rx) = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(largest / 4, largest, 2)
        mask |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
        mask[int(cy), int(cx)] = True
    return masks


def objects(masks_IHW: NDArray[np.bool_], num_classes: int) -> Objects:
    """The masks as augmentation wants them, their classes in turn."""
    boxes = np.zeros((len(masks_IHW), 4), np.int64)
    for box, mask in zip(boxes, masks_IHW, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    labels = np.arange(len(masks_IHW)) % num_classes
    return Objects(labels, boxes, [rle["counts"].encode() for rle in encode_masks(masks_IHW)])


def coco(pictures: int, per_picture: int, height: int, width: int, num_classes: int) -> dict[str, Any]:
    """A COCO data set of ellipses, without the image files."""
    annotations: list[dict[str, Any]] = []
    for number in range(pictures):
        for index, rle in enumerate(encode_masks(ellipses(per_picture, height, width, number))):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": index % num_classes + 1,
                    "segmentation": rle,
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": number + 1, "file_name": f"{number}.jpg", "height": height, "width": width}
            for number in range(pictures)
        ],
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": str(label)} for label in range(num_classes)],
    }
