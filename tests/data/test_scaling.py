"""Which values become black and white."""

import numpy as np
import pytest
import tifffile

from sotr.data.choice import Choice
from sotr.data.images import load_image
from sotr.data.scaling import IntensityRange, scale_to_8_bit
from sotr.errors import SOTRError
from sotr.tiling import open_picture


@pytest.mark.parametrize(("peak", "end"), [(255, 255), (300, 511), (4095, 4095), (4300, 8191), (60000, 65535)])
def test_the_brightest_of_whole_numbers_is_never_darker_than_half(peak: int, end: int) -> None:
    values = np.linspace(0, peak, 1000).astype(np.uint16)
    np.testing.assert_array_equal(scale_to_8_bit(values), np.rint(values * np.float32(255 / end)))


def test_values_between_the_ends_are_scaled_and_others_cut() -> None:
    values = np.array([0, 100, 200, 300, 60000], np.uint16)
    assert IntensityRange.parse("100, 300").apply(values).tolist() == [0, 0, 128, 255, 255]
    floats = np.array([-np.inf, np.nan, -1, 0.5, 2], np.float32)
    assert IntensityRange(-1, 2).apply(floats).tolist() == [0, 0, 0, 128, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_percentiles_are_those_of_numpy(dtype: type) -> None:
    values = np.random.default_rng(0).permutation(np.arange(1001) % 251).reshape(7, 11, 13).astype(dtype)
    found = IntensityRange.parse("1%,99.8%").limits([values[:3], values[3:]], values.size)
    assert found == tuple(np.percentile(values, [1, 99.8], method="inverted_cdf"))


@pytest.mark.parametrize("factor", [1, 7, 200])
def test_percentiles_make_brightness_vanish_and_once_is_enough(factor: int) -> None:
    dim = np.random.default_rng(0).integers(0, 250, (60, 70)).astype(np.uint16)
    choice = Choice(intensity=IntensityRange(1, 99.8, percent=True))
    once = load_image(dim * np.uint16(factor), choice=choice)
    assert np.abs(once.astype(int) - load_image(dim, choice=choice)).max() <= 1
    np.testing.assert_array_equal(load_image(once, choice=choice), once)


def test_a_flat_image_and_a_nearly_empty_one() -> None:
    choice = Choice(intensity=IntensityRange(1, 99.8, percent=True))
    assert (load_image(np.full((20, 30), 9, np.uint8), choice=choice) == 9).all()
    sparse = np.zeros((100, 100), np.uint8)
    sparse[3, 4] = 10
    assert load_image(sparse, choice=choice).max() == 255


@pytest.mark.parametrize("options", [{}, {"tile": (32, 32)}])
def test_percentiles_of_a_file_are_those_of_the_whole_in_tiles_too(tmp_path, options) -> None:
    values = (np.random.default_rng(0).random((96, 128)) ** 4 * 3000).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    choice = Choice(intensity=IntensityRange.parse("2%,98%"))
    whole = load_image(tmp_path / "a.tif", choice=choice)
    np.testing.assert_array_equal(whole, load_image(values, choice=choice))
    with open_picture(tmp_path / "a.tif", choice=choice) as picture:
        np.testing.assert_array_equal(picture.read(10, 20, 70, 60), whole[20:60, 10:70])


@pytest.mark.parametrize("text", ["5", "1,2,3", "a,b", "1%,2", "9,3", "-1%,50%", "0%,101%", "nan,1", ""])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(SOTRError, match=r"100,4000, or percentiles such as 1%,99\.8%"):
        IntensityRange.parse(text)
