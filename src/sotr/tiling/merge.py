"""From what was found in each tile to the objects of the image: each once and whole.

Tiles overlap, so an object is seen in several of them, whole in some, cut by the border of others. Three steps make
one object of its views:

1. A view that its tile's border cuts is dropped where another tile has it well inside and sees further: there the
   object is seen better. This needs no comparison, and settles objects smaller than the overlap.
2. What is left of cut views belongs to larger objects. Two of them continue each other if they agree where their tiles
   overlap; chains of these are united.
3. Of objects that cover each other one is kept. Views of one outline differ in how much the network saw around them,
   so that those well inside their tiles come first; where outlines differ, the higher score decides, for a doubtful
   mask in the middle of a tile must not displace a clear one that others show. Two objects of one tile are compared,
   too, if another tile shows a part of either: at a seam, what one tile reads in two ways has no second whole view that
   would settle it. Elsewhere the network's own suppression stands.

Only views in overlapping tiles are compared, and of these only those whose boxes meet.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sotr.results.instances import Instances
from sotr.tiling.columns import Ints, areas_inside, intersections
from sotr.tiling.grid import Grid
from sotr.tiling.views import Bools, Views, view_tiles

AGREE = 0.5
"""Intersection over union, where their tiles overlap, from which two cut views are parts of one object."""

COVERED = 0.5
"""Part of an object that lies in another one, from which they count as the same."""

SETTLED = 0.05
"""Part of a tile's side from its border, from which an object counts as well inside it."""

MASKS_AT_ONCE = 4096
"""Masks, or pairs of them, that are unpacked together; bounds memory."""

Many = TypeVar("Many", Ints, list[Ints])


def merge_tiles(
    grid: Grid, found: Iterable[tuple[int, Instances]], class_names: Sequence[str], category_ids: Sequence[int]
) -> Instances:
    """The objects of an image from those of its tiles.

    Args:
        grid: where the tiles lie.
        found: the position of each tile in the grid with the objects found in it, in ascending order; consumed one by
            one.
        class_names: of the M classes.
        category_ids: of the M classes.

    Returns:
        Objects of the image's size; the score of one that was put together is the mean of its parts', by area.
    """
    views = view_tiles(grid, found)
    pairs_P2 = views.meetings()
    cut_V: Bools = np.any(views.distances_V4 < grid.margin, axis=1)
    apart_P = views.tiles_V[pairs_P2[:, 0]] != views.tiles_V[pairs_P2[:, 1]]
    objects = _chains(len(views), _continued(views, pairs_P2[cut_V[pairs_P2].all(1) & apart_P]))
    scores_I = np.array([np.average(views.scores_V[chain], weights=views.areas_V[chain]) for chain in objects])
    kept = _kept(views, objects, scores_I, pairs_P2, cut_V)
    objects = [objects[i] for i in kept]

    rles: list[dict[str, object]] = []
    for chunk in _chunks(objects):
        counts = views.united(chunk).counts(grid.height, grid.width)
        rles += [{"size": [grid.height, grid.width], "counts": runs} for runs in counts]
    return Instances.from_rles(
        scores_I[kept],
        [views.labels_V[chain[0]] for chain in objects],
        rles,
        class_names,
        category_ids,
        (grid.height, grid.width),
    )


def _continued(views: Views, pairs_P2: Ints) -> Ints:
    """The pairs of views that agree where their tiles overlap."""
    agreed: list[Ints] = [np.zeros((0, 2), np.int64)]
    for chunk in _chunks(pairs_P2):
        first, second = chunk.T
        tiles_P4, others_P4 = views.grid.boxes_T4[views.tiles_V[first]], views.grid.boxes_T4[views.tiles_V[second]]
        shared_P4 = np.column_stack((np.maximum(tiles_P4, others_P4)[:, :2], np.minimum(tiles_P4, others_P4)[:, 2:]))
        a, b = views.columns(first), views.columns(second)
        both = intersections(a, b)
        either = areas_inside(a, shared_P4) + areas_inside(b, shared_P4) - both
        agreed.append(chunk[(both > 0) & (both >= AGREE * either)])
    return np.concatenate(agreed)


def _chains(count: int, links: Ints) -> list[Ints]:
    """The numbers below `count` in groups that are linked, directly or through others."""
    root = list(range(count))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    for first, second in links.tolist():
        root[find(second)] = find(first)
    chains: defaultdict[int, list[int]] = defaultdict(list)
    for number in range(count):
        chains[find(number)].append(number)
    return [np.array(chain) for chain in chains.values()]


def _kept(views: Views, objects: list[Ints], scores_I: NDArray[np.float64], pairs_P2: Ints, cut_V: Bools) -> Ints:
    """Positions of the objects that no better one covers."""
    first_view = np.array([chain[0] for chain in objects], np.int64)
    object_V = np.zeros(len(views), np.int64)
    for position, chain in enumerate(objects):
        object_V[chain] = position
    # What one tile alone shows side by side, the network has judged already.
    tiles_P2, shared_P2 = views.tiles_V[pairs_P2], views.shared_V[pairs_P2]
    pairs_P2 = object_V[pairs_P2[(tiles_P2[:, 0] != tiles_P2[:, 1]) | shared_P2.any(1)]]
    pairs_P2 = np.unique(np.sort(pairs_P2[pairs_P2[:, 0] != pairs_P2[:, 1]], axis=1), axis=0)

    areas_I = np.zeros(len(objects), np.int64)
    shared_P: list[Ints] = [np.zeros(0, np.int64)]
    for chunk in _chunks(pairs_P2):
        involved = np.unique(chunk)
        masks = views.united([objects[i] for i in involved])
        areas_I[involved] = masks.areas
        first, second = np.searchsorted(involved, chunk).T
        shared_P.append(intersections(masks.take(first), masks.take(second)))

    # Whole objects first, those well inside their tile ahead, then by score; then cut ones, the largest ahead.
    cut_I, depth_I = cut_V[first_view], views.distances_V4.min(1)[first_view]
    merit_I = np.where(cut_I, areas_I, scores_I)
    rank_I = np.empty(len(objects), np.int64)
    rank_I[np.lexsort((-merit_I, depth_I < SETTLED * views.grid.tile, cut_I))] = np.arange(len(objects))
    better, worse = np.where((rank_I[pairs_P2[:, 0]] < rank_I[pairs_P2[:, 1]])[:, None], pairs_P2, pairs_P2[:, ::-1]).T
    # A large object that is seen in parts does not go because a small one lies in it.
    smaller = np.where(cut_I[worse], areas_I[worse], np.minimum(areas_I[better], areas_I[worse]))
    covered = np.concatenate(shared_P) >= COVERED * smaller
    kept = np.ones(len(objects), bool)
    # In order, for one that is itself covered removes nothing.
    order = np.argsort(rank_I[better[covered]], kind="stable")
    for i, j in zip(better[covered][order].tolist(), worse[covered][order].tolist(), strict=True):
        kept[j] &= not kept[i]
    return np.flatnonzero(kept)


def _chunks(items: Many) -> Iterator[Many]:
    return (items[start : start + MASKS_AT_ONCE] for start in range(0, len(items), MASKS_AT_ONCE))
