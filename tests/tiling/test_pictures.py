"""Rectangles of pictures: the same pixels as those of the whole, whatever the file."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sotr.data.images import load_image
from sotr.errors import SOTRError
from sotr.tiling import open_picture
from sotr.tiling.pictures import _TiledTiff

tifffile = pytest.importorskip("tifffile", reason="needs tifffile: pip install 'sotr[tiff]'")

RECTANGLES = [(0, 0, 61, 45), (0, 0, 1, 1), (15, 15, 33, 17), (40, 30, 61, 45), (16, 0, 32, 16)]


def pixels(channels: int, dtype: type, most: int) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, most, (45, 61, channels)).astype(dtype)
    return values[..., 0] if channels == 1 else values


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (pixels(3, np.uint8, 256), {"photometric": "rgb"}),
        (pixels(3, np.uint8, 256), {"photometric": "rgb", "compression": "zlib", "bigtiff": True}),
        (pixels(3, np.uint8, 256), {"photometric": "rgb", "compression": "lzw", "predictor": True}),
        (pixels(4, np.uint8, 256), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (pixels(1, np.uint8, 256), {"photometric": "minisblack"}),
        (pixels(1, np.uint16, 4000), {"photometric": "minisblack"}),
        (pixels(1, np.uint16, 60000), {"photometric": "minisblack", "byteorder": ">"}),
    ],
    ids=["rgb", "bigtiff", "lzw", "rgba", "grey", "12 bit", "16 bit"],
)
def test_tiled_tiff_is_read_in_parts(tmp_path: Path, values: np.ndarray, options: dict) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, tile=(16, 32), **options)
    whole = load_image(path)
    with open_picture(path) as picture:
        assert isinstance(picture, _TiledTiff)
        assert (picture.height, picture.width) == (45, 61)
        for x0, y0, x1, y1 in RECTANGLES:
            np.testing.assert_array_equal(picture.read(x0, y0, x1, y1), whole[y0:y1, x0:x1])


def test_jpeg_in_tiff(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(45), np.arange(61)).astype(np.uint8)[..., None] + np.uint8([0, 60, 120])
    tifffile.imwrite(tmp_path / "a.tif", smooth, tile=(16, 16), photometric="rgb", compression="jpeg")
    with open_picture(tmp_path / "a.tif") as picture:
        assert isinstance(picture, _TiledTiff)
        # Tiles at the picture's end are filled up with black, which shows in what is near it.
        difference = picture.read(5, 6, 48, 32).astype(int) - smooth[6:32, 5:48]
        assert np.abs(difference).max() < 12


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("strips.tif", {"photometric": "rgb"}),
        ("planes.tif", {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16)}),
        ("turned.tif", {"photometric": "rgb", "tile": (16, 16), "extratags": [(274, 3, 1, 6, True)]}),
    ],
)
def test_other_pictures_are_read_as_a_whole(tmp_path: Path, name: str, options: dict) -> None:
    values = pixels(3, np.uint8, 256)
    planes = values.transpose(2, 0, 1) if options.get("planarconfig") else values
    tifffile.imwrite(tmp_path / name, planes, **options)
    whole = load_image(tmp_path / name)
    with open_picture(tmp_path / name) as picture:
        assert not isinstance(picture, _TiledTiff)
        assert (picture.height, picture.width) == whole.shape[:2]
        np.testing.assert_array_equal(picture.read(3, 4, 40, 44), whole[4:44, 3:40])
    with open_picture(Image.fromarray(values)) as picture:
        np.testing.assert_array_equal(picture.read(0, 0, 61, 45), values)


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
        with pytest.raises(SOTRError, match="is not a picture that can be read"), open_picture(path):
            pass
