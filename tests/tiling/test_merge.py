"""Merging of tiles, on a segmenter that returns the true objects, cut where its tile ends."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sotr.results.instances import Instances
from sotr.tiling import Grid, merge_tiles

NAMES, IDS = ("disc", "bar"), (3, 17)


def oracle(labels_HW: NDArray[np.int64], box: NDArray[np.int64]) -> Instances:
    """The part of each object of a map (0 is background) inside a tile; class and score go by its number."""
    x0, y0, x1, y1 = box
    part = labels_HW[y0:y1, x0:x1]
    numbers = np.setdiff1d(np.unique(part), [0])
    masks = part == numbers[:, None, None]
    return Instances.from_masks(0.5 + numbers / 1000, numbers % 2, masks, NAMES, IDS)


def merged(labels_HW: NDArray[np.int64], tile: int, overlap: float) -> Instances:
    grid = Grid(*labels_HW.shape, tile, overlap)
    found = ((position, oracle(labels_HW, box)) for position, box in enumerate(grid.boxes_T4))
    return merge_tiles(grid, found, NAMES, IDS)


def assert_recovered(labels_HW: NDArray[np.int64], tile: int, overlap: float) -> None:
    whole = oracle(labels_HW, np.array([0, 0, *labels_HW.shape[::-1]]))
    result = merged(labels_HW, tile, overlap)
    assert result.image_size == whole.image_size
    assert np.allclose(result.scores_I, whole.scores_I)
    assert result.labels_I.tolist() == whole.labels_I.tolist()
    assert result.rles == whole.rles


@st.composite
def scenes(draw: st.DrawFn) -> NDArray[np.int64]:
    """Ellipses, bars, rings and crosses of all sizes, cut by the ones painted over them."""
    height, width = draw(st.integers(1, 260)), draw(st.integers(1, 260))
    labels_HW = np.zeros((height, width), np.int64)
    y, x = np.mgrid[:height, :width]
    for number in range(1, draw(st.integers(0, 9)) + 1):
        cy, cx = draw(st.integers(-20, height + 20)), draw(st.integers(-20, width + 20))
        ry, rx = draw(st.integers(1, 120)), draw(st.integers(1, 120))
        dy, dx = np.abs(y - cy) / ry, np.abs(x - cx) / rx
        round_ = dy**2 + dx**2
        kind = draw(st.integers(0, 3))
        mask = (
            round_ <= 1,
            (dy <= 1) & (dx <= 1),
            (round_ <= 1) & (round_ > 0.6),
            (dy <= 1) & (dx <= 1) & (dy * dx < 0.1),
        )
        labels_HW[mask[kind]] = number
    return one_piece_each(labels_HW)


def one_piece_each(labels_HW: NDArray[np.int64]) -> NDArray[np.int64]:
    """The map with each connected piece as an object of its own."""
    import cv2

    pieces = np.zeros_like(labels_HW)
    for number in np.setdiff1d(np.unique(labels_HW), [0]):
        _, own = cv2.connectedComponents((labels_HW == number).astype(np.uint8), connectivity=4)
        pieces[own > 0] = own[own > 0] + pieces.max()
    return pieces


@settings(deadline=None, max_examples=80)
@given(scenes(), st.integers(32, 130), st.floats(0.01, 0.5))
def test_objects_come_back_exactly(labels_HW: NDArray[np.int64], tile: int, overlap: float) -> None:
    assert_recovered(labels_HW, tile, overlap)


Bar = tuple[int, int, float, int]
"""First and last column (half-open) in the image, score and class of an object 20 pixels high."""


def bars(width: int, overlap: float, *tiles: list[Bar]) -> list[tuple[int, int, float]]:
    """What becomes of bars that tiles of 100 x 100 show side by side: first and last column, and score."""
    grid = Grid(100, width, 100, overlap)
    assert len(grid.boxes_T4) == len(tiles)
    found = []
    for (x0, *_), shown in zip(grid.boxes_T4.tolist(), tiles, strict=True):
        masks = np.zeros((len(shown), 100, 100), bool)
        for mask, (start, end, *_) in zip(masks, shown, strict=True):
            mask[40:60, max(0, start - x0) : max(0, end - x0)] = True
        found.append(Instances.from_masks([s for *_, s, _ in shown], [c for *_, c in shown], masks, NAMES, IDS))
    result = merge_tiles(grid, enumerate(found), NAMES, IDS)
    columns = result.boxes_I4[:, [0, 2]].astype(int).tolist()
    return [(*column, round(float(score), 2)) for column, score in zip(columns, result.scores_I, strict=True)]


def test_a_fragment_beside_its_object_goes_where_another_tile_shows_a_part_of_either() -> None:
    whole, fragment, cut = (60, 95, 0.6, 0), (60, 78, 0.33, 0), (80, 95, 0.6, 0)
    assert bars(180, 0.2, [whole, fragment], [cut]) == [(60, 95, 0.6)]
    assert bars(180, 0.2, [fragment, whole], []) == [(60, 95, 0.6)]
    # Of another class it is another thing.
    assert len(bars(180, 0.2, [whole, (60, 78, 0.33, 1)], [cut])) == 2
    # Neighbors that overlap by less than half are two.
    assert bars(180, 0.2, [(30, 62, 0.4, 0), whole], [cut]) == [(60, 95, 0.6), (30, 62, 0.4)]


def test_what_only_one_tile_sees_is_left_as_the_network_judged_it() -> None:
    whole, fragment = (10, 45, 0.6, 0), (10, 28, 0.33, 0)
    assert bars(180, 0.2, [whole, fragment], []) == [(10, 45, 0.6), (10, 28, 0.33)]
    assert bars(100, 0.2, [whole, fragment]) == [(10, 45, 0.6), (10, 28, 0.33)]


def test_a_doubtful_mask_in_the_middle_of_a_tile_does_not_displace_a_clear_one() -> None:
    # The doubtful one is deeper in the first tile than the clear one is in any.
    first, second = [(68, 86, 0.8, 0), (56, 80, 0.37, 0)], [(68, 86, 0.82, 0)]
    assert bars(150, 0.5, first, second) == [(68, 86, 0.82)]
    # Of two views of one outline, the one well inside its tile is better than the surer one near a border.
    assert bars(150, 0.5, [(76, 96, 0.9, 0)], [(76, 97, 0.7, 0)]) == [(76, 97, 0.7)]
