"""Size, shape and intensities of objects, as scikit-image and ImageJ define them."""

import math
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sotr.errors import SOTRError

if TYPE_CHECKING:
    from sotr.results.instances import Instances

SHAPE_COLUMNS = (
    "label", "equivalent_diameter_px", "perimeter_px", "major_axis_px", "minor_axis_px",
    "eccentricity", "solidity", "orientation_deg",
    "area_um2", "equivalent_diameter_um", "perimeter_um", "major_axis_um", "minor_axis_um",
    "x_center_um", "y_center_um",
)  # fmt: skip
"""The columns of shapes. `label` is the object's number in a label image."""

INTENSITY_COLUMNS = ("mean", "min", "max", "sum")
"""Of each channel; the names begin with c1_, c2_ and so on."""

SQUARE = 0.01
"""Share by which a pixel's sides may differ; lengths along no axis have no size in micrometers beyond that."""

Row = dict[str, str | int | float | None]

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_NEIGHBORS = np.array([[10, 2, 10], [2, 1, 2], [10, 2, 10]], np.uint8)
# The length of the outline at a border pixel, by its neighbors on the border (Benkrid and Crookes, as in scikit-image).
_LENGTHS = np.zeros(50)
_LENGTHS[[5, 7, 15, 17, 25, 27]] = 1
_LENGTHS[[21, 33]] = math.sqrt(2)
_LENGTHS[[13, 23]] = (1 + math.sqrt(2)) / 2


def measure(instances: "Instances", image: NDArray[Any] | None, pixel_size_um: tuple[float, float] | None) -> list[Row]:
    """See `Instances.measure`."""
    if image is not None and image.shape[:2] != instances.image_size:
        raise SOTRError(f"an image of {image.shape[:2]} does not fit masks of {instances.image_size} (height, width)")
    rows: list[Row] = []
    for i, row in enumerate(instances.to_rows()):
        mask_hw, x, y = instances.mask_crop(i)
        measured: Row = {**row, "label": i + 1, **_shape(mask_hw)}
        measured |= _in_micrometers(measured, pixel_size_um)
        if image is not None:
            crop = image[y : y + mask_hw.shape[0], x : x + mask_hw.shape[1]]
            measured |= _intensities(crop[mask_hw])
        rows.append(measured)
    return rows


def _shape(mask_hw: NDArray[np.bool_]) -> Row:
    area = int(mask_hw.sum())
    names = SHAPE_COLUMNS[1:8]
    if not area:
        return dict.fromkeys(names)
    y, x = np.nonzero(mask_hw)
    dx, dy = x - x.mean(), y - y.mean()
    xx, yy, xy = (dx @ dx) / area, (dy @ dy) / area, (dx @ dy) / area
    spread = math.hypot(xx - yy, 2 * xy)
    large, small = (xx + yy + spread) / 2, max(0.0, (xx + yy - spread) / 2)
    angle = -math.degrees(0.5 * math.atan2(2 * xy, xx - yy))
    values = (
        2 * math.sqrt(area / math.pi),
        _perimeter(mask_hw),
        4 * math.sqrt(large),
        4 * math.sqrt(small),
        math.sqrt(max(0.0, 1 - small / large)) if large else 0.0,
        area / _hull_area(mask_hw),
        angle if angle > -90 else 90.0,
    )
    return {name: round(value, 4) for name, value in zip(names, values, strict=True)}


def _perimeter(mask_hw: NDArray[np.bool_]) -> float:
    """The length of the line through the middles of the border's pixels, holes included."""
    inside = np.pad(mask_hw, 1).astype(np.uint8)
    border = inside - cv2.erode(inside, _CROSS)
    kinds = cv2.filter2D(border, cv2.CV_8U, _NEIGHBORS, borderType=cv2.BORDER_CONSTANT)
    return float(_LENGTHS @ np.bincount(np.minimum(kinds, 49).ravel(), minlength=50))


def _hull_area(mask_hw: NDArray[np.bool_]) -> float:
    """The area of the convex hull of the pixels' corners."""
    rows = np.flatnonzero(mask_hw.any(1))
    left = mask_hw[rows].argmax(1)
    right = mask_hw.shape[1] - mask_hw[rows, ::-1].argmax(1)
    corners = [np.stack([x, y], 1) for x in (left, right) for y in (rows, rows + 1)]
    return float(cv2.contourArea(cv2.convexHull(np.concatenate(corners).astype(np.int32))))


def _in_micrometers(row: Row, pixel_size_um: tuple[float, float] | None) -> Row:
    names = SHAPE_COLUMNS[8:]
    if pixel_size_um is None:
        return dict.fromkeys(names)
    width, height = pixel_size_um

    def times(name: str, factor: float | None) -> float | None:
        value = row[name]
        return None if factor is None or value is None else float(f"{float(value) * factor:.6g}")

    side = math.sqrt(width * height) if abs(width / height - 1) <= SQUARE else None
    lengths = [times(name.replace("_um", "_px"), side) for name in names[1:5]]
    values = (times("area", width * height), *lengths, times("x_center", width), times("y_center", height))
    return dict(zip(names, values, strict=True))


def _intensities(values: NDArray[Any]) -> Row:
    """Of pixels, or pixels x channels."""
    row: Row = {}
    for number, channel in enumerate(np.atleast_2d(values.T), 1):
        exact = channel.dtype.kind in "bui"
        if not len(channel):
            found: tuple[int | float | None, ...] = (None,) * 4
        elif exact:
            total = int(channel.sum(dtype=np.int64))
            found = (round(total / len(channel), 4), int(channel.min()), int(channel.max()), total)
        else:
            numbers = channel.astype(np.float64)
            found = tuple(float(f"{v:.6g}") for v in (numbers.mean(), numbers.min(), numbers.max(), numbers.sum()))
        row |= {f"c{number}_{name}": value for name, value in zip(INTENSITY_COLUMNS, found, strict=True)}
    return row
