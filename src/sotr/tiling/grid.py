"""Where the tiles of an image lie."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sotr.errors import SOTRError

MIN_TILE = 32
"""Smallest tile, in pixels."""

OVERLAP = 0.2
"""Part of a tile's side that it shares with the next one, where nothing else is asked for."""


@dataclass(frozen=True)
class Grid:
    """Overlapping tiles that cover an image; all have the same size, so that a network sees them at one scale.

    They are spread evenly: two neighbors share `overlap` of their side, or somewhat more.
    """

    height: int
    """Of the image, in pixels."""
    width: int
    """Of the image, in pixels."""
    tile: int
    """Side of a tile in pixels; the image's own side where that is shorter."""
    overlap: float = OVERLAP
    """Least part of a tile's side that it shares with the next one, above 0 and at most 0.5."""

    def __post_init__(self) -> None:
        check_tiles(self.tile, self.overlap)

    @cached_property
    def boxes_T4(self) -> NDArray[np.int64]:
        """The tiles row by row: xyxy in pixels, half-open."""
        x = _starts(self.width, self.tile, self.overlap)
        y = _starts(self.height, self.tile, self.overlap)
        top, left = (axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))
        return np.column_stack((left, top, left + min(self.tile, self.width), top + min(self.tile, self.height)))

    @cached_property
    def inner_T4(self) -> NDArray[np.bool_]:
        """Which sides of each tile lie inside the image, and may cut an object."""
        return self.boxes_T4 != (0, 0, self.width, self.height)

    @property
    def margin(self) -> int:
        """Pixels from a tile's border within which an object counts as cut by it: masks may end just short of it."""
        return max(1, round(self.tile / 100))

    def neighbours(self, tile: int) -> NDArray[np.int64]:
        """The other tiles that share pixels with this one, in ascending order."""
        per_row = len(_starts(self.width, self.tile, self.overlap))
        row, column = divmod(tile, per_row)
        # At an overlap of one half, the third next tile is the first that is surely out of reach.
        rows = np.arange(max(0, row - 3), min(len(self.boxes_T4) // per_row, row + 4))
        columns = np.arange(max(0, column - 3), min(per_row, column + 4))
        near = (rows[:, None] * per_row + columns).ravel()
        low = np.maximum(self.boxes_T4[near, :2], self.boxes_T4[tile, :2])
        high = np.minimum(self.boxes_T4[near, 2:], self.boxes_T4[tile, 2:])
        return near[(high > low).all(1) & (near != tile)]


def check_tiles(tile: int, overlap: float) -> None:
    """Refuse tiles that cannot be.

    Raises:
        SOTRError: names the setting.
    """
    if tile < MIN_TILE:
        raise SOTRError(f"tile is {tile}; it must be at least {MIN_TILE} pixels")
    if not 0 < overlap <= 0.5:
        raise SOTRError(f"overlap is {overlap}; it must be above 0 and at most 0.5")


def _starts(length: int, tile: int, overlap: float) -> NDArray[np.int64]:
    shared = max(1, math.ceil(tile * overlap))
    count = 1 if length <= tile else math.ceil((length - shared) / (tile - shared))
    return np.linspace(0, max(0, length - tile), count).round().astype(np.int64)
