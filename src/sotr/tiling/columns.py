"""Masks as pieces of image columns: placed, measured, compared and united many at a time.

A mask in a tile is moved into the whole image, cut to a rectangle or joined to its continuation in the next tile
without a pixel of it being drawn, so that neither the image's size nor the number of its objects takes memory.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sotr.masks.run_lengths import Runs

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """I masks in an image's pixels; mask i owns the pieces `offsets[i]:offsets[i + 1]`, left to right, downwards.

    A piece is the pixels `top` to `bottom` (half-open) of column `x`. Pieces of a mask do not overlap.
    """

    x: Ints
    top: Ints
    bottom: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def owner(self) -> Ints:
        """The mask of each piece."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def areas(self) -> Ints:
        """Pixels of each mask."""
        return self.sums(self.bottom - self.top)

    def sums(self, values: Ints) -> Ints:
        """The sum of each mask's pieces' values."""
        total = np.concatenate(([0], np.cumsum(values)))
        return total[self.offsets[1:]] - total[self.offsets[:-1]]

    def take(self, index: Ints) -> "Columns":
        """The masks at these positions, in this order; repetitions are allowed."""
        sizes = np.diff(self.offsets)[index]
        offsets = _offsets(sizes)
        pieces = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][index] - offsets[:-1], sizes)
        return Columns(self.x[pieces], self.top[pieces], self.bottom[pieces], offsets)

    def counts(self, height: int, width: int) -> list[list[int]]:
        """COCO run lengths of each mask in an image of that size."""
        edges = np.column_stack((self.x * height + self.top, self.x * height + self.bottom))
        return [
            _run_lengths(edges[low:high], height * width)
            for low, high in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)
        ]


def _run_lengths(edges: Ints, pixels: int) -> list[int]:
    """Run lengths of runs given by start and end, of which one may begin where the one before it ends."""
    goes_on = edges[1:, 0] == edges[:-1, 1]
    starts, ends = edges[np.append(True, ~goes_on), 0], edges[np.append(~goes_on, True), 1]
    lengths: list[int] = np.diff(np.column_stack((starts, ends)).ravel(), prepend=0, append=pixels).tolist()
    return lengths if lengths[-1] else lengths[:-1]


def place(runs: Runs, x_I: Ints, y_I: Ints) -> Columns:
    """Masks of tiles in the pixels of the image; (x, y) is the top-left pixel of each mask's tile."""
    heights = np.repeat(runs.heights_I, np.diff(runs.offsets))
    first, last = runs.starts // heights, (runs.ends - 1) // heights
    pieces = last - first + 1
    # A run that goes on in the next column is cut there.
    run = np.repeat(np.arange(len(pieces)), pieces)
    step = np.arange(len(run)) - np.repeat(_offsets(pieces)[:-1], pieces)
    height, column = heights[run], first[run] + step
    top = np.where(step == 0, runs.starts[run] - column * height, 0)
    bottom = np.where(column == last[run], runs.ends[run] - column * height, height)
    offsets = _offsets(pieces)[runs.offsets]
    owner = np.repeat(np.arange(len(runs)), np.diff(offsets))
    return Columns(column + x_I[owner], top + y_I[owner], bottom + y_I[owner], offsets)


def areas_inside(columns: Columns, boxes_I4: Ints) -> Ints:
    """Pixels of each mask inside its rectangle, xyxy, half-open."""
    left, upper, right, lower = boxes_I4[columns.owner].T
    length = np.minimum(columns.bottom, lower) - np.maximum(columns.top, upper)
    return columns.sums(np.where((columns.x >= left) & (columns.x < right), length.clip(min=0), 0))


def intersections(first: Columns, second: Columns) -> Ints:
    """Pixels that mask i of the one shares with mask i of the other."""
    if not len(second.x):
        return np.zeros(len(first), np.int64)
    # Each mask gets a range of numbers of its own, each column a part of it.
    column = max(first.bottom.max(initial=0), second.bottom.max())
    mask = column * (1 + max(first.x.max(initial=0), second.x.max()))
    base = second.owner * mask + second.x * column
    starts, ends = base + second.top, base + second.bottom
    covered = np.concatenate(([0], np.cumsum(ends - starts)))

    def before(place: Ints) -> Ints:
        """Pixels of any of `second` that come before a number."""
        piece = np.searchsorted(starts, place, side="right") - 1
        return np.where(piece < 0, 0, covered[piece] + np.minimum(place, ends[piece]) - starts[piece])

    base = first.owner * mask + first.x * column
    return first.sums(before(base + first.bottom) - before(base + first.top))


def unite(columns: Columns, groups_I: Ints, count: int) -> Columns:
    """The union of each group of masks.

    Args:
        columns: I masks.
        groups_I: the group of each, 0..count - 1.
        count: how many groups there are.
    """
    group = groups_I[columns.owner]
    order = np.lexsort((columns.top, columns.x, group))
    group, x, top, bottom = group[order], columns.x[order], columns.top[order], columns.bottom[order]
    # Pieces of one column are brought into one where they touch: each starts where no earlier one reaches.
    apart = np.ones(len(x), bool)
    apart[1:] = (group[1:] != group[:-1]) | (x[1:] != x[:-1])
    column = np.cumsum(apart) * (int(bottom.max(initial=0)) + 1)
    reach = np.maximum.accumulate(column + bottom)
    starts = apart.copy()
    starts[1:] |= (column + top)[1:] > reach[:-1]
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(x)) - 1 if len(x) else first
    offsets = np.searchsorted(group[first], np.arange(count + 1))
    return Columns(x[first], top[first], (reach - column)[last], offsets.astype(np.int64))


def _offsets(sizes: Ints) -> Ints:
    return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
