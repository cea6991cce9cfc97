"""Masks as polygons whose pixels are the mask's.

An outline runs along the edges of pixels: pixel (x, y) covers x..x + 1 and y..y + 1. Drawn by COCO's tools, or by any
that takes the pixels whose centers lie inside, such a polygon gives back the mask. COCO has no way to write a hole, so
a cut of no width leads from the outline around it.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

EXACT = 0.35
"""Up to this tolerance, in pixels, simplified polygons still give back the mask: the centers of pixels are farther away
from an outline through the middles of the pixels' edges."""

Polygon = NDArray[np.float64]
"""Corners x 2, x and y in pixels; the last is joined to the first."""

Corner = tuple[int, int]


def polygons(mask_hw: NDArray[np.bool_], tolerance: float = 0.0) -> list[Polygon]:
    """The outline of each part of a mask, holes cut in; parts that touch at corners are one.

    Args:
        mask_hw: rows x columns.
        tolerance: pixels by which a polygon may leave the outline to have fewer corners. At 0 all corners of pixels
            stay. Up to `EXACT` the polygons of a mask still give back its pixels.
    """
    if not mask_hw.any():
        return []
    outlines = [np.array(outline, np.float64) for outline in _outlines(mask_hw)]
    if tolerance <= 0:
        return outlines
    found = []
    for outline in outlines:
        simple = _simplified(outline, tolerance)
        # Up to EXACT, a part whose polygon would give other pixels keeps its outline.
        better = len(simple) < len(outline) and (tolerance > EXACT or _same_pixels(simple, outline, mask_hw.shape))
        found.append(simple if better else outline)
    return found


def rings(mask_hw: NDArray[np.bool_]) -> list[list[Polygon]]:
    """The parts of a mask as simple-features tools want them (GeoJSON, shapely, JTS): of each its outline, then its
    holes. No line crosses or touches itself, so that pixels that touch at corners are two parts. Outlines run
    counterclockwise as they are seen, holes clockwise.

    Args:
        mask_hw: rows x columns.
    """
    if not mask_hw.any():
        return []
    _, parts_hw = cv2.connectedComponents(mask_hw.astype(np.uint8), connectivity=4)
    outer: dict[int, list[Polygon]] = {}
    holes: list[tuple[int, Polygon]] = []
    for loop in (simple for whole in _loops(mask_hw, joined=False) for simple in _simple(whole)):
        x, y = min(loop, key=lambda corner: (corner[1], corner[0]))
        if mask_hw[y, x]:
            outer[int(parts_hw[y, x])] = [_turned(loop, clockwise=False)]
        else:
            holes.append((int(parts_hw[y - 1, x]), _turned(loop, clockwise=True)))
    for part, hole in holes:
        outer[part].append(hole)
    return list(outer.values())


def _turned(loop: list[Corner], clockwise: bool) -> Polygon:
    ring = np.array(loop, np.float64)
    after = np.roll(ring, -1, 0)
    is_clockwise = float((ring[:, 0] * after[:, 1] - after[:, 0] * ring[:, 1]).sum()) > 0  # y points down
    return ring if is_clockwise == clockwise else ring[::-1]


def _simple(loop: list[Corner]) -> Iterator[list[Corner]]:
    """The loops into which one falls apart where it comes to a corner again."""
    line: list[Corner] = []
    places: dict[Corner, int] = {}
    for corner in loop:
        if corner in places:
            first = places[corner]
            yield line[first:]
            for gone in line[first:]:
                del places[gone]
            del line[first:]
        places[corner] = len(line)
        line.append(corner)
    yield line


def flat(polygon: Polygon) -> list[float]:
    """A polygon as COCO has it: [x1, y1, x2, y2, ...]."""
    return [float(value) for value in polygon.ravel()]


def _same_pixels(first: Polygon, second: Polygon, shape: tuple[int, ...]) -> bool:
    one, other = coco_mask.frPyObjects([flat(first), flat(second)], shape[0], shape[1])
    return bool(one["counts"] == other["counts"])


def _simplified(outline: Polygon, tolerance: float) -> Polygon:
    """Fewer corners: those of the line through the middles of the edges of pixels that need them."""
    steps = np.roll(outline, -1, 0) - outline
    lengths = np.abs(steps).sum(1).astype(np.int64)
    edge = np.repeat(np.arange(len(outline)), lengths)
    along = np.arange(len(edge)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 0.5
    middles = outline[edge] + np.sign(steps[edge]) * along[:, None]
    simple = cv2.approxPolyDP(middles.astype(np.float32)[:, None], tolerance, closed=True)[:, 0].astype(np.float64)
    return simple if len(simple) >= 3 else outline


def _outlines(mask_hw: NDArray[np.bool_]) -> list[list[Corner]]:
    """Each part's corners of pixels in turn, with cuts to its holes."""
    loops = _loops(mask_hw)
    _, parts_hw = cv2.connectedComponents(mask_hw.astype(np.uint8), connectivity=8)
    outer: dict[int, list[Corner]] = {}
    holes: list[tuple[int, list[Corner]]] = []
    for loop in loops:
        first = min(range(len(loop)), key=lambda i: (loop[i][1], loop[i][0]))
        loop = loop[first:] + loop[:first]
        x, y = loop[0]
        if mask_hw[y, x]:
            outer[int(parts_hw[y, x])] = loop
        else:
            holes.append((int(parts_hw[y - 1, x]), loop))
    # What lies above a hole is its part's outline, or a hole that begins higher and has been cut in.
    for part, hole in sorted(holes, key=lambda item: item[1][0][1]):
        outer[part] = _cut(outer[part], hole, mask_hw)
    return list(outer.values())


def _cut(outline: list[Corner], hole: list[Corner], mask_hw: NDArray[np.bool_]) -> list[Corner]:
    """The outline with a cut from above to the hole's first corner and around it."""
    x, y = hole[0]
    column = mask_hw[:y, x]
    above = np.flatnonzero(~column)
    top = int(above[-1]) + 1 if len(above) else 0
    for i, (x0, y0) in enumerate(outline):
        x1, y1 = outline[(i + 1) % len(outline)]
        if y0 == y1 == top and min(x0, x1) <= x and max(x0, x1) >= x + 1:
            return [*outline[: i + 1], (x, top), *hole, hole[0], (x, top), *outline[i + 1 :]]
    raise AssertionError("a hole without an outline above it")


def _loops(mask_hw: NDArray[np.bool_], joined: bool = True) -> list[list[Corner]]:
    """The closed lines between mask and background, as corners in turn.

    Args:
        joined: whether two pixels that touch at a corner are one part.
    """
    padded = np.pad(mask_hw, 1).astype(np.int8)
    upper_left, upper_right, lower_left, lower_right = (
        padded[:-1, :-1],
        padded[:-1, 1:],
        padded[1:, :-1],
        padded[1:, 1:],
    )
    total = upper_left + upper_right + lower_left + lower_right
    saddle = (total == 2) & (upper_left == lower_right)
    y, x = np.nonzero((total % 2 == 1) | saddle)
    copies = 1 + saddle[y, x]
    # A corner at which two pixels touch occurs twice. The first copy has the edge to the left, the second the one to
    # the right; which has the upper one decides whether the pixels are one part.
    falling = upper_left[y, x].astype(bool)
    x, y, falling = np.repeat(x, copies), np.repeat(y, copies), np.repeat(falling, copies)
    second = np.concatenate(([False], (x[1:] == x[:-1]) & (y[1:] == y[:-1])))[: len(x)]
    twice = np.repeat(copies == 2, copies)
    by_row = np.lexsort((second, x, y))
    by_column = np.lexsort((np.where(twice & (falling == joined), ~second, second), y, x))
    across, along = (_partners(order) for order in (by_row, by_column))
    corners = list(zip(x.tolist(), y.tolist(), strict=True))
    loops, seen = [], [False] * len(corners)
    for start in range(len(corners)):
        loop, at, row = [], start, True
        while not seen[at]:
            seen[at] = True
            loop.append(corners[at])
            at, row = (across if row else along)[at], not row
        if loop:
            loops.append(loop)
    return loops


def _partners(order: NDArray[np.int64]) -> list[int]:
    """The other end of the edge of each corner: along a line, corners make pairs."""
    partners = np.empty(len(order), np.int64)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners.tolist()
