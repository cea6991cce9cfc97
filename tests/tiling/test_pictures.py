"""Rectangles of images, without the whole in memory. That the pixels are right is tested in tests/data/test_tiff.py."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from sotr.data.tiff import TiffImage
from sotr.errors import SOTRError
from sotr.tiling import open_picture


def pixels(channels: int, dtype: type, most: int) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, most, (45, 61, channels)).astype(dtype)
    return values[..., 0] if channels == 1 else values


def test_jpeg_in_tiff(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(45), np.arange(61)).astype(np.uint8)[..., None] + np.uint8([0, 60, 120])
    tifffile.imwrite(tmp_path / "a.tif", smooth, tile=(16, 16), photometric="rgb", compression="jpeg")
    with open_picture(tmp_path / "a.tif") as picture:
        assert isinstance(picture, TiffImage)
        # Tiles at the image's end are filled up with black, which shows in what is near it.
        difference = picture.read(5, 6, 48, 32).astype(int) - smooth[6:32, 5:48]
        assert np.abs(difference).max() < 12


def test_other_images_are_read_as_a_whole(tmp_path: Path) -> None:
    values = pixels(3, np.uint8, 256)
    tifffile.imwrite(tmp_path / "strips.tif", values, photometric="rgb")
    for source in (tmp_path / "strips.tif", Image.fromarray(values), values):
        with open_picture(source) as picture:
            assert not isinstance(picture, TiffImage)
            assert (picture.height, picture.width) == (45, 61)
            np.testing.assert_array_equal(picture.read(3, 4, 40, 44), values[4:44, 3:40])


def test_memory_is_that_of_the_tiles(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    black = (np.zeros((256, 256), np.uint8) for _ in range(40 * 40))
    tifffile.imwrite(path, black, shape=(10240, 10240), dtype=np.uint8, tile=(256, 256), compression="zlib")
    with open_picture(path) as picture:
        picture.read(0, 0, 1, 1)
        tracemalloc.start()
        assert not picture.read(9000, 9000, 10000, 10000).any()
        assert tracemalloc.get_traced_memory()[1] < 15_000_000  # the whole has 315 million bytes
        tracemalloc.stop()


def test_damage_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels(3, np.uint8, 256), tile=(16, 16), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.dataoffsets[5]
    content = bytearray(path.read_bytes())
    content[place : place + 20] = b"x" * 20
    path.write_bytes(content)
    with open_picture(path) as picture, pytest.raises(SOTRError, match=r"a\.tif: tile 5 is damaged; ") as caught:
        picture.read(0, 0, 61, 45)
    assert "\n" not in str(caught.value)
    for damaged in (b"", b"II*\0 and nothing", b"text"):
        path.write_bytes(damaged)
        with pytest.raises(SOTRError, match="is not an image that can be read"), open_picture(path):
            pass
