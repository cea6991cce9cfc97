"""Merging of tiles, on a segmenter that returns the true objects, cut where its tile ends."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sotr.instances import Instances
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
