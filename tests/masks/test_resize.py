"""Resizing masks in one step against resizing them twice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sotr.masks.resize import to_picture


def twice(maps_Ihw, padded_size, image_size, original_size):
    maps = F.interpolate(maps_Ihw[None], size=padded_size, mode="bilinear", align_corners=False)
    maps = maps[..., : image_size[0], : image_size[1]]
    return F.interpolate(maps, size=original_size, mode="bilinear", align_corners=False)[0]


@given(
    count=st.integers(1, 3),
    features=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    cut=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    original=st.tuples(st.integers(1, 400), st.integers(1, 400)),
)
@settings(max_examples=60)
def test_one_step_equals_two(count, features, cut, original):
    maps = torch.randn(count, *features, generator=torch.Generator().manual_seed(0))
    padded = (4 * features[0], 4 * features[1])
    image = tuple(max(1, round(share * side)) for share, side in zip(cut, padded, strict=True))
    found = to_picture(maps, padded, image, original)
    assert found.shape == (count, original[1], original[0])
    torch.testing.assert_close(found.transpose(1, 2), twice(maps, padded, image, original), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("original", [(480, 640), (800, 1088), (3000, 4000)])
def test_masks_of_large_pictures_are_the_same(original):
    maps = torch.randn(1, 200, 272, generator=torch.Generator().manual_seed(0))
    sizes = ((800, 1088), (797, 1066), original)
    found, expected = to_picture(maps, *sizes).transpose(1, 2), twice(maps, *sizes)
    # Only a pixel on the threshold itself may fall to either side.
    assert ((found > 0) == (expected > 0))[expected.abs() > 2e-6].all()


def test_nothing_stays_nothing():
    """Where mask features are zero, logits are: no pixel there may pass the threshold by rounding."""
    assert not to_picture(torch.zeros(2, 9, 7), (36, 28), (33, 28), (101, 77)).any()
