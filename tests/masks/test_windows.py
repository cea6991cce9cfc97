"""Parts of the image that hold all pixels of masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sotr.masks.resize import to_picture
from sotr.masks.windows import WHOLE, windows_of


def blobs(count, h, w, seed, level=0.0):
    """Maps that are positive in a rectangle or two each, some nowhere, every fourth nearly everywhere, and every fifth
    as good as at the level in a rectangle, where rounding decides."""
    rng = np.random.default_rng(seed)
    maps_Ihw = -rng.random((count, h, w), np.float32)
    maps_Ihw[1::4] = rng.random(maps_Ihw[1::4].shape) * 3 - 0.1
    maps_Ihw[2::5, h // 3 :, w // 3 :] = level
    for map_hw in maps_Ihw[::2]:
        for _ in range(rng.integers(0, 3)):
            top, left = rng.integers(h), rng.integers(w)
            part = map_hw[top : top + rng.integers(1, h + 1), left : left + rng.integers(1, 2 + w // 3)]
            part[:] = rng.random(part.shape) * 3 - 0.3
    return torch.from_numpy(maps_Ihw)


sizes = {
    "features": st.tuples(st.integers(1, 30), st.integers(1, 30)),
    "cut": st.tuples(st.floats(0.3, 1), st.floats(0.3, 1)),
    "original": st.tuples(st.integers(1, 200), st.integers(1, 200)),
}


def to_input(features, cut):
    padded = (4 * features[0], 4 * features[1])
    return padded, tuple(max(1, round(share * side)) for share, side in zip(cut, padded, strict=True))


@given(
    count=st.integers(1, 12), **sizes, level=st.sampled_from([0.0, 0.4, -0.2]), pixels=st.sampled_from([1, 3000, 10**6])
)
@settings(max_examples=100, deadline=None)
def test_every_pixel_is_in_its_window(count, features, cut, original, level, pixels):
    maps_Ihw = blobs(count, *features, seed=count, level=level)
    along = (*to_input(features, cut), original)
    whole_IWH = to_picture(maps_Ihw, *along) > level
    seen = []
    for windows in windows_of(maps_Ihw, level, *along, pixels=pixels):
        seen += windows.masks_I.tolist()
        found_IWH = to_picture(maps_Ihw, *along, windows) > level
        assert found_IWH.shape == (len(windows.masks_I), windows.width, windows.height)
        lines = len(windows.masks_I) * windows.height
        assert len(windows.masks_I) == 1 or lines * max(windows.width, features[1]) <= pixels
        for mask, left, top, found_WH in zip(windows.masks_I, windows.lefts_I, windows.tops_I, found_IWH, strict=True):
            expected_WH = whole_IWH[mask].clone()
            inside = expected_WH[left : left + windows.width, top : top + windows.height]
            assert torch.equal(found_WH, inside)
            inside[:] = False
            assert not expected_WH.any()
            # The first row or the last is to spare, so that no run goes on in the next column.
            assert windows.height == original[0] or not found_WH[:, [0, -1]].any(0).all()
    assert sorted(seen) == list(range(count))


def test_windows_are_about_as_small_as_masks():
    maps_Ihw = torch.full((3, 50, 70), -1.0)
    maps_Ihw[0, 10:13, 20:26] = maps_Ihw[2, 40:42, 1:5] = 1.0
    [windows] = windows_of(maps_Ihw, 0.0, (200, 280), (200, 280), (400, 560), pixels=10**6)
    assert windows.masks_I.tolist() == [0, 1, 2]
    # A row of features is 8 of the image; half of one to either side takes of the mask, and as it is resized in two
    # steps another pixel; and a row is to spare.
    assert (windows.height, windows.width) == (48, 6 * 8 + 2 * (4 + 1))  # 3 * 8 + 2 * (4 + 1) + 1 rows, in sixteens
    assert (windows.tops_I[0], windows.lefts_I[0]) == (10 * 8 - 5, 20 * 8 - 5)
    assert (windows.tops_I[2], windows.lefts_I[2]) == (40 * 8 - 5, 1 * 8 - 5)


def test_whole_masks_need_not_follow_one_another():
    maps_Ihw = blobs(6, 20, 30, seed=0)
    maps_Ihw[::2] = maps_Ihw[::2].abs() + torch.arange(3)[:, None, None]
    maps_Ihw[1::2] = -1.0
    maps_Ihw[1::2, 3:5, 4:6] = 1.0
    sizes = (80, 120), (77, 113), (50, 70)
    [small, whole] = windows_of(maps_Ihw, 0.0, *sizes, pixels=3 * 50 * 70)
    assert (small.masks_I.tolist(), whole.masks_I.tolist()) == ([1, 3, 5], [0, 2, 4])
    assert (whole.height, whole.width) == (50, 70)
    assert torch.equal(to_picture(maps_Ihw, *sizes, whole), to_picture(maps_Ihw, *sizes)[::2])


@pytest.mark.parametrize("level", [0.4, 5.0, -0.2])
def test_rounding_lifts_nothing_out_of_its_window(level):
    """Shares of old pixels may add up to a little more than one, so that what is at the level comes to lie above it."""
    sizes = (68, 8), (38, 6), (7, 400)
    maps_Ihw = blobs(1, 17, 2, seed=0) - 10
    maps_Ihw[0, 4:] = level
    whole_WH = to_picture(maps_Ihw, *sizes)[0] > np.float32(level)
    assert whole_WH.any() or level < 0
    [windows] = windows_of(maps_Ihw, level, *sizes, pixels=10**6)
    found_WH = to_picture(maps_Ihw, *sizes, windows)[0] > np.float32(level)
    assert found_WH.sum() == whole_WH.sum()


def test_a_nan_hides_nothing():
    maps_Ihw = torch.full((1, 20, 20), -1.0)
    maps_Ihw[0, 12:18, 12:18] = 1.0
    maps_Ihw[0, 10:, 19] = maps_Ihw[0, 19, 10:] = torch.nan
    sizes = ((80, 80),) * 3
    [windows] = windows_of(maps_Ihw, 0.0, *sizes, pixels=10**6)
    inside = (to_picture(maps_Ihw, *sizes, windows) > 0).sum()
    assert inside == (to_picture(maps_Ihw, *sizes) > 0).sum() > 6 * 6 * 16 * 0.9


def test_what_fills_most_of_the_picture_gets_all_of_it():
    side = 40
    maps_Ihw = torch.full((2, side, side), -1.0)
    most = int(side * WHOLE**0.5) + 1
    maps_Ihw[0, :most, 1 : most + 1] = 1.0
    maps_Ihw[1, : most - 4, 1 : most - 3] = 1.0
    found = list(windows_of(maps_Ihw, 0.0, (160, 160), (160, 160), (160, 160), pixels=1))
    assert {int(each.masks_I[0]): each.height == each.width == 160 for each in found} == {0: True, 1: False}
