"""Compressing masks where they are, against the host's way, which is tested against the library's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sotr.acceleration.cuda.compress import compress, to_host
from sotr.masks.run_lengths import boxes, encode_counts, mask_runs, runs_to_counts

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def check(masks_IWH, device="cpu"):
    runs = mask_runs(masks_IWH)
    found = compress(torch.from_numpy(masks_IWH).to(device))
    assert found.texts == encode_counts(*runs_to_counts(runs, masks_IWH[0].size))
    assert found.boxes_I4.dtype == np.int64
    np.testing.assert_array_equal(found.boxes_I4, boxes(runs))
    return found


def of_runs(lengths):
    """A flat mask of these run lengths, background first."""
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


@given(
    densities=st.lists(st.sampled_from([0.0, 0.003, 0.3, 0.97, 1.0]), min_size=1, max_size=5),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_random_masks(densities, size, seed):
    check(np.random.default_rng(seed).random((len(densities), *size)) < np.array(densities)[:, None, None])


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**45 - 1))
@settings(max_examples=200, deadline=None)
def test_masks_of_few_pixels(count, width, height, bits):
    pixels = count * width * height
    check(np.array([bits >> place & 1 for place in range(pixels)], bool).reshape(count, width, height))


@given(lengths=st.lists(st.lists(st.integers(0, 2**13), max_size=9), min_size=1, max_size=4), height=st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_runs_of_any_length(lengths, height):
    masks = [of_runs(each) for each in lengths]
    width = max(1, *(-(-len(mask) // height) for mask in masks))
    masks = [np.pad(mask, (0, width * height - len(mask))) for mask in masks]
    check(np.stack(masks).reshape(-1, width, height))


@pytest.mark.parametrize("pixels", [2**bits + more for bits in (4, 5, 9, 10, 14, 19) for more in (-1, 0)])
def test_the_largest_values_have_digits_enough(pixels):
    most = pixels - 3
    for lengths in ([pixels], [0, pixels], [0, most, 1, 1, 1], [1, 1, 1, most], [0, 1, 1, most, 1], [1, most, 1, 1]):
        check(of_runs(lengths).reshape(1, 1, -1))


@pytest.mark.parametrize("device", DEVICES)
def test_large_blobs(device):
    x, y = np.mgrid[:800, :600]
    rng = np.random.default_rng(0)
    circles = [
        (x - rng.integers(800)) ** 2 + (y - rng.integers(600)) ** 2 < rng.integers(9, 300) ** 2 for _ in range(5)
    ]
    ragged = circles[0] & (rng.random(x.shape) < 0.7)
    found = check(np.stack([*circles, ragged, ~circles[1]]), device)
    assert all(len(text) > 9 for text in found.texts)


@pytest.mark.parametrize("device", DEVICES)
def test_long_runs(device):
    masks = np.zeros((5, 2000, 1500), bool)
    masks[1] = True
    masks[2, :1000] = True
    masks[3, 1000:] = True
    masks[4, [0, -1], [0, -1]] = True
    check(masks, device)


@pytest.mark.parametrize("device", DEVICES)
def test_no_masks(device):
    found = compress(torch.zeros(0, 5, 7, dtype=torch.bool, device=device))
    assert found.texts == []
    assert found.boxes_I4.shape == (0, 4)
    assert found.boxes_I4.dtype == np.int64


def test_what_is_on_the_host_is_not_copied():
    tensors = torch.arange(3), torch.zeros(2, 0)
    assert all(found is given_ for found, given_ in zip(to_host(*tensors), tensors, strict=True))
    assert to_host() == ()


@pytest.mark.gpu
def test_what_is_on_a_gpu_is_copied():
    tensors = torch.arange(3), torch.arange(6.0).view(2, 3).T, torch.zeros(2, 0)
    for found, expected in zip(to_host(*(tensor.cuda() for tensor in tensors)), tensors, strict=True):
        assert found.is_pinned() or not found.numel()
        assert torch.equal(found, expected)
