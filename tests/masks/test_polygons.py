"""Polygons of masks: drawn again, they are the masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from pycocotools import mask as reference

from sotr.masks.polygons import EXACT, flat, polygons, rings
from tests.scenes import random_masks

MASKS = stn.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def by_coco(found: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    if not found:
        return np.zeros(shape, np.bool_)
    parts = reference.frPyObjects([flat(polygon) for polygon in found], *shape)
    return reference.decode(reference.merge(parts)).astype(bool)


def by_centers(found: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centers lie inside, by the rule of odd crossings."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for polygon in found:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
            if y0 != y1:
                inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


@settings(max_examples=400, deadline=None)
@given(mask=MASKS, tolerance=st.sampled_from([0.0, EXACT]))
def test_any_mask_comes_back(mask: np.ndarray, tolerance: float) -> None:
    found = polygons(mask, tolerance)
    np.testing.assert_array_equal(by_coco(found, mask.shape), mask)
    np.testing.assert_array_equal(by_centers(found, mask.shape), mask)


@pytest.mark.parametrize("tolerance", [0.0, EXACT])
def test_objects_come_back_with_few_corners(tolerance: float) -> None:
    for mask in random_masks(20, 90, 140, seed=3).numpy():
        found = polygons(mask, tolerance)
        np.testing.assert_array_equal(by_coco(found, mask.shape), mask)
        np.testing.assert_array_equal(by_centers(found, mask.shape), mask)
        if tolerance:
            assert sum(map(len, found)) <= sum(map(len, polygons(mask)))


def test_a_disc_has_few_corners_and_its_area() -> None:
    y, x = np.mgrid[:80, :80] + 0.5
    for radius in (2.5, 4, 8, 15, 30):
        mask = (x - 40) ** 2 + (y - 40) ** 2 < radius**2
        (exact,) = polygons(mask, EXACT)
        np.testing.assert_array_equal(by_coco([exact], mask.shape), mask)
        assert len(exact) < len(polygons(mask)[0]) or radius == 2.5
        (rough,) = polygons(mask, 1.0)
        assert len(rough) < len(exact) or radius < 8
        both = by_coco([rough], mask.shape) & mask
        either = by_coco([rough], mask.shape) | mask
        assert both.sum() / either.sum() > 0.75


def test_one_pixel_and_nothing() -> None:
    mask = np.zeros((4, 5), np.bool_)
    assert polygons(mask) == []
    mask[1, 2] = True
    assert polygons(mask)[0].tolist() == [[2, 1], [3, 1], [3, 2], [2, 2]]


@settings(deadline=None)
@given(MASKS)
def test_rings_touch_themselves_nowhere_and_are_the_mask(mask: np.ndarray) -> None:
    parts = rings(mask)
    for part in parts:
        for ring in part:
            assert len({tuple(corner) for corner in ring.tolist()}) == len(ring)
        # By odd crossings, an outline with its holes is what is between them.
    np.testing.assert_array_equal(by_centers([ring for part in parts for ring in part], mask.shape), mask)
    areas = [sum(shoelace(ring) * (1 if i == 0 else -1) for i, ring in enumerate(part)) for part in parts]
    assert sum(areas) == mask.sum()


@pytest.mark.parametrize("seed", range(40))
def test_rings_are_valid_for_geometry_libraries(seed: int) -> None:
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 12, 2)) < rng.uniform(0.2, 0.95)
    whole = shapely.MultiPolygon([(part[0], part[1:]) for part in rings(mask)])
    assert whole.is_valid
    assert whole.area == mask.sum()


def shoelace(ring: np.ndarray) -> float:
    x, y = ring.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
