"""Compressing masks by the parts of the image that they fill, against compressing whole masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sotr.acceleration.cuda.compress import compress
from sotr.masks import compress as compress_module
from sotr.masks.compress import compress_on_host
from sotr.masks.resize import to_picture
from tests.masks.test_windows import blobs, sizes, to_input


@given(count=st.integers(1, 12), **sizes, level=st.sampled_from([0.0, 0.4, -0.2]))
@settings(max_examples=100, deadline=None)
def test_equals_whole_masks(count, features, cut, original, level):
    maps_Ihw = blobs(count, *features, seed=count, level=level)
    along = (*to_input(features, cut), original)
    found = compress_on_host(maps_Ihw, level, *along)
    expected = compress(to_picture(maps_Ihw, *along) > level)
    assert found.texts == expected.texts
    np.testing.assert_array_equal(found.boxes_I4, expected.boxes_I4)


@pytest.mark.parametrize("at_once", [1, 7])
def test_however_much_is_done_at_once(monkeypatch, at_once):
    maps_Ihw = blobs(20, 30, 40, seed=0)
    along = (120, 160), (117, 151), (90, 130)
    expected = compress_on_host(maps_Ihw, 0.0, *along)
    assert len(set(expected.texts)) > 9
    monkeypatch.setattr(compress_module, "CACHED_PIXELS", at_once * 1000)
    monkeypatch.setattr(compress_module, "RUNS_TOGETHER", at_once)
    found = compress_on_host(maps_Ihw, 0.0, *along)
    assert found.texts == expected.texts
    np.testing.assert_array_equal(found.boxes_I4, expected.boxes_I4)


def test_small_objects_of_a_large_picture_are_made_alone(monkeypatch):
    """A whole mask of this image would have 61 million pixels."""
    made = []

    def spy(*arguments):
        made.append(to_picture(*arguments))
        return made[-1]

    monkeypatch.setattr(compress_module, "to_picture", spy)
    maps_Ihw = torch.full((90, 200, 300), -1.0)
    for i in range(90):
        maps_Ihw[i, 2 * i + 1 : 2 * i + 6, 3 * i + 1 : 3 * i + 6] = 1.0
    found = compress_on_host(maps_Ihw, 0.0, (800, 1200), (800, 1200), (6400, 9600))
    assert max(resized.numel() for resized in made) <= compress_module.CACHED_PIXELS
    assert sum(resized.numel() for resized in made) < 90 * (2 * 5 * 32) ** 2
    # Features are 32 pixels of the image; halfway to the next the mask ends.
    top_I, left_I = 32 * (2 * np.arange(90) + 1), 32 * (3 * np.arange(90) + 1)
    np.testing.assert_array_equal(found.boxes_I4, np.stack([left_I, top_I, left_I + 160, top_I + 160], 1))
