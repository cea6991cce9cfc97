"""What is seen in the tiles of an image, before it is known which of it belongs together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sotr.masks.run_lengths import runs_of
from sotr.results.instances import Instances
from sotr.tiling.columns import Columns, Ints, place, unite
from sotr.tiling.grid import Grid

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Views:
    """The objects of all tiles, V in number, in the order of the tiles; their masks stay compressed."""

    grid: Grid
    tiles_V: Ints
    """The tile in which each was seen."""
    scores_V: NDArray[np.float32]
    labels_V: Ints
    boxes_V4: Ints
    """xyxy in the image's pixels, half-open."""
    areas_V: Ints
    rles: Sequence[bytes]
    """Masks in their tile's pixels."""

    def __len__(self) -> int:
        return len(self.tiles_V)

    @property
    def distances_V4(self) -> Ints:
        """Pixels from each side of a box to that side of its tile; very many where that is the image's own."""
        distances_V4 = np.abs(self.boxes_V4 - self.grid.boxes_T4[self.tiles_V])
        return np.where(self.grid.inner_T4[self.tiles_V], distances_V4, np.iinfo(np.int64).max)

    def columns(self, views: Ints) -> Columns:
        """The masks of these views in the image's pixels."""
        x, y = self.grid.boxes_T4[self.tiles_V[views], :2].T
        tile_height = min(self.grid.tile, self.grid.height)
        return place(runs_of([self.rles[view] for view in views], tile_height), x, y)

    def united(self, objects: Sequence[Ints]) -> Columns:
        """The union of the views of each object."""
        groups = np.repeat(np.arange(len(objects)), [len(views) for views in objects])
        return unite(self.columns(np.concatenate([np.zeros(0, np.int64), *objects])), groups, len(objects))

    @property
    def shared_V(self) -> Bools:
        """Which views reach into pixels that another tile shows as well."""
        shared_V = np.zeros(len(self), bool)
        bounds = np.searchsorted(self.tiles_V, np.arange(len(self.grid.boxes_T4) + 1))
        for tile in np.flatnonzero(np.diff(bounds)):
            boxes_I4 = self.boxes_V4[bounds[tile] : bounds[tile + 1], None]
            others_O4 = self.grid.boxes_T4[self.grid.neighbours(int(tile))]
            low, high = np.maximum(boxes_I4, others_O4)[..., :2], np.minimum(boxes_I4, others_O4)[..., 2:]
            shared_V[bounds[tile] : bounds[tile + 1]] = np.any(np.all(high > low, axis=2), axis=1)
        return shared_V

    def meetings(self) -> Ints:
        """Pairs of views of one class whose boxes overlap, P x 2, ascending: of one tile or of two."""
        bounds = np.searchsorted(self.tiles_V, np.arange(len(self.grid.boxes_T4) + 1))
        pairs = [np.zeros((0, 2), np.int64)]
        for tile in np.flatnonzero(np.diff(bounds)):
            own = np.arange(bounds[tile], bounds[tile + 1])
            later = [np.arange(bounds[n], bounds[n + 1]) for n in self.grid.neighbours(int(tile)) if n > tile]
            other = np.concatenate([own, *later])
            low = np.maximum(self.boxes_V4[own, None, :2], self.boxes_V4[other, :2])
            high = np.minimum(self.boxes_V4[own, None, 2:], self.boxes_V4[other, 2:])
            meet = (high > low).all(2) & (self.labels_V[own, None] == self.labels_V[other]) & (own[:, None] < other)
            i, j = np.nonzero(meet)
            pairs.append(np.column_stack((own[i], other[j])))
        return np.concatenate(pairs)


def view_tiles(grid: Grid, found: Iterable[tuple[int, Instances]]) -> Views:
    """Gather the objects found in each tile, given with the tile's position, in ascending order.

    An object is left to another tile if this one's border cuts it, and the other has all that is seen of it here well
    inside and goes on where this one ends.
    """
    tiles, scores, labels, boxes, areas = [], [], [], [], []
    rles: list[bytes] = []
    for tile, instances in found:
        boxes_I4 = instances.boxes_I4.astype(np.int64) + np.tile(grid.boxes_T4[tile, :2], 2)
        index = np.flatnonzero((instances.areas_I > 0) & ~_seen_better(grid, tile, boxes_I4))
        tiles.append(np.full(len(index), tile))
        scores.append(instances.scores_I[index])
        labels.append(instances.labels_I[index])
        boxes.append(boxes_I4[index])
        areas.append(instances.areas_I[index])
        rles += [instances.rles[i]["counts"].encode("ascii") for i in index]
    # A grid has at least one tile, so that there is something to join.
    return Views(
        grid,
        np.concatenate(tiles),
        np.concatenate(scores),
        np.concatenate(labels),
        np.concatenate(boxes),
        np.concatenate(areas),
        rles,
    )


def _seen_better(grid: Grid, tile: int, boxes_I4: Ints) -> Bools:
    cut_I4 = _near_border(grid, tile, boxes_I4, grid.margin)
    better_I = np.zeros(len(boxes_I4), bool)
    for other in grid.neighbours(tile):
        further = (grid.boxes_T4[other] - grid.boxes_T4[tile]) * (-1, -1, 1, 1)
        # Twice the margin, so that no two tiles leave an object to each other.
        inside_I = ~_near_border(grid, int(other), boxes_I4, 2 * grid.margin).any(1)
        better_I |= inside_I & ((further >= 0) | ~cut_I4).all(1) & ((further > 0) & cut_I4).any(1)
    return better_I


def _near_border(grid: Grid, tile: int, boxes_I4: Ints, margin: int) -> Bools:
    """Which sides of each box lie beyond that side of the tile or nearer than `margin`; the image's own never do."""
    inside_I4 = (boxes_I4 - grid.boxes_T4[tile]) * (1, 1, -1, -1)
    return (inside_I4 < margin) & grid.inner_T4[tile]
