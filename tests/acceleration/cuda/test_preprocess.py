"""Preprocessing on a device has the bits of that on a CPU; here the device is the CPU."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tvf

from sotr.acceleration.cuda.preprocess import preprocess_on_device, resize_exactly
from sotr.data.sizes import resized_size
from sotr.data.transforms import preprocess

SIDE = st.integers(1, 90)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def check(image_HW3: np.ndarray, size: tuple[int, int]) -> None:
    image_3HW = torch.from_numpy(image_HW3).permute(2, 0, 1)
    expected = tvf.resize(image_3HW, list(size), antialias=True)
    # Colors that lie together, and planes.
    assert torch.equal(resize_exactly(image_3HW, size), expected)
    assert torch.equal(resize_exactly(image_3HW.contiguous(), size), expected)
    if size != (1, 1):  # to which PyTorch does not resize planes: an assertion of its own fails
        assert torch.equal(tvf.resize(image_3HW.contiguous(), list(size), antialias=True), expected)


@settings(deadline=None, max_examples=200)
@given(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE), st.integers(0, 99))
def test_any_size(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    check(picture(*old, seed), new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((480, 640), (800, 1067)),
        ((480, 640), (480, 640)),
        ((480, 640), (480, 700)),
        ((480, 640), (300, 640)),
        ((427, 640), (736, 1103)),
        ((1500, 2000), (800, 1067)),
        ((3000, 40), (20, 33)),
        ((1, 5000), (1, 1333)),
        ((20_000, 4), (8, 4)),
    ],
)
def test_sizes_of_pictures(old: tuple[int, int], new: tuple[int, int]) -> None:
    check(picture(*old), new)


@pytest.mark.parametrize("length", [257, 513, 684, 2000])
def test_sums_of_many_lines_do_not_overflow(length: int) -> None:
    white = np.full((length, 2, 3), 255, np.uint8)
    check(white, (1, 2))
    check(white.reshape(2, length, 3), (2, 1))


def test_part_of_a_picture() -> None:
    check(picture(50, 70)[3:40, 5:61], (20, 90))


@pytest.mark.parametrize("size", [(48, 64), (90, 33), (20, 300)])
def test_the_whole_of_preprocessing(size: tuple[int, int]) -> None:
    image = picture(*size)
    expected = preprocess(image, 60, 100)
    found = preprocess_on_device(torch.from_numpy(image).permute(2, 0, 1), resized_size(*size, 60, 100))
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_every_byte_is_normalised_the_same() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    found = preprocess_on_device(torch.from_numpy(image).permute(2, 0, 1), (16, 16))
    assert torch.equal(found, preprocess(image, 16, 16))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(480, 640), (1200, 1600)])
def test_the_same_bits_on_a_gpu(size: tuple[int, int]) -> None:
    image = picture(*size)
    on_device = torch.from_numpy(image).to("cuda").permute(2, 0, 1)
    found = preprocess_on_device(on_device, resized_size(*size, 800, 1333))
    assert torch.equal(found.cpu(), preprocess(image, 800, 1333))
