"""Objects as plain Python values: COCO results, JSON and rows of a table."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sotr.results.instances import Instances

ROW_COLUMNS = (
    "object", "class", "category_id", "score", "area", "x_min", "y_min", "x_max", "y_max", "x_center", "y_center"
)  # fmt: skip


def coco_of(instances: "Instances", image_id: int) -> list[dict[str, Any]]:
    """See `Instances.to_coco`."""
    return [
        {
            "image_id": image_id,
            "category_id": instances.category_ids[label],
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            "segmentation": {"size": list(rle["size"]), "counts": rle["counts"]},
            "score": round(float(score), 6),
        }
        for score, label, (x0, y0, x1, y1), rle in zip(
            instances.scores_I, instances.labels_I, instances.boxes_I4, instances.rles, strict=True
        )
    ]


def json_of(instances: "Instances") -> dict[str, Any]:
    """See `Instances.to_json`."""
    classes = zip(instances.category_ids, instances.class_names, strict=True)
    objects = zip(
        instances.scores_I, instances.labels_I, instances.areas_I, instances.boxes_I4, instances.rles, strict=True
    )
    return {
        "height": instances.image_size[0],
        "width": instances.image_size[1],
        "classes": [{"id": number, "name": name} for number, name in classes],
        "objects": [
            {
                "class_name": instances.class_names[label],
                "category_id": instances.category_ids[label],
                "score": round(float(score), 6),
                "area": int(area),
                "box": [float(value) for value in box],
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"]},
            }
            for score, label, area, box, rle in objects
        ],
    }


def rows_of(instances: "Instances") -> list[dict[str, str | int | float]]:
    """See `Instances.to_rows`."""
    rows: list[dict[str, str | int | float]] = []
    for i, (score, label, area, box) in enumerate(
        zip(instances.scores_I, instances.labels_I, instances.areas_I, instances.boxes_I4, strict=True)
    ):
        mask_hw, x, y = instances.mask_crop(i)
        # Half-open pixels: the center of pixel 0 lies at 0.5. An empty mask has no center of mass.
        y_center = y + mask_hw.sum(1) @ (np.arange(mask_hw.shape[0]) + 0.5) / area if area else 0.0
        x_center = x + mask_hw.sum(0) @ (np.arange(mask_hw.shape[1]) + 0.5) / area if area else 0.0
        values = (
            i,
            instances.class_names[label],
            instances.category_ids[label],
            round(float(score), 6),
            int(area),
            *(int(value) for value in box),
            round(float(x_center), 2),
            round(float(y_center), 2),
        )
        rows.append(dict(zip(ROW_COLUMNS, values, strict=True)))
    return rows
