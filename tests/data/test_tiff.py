"""Every kind of TIFF file, from a path, from bytes and in rectangles: the pixels that tifffile's own reading gives."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from sotr.data.images import image_size, load_image
from sotr.errors import SOTRError
from sotr.tiling import open_picture

HEIGHT, WIDTH = 45, 61
RECTANGLES = [(0, 0, WIDTH, HEIGHT), (0, 0, 1, 1), (15, 15, 33, 17), (40, 30, WIDTH, HEIGHT), (16, 0, 32, 16)]


def noise(channels: int = 0, dtype: Any = np.uint8, most: int = 255, least: int = 0) -> np.ndarray:
    shape = (HEIGHT, WIDTH, channels) if channels else (HEIGHT, WIDTH)
    values = np.random.default_rng(0).integers(least, most + 1, shape)
    values.flat[0], values.flat[-1] = least, most
    return values.astype(dtype)


def scaled(values: np.ndarray, most: float) -> np.ndarray:
    return np.rint(values * (255 / most)).astype(np.uint8)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, 2) if grey.ndim == 2 else grey


@dataclass(frozen=True)
class Kind:
    """What is stored, with which options, and the upright image that it is."""

    name: str
    stored: np.ndarray
    expected: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)
    near: int = 1
    """Gray levels that rounding may make."""


GREY, COLOR = noise(), noise(3)
GREY12, GREY16 = noise(0, np.uint16, 4000), noise(0, np.uint16, 65535)
COLOR12, COLOR16 = noise(3, np.uint16, 4000), noise(3, np.uint16, 65535)
FLOAT = noise(0, np.float32, 100, -20) / np.float32(7)
ALPHA = noise(4, np.uint8, 255, 1)
PREMULTIPLIED = np.dstack([np.rint(ALPHA[..., :3] * (ALPHA[..., 3:] / 255)), ALPHA[..., 3]]).astype(np.uint8)
CMYK = noise(4)
WHITE = {"photometric": "miniswhite"}
PALETTE = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16)

KINDS = [
    Kind("gray 8", GREY, GREY),
    Kind("gray 8 white is 0", 255 - GREY, GREY, WHITE),
    Kind("gray 12 in 16", GREY12, scaled(GREY12, 4095)),
    Kind("gray 12 in 16 white is 0", 4095 - GREY12, scaled(GREY12, 4095), WHITE),
    Kind("gray 16", GREY16, scaled(GREY16, 65535)),
    Kind("gray 16 white is 0", 65535 - GREY16, scaled(GREY16, 65535), WHITE),
    Kind("gray 12 in 16 white is 65535", 65535 - GREY12, scaled(GREY12, 4095), WHITE),
    Kind("gray 16 signed", noise(0, np.int16, 100, -100), scaled(noise(0, np.int16, 100, -100) + 100.0, 200)),
    Kind("gray 32", GREY16.astype(np.uint32) * 3, scaled(GREY16 * 3.0, 65535 * 3)),
    Kind("gray float", FLOAT, scaled(FLOAT - FLOAT.min(), FLOAT.max() - FLOAT.min())),
    Kind("gray double", FLOAT.astype(float), scaled(FLOAT - FLOAT.min(), FLOAT.max() - FLOAT.min())),
    Kind("bilevel", GREY > 127, np.where(GREY > 127, 255, 0)),
    Kind("bilevel white is 0", GREY > 127, np.where(GREY > 127, 0, 255), WHITE),
    Kind("color 8", COLOR, COLOR, {"photometric": "rgb"}),
    Kind("color 12 in 16", COLOR12, scaled(COLOR12, 4095), {"photometric": "rgb"}),
    Kind("color 16", COLOR16, scaled(COLOR16, 65535), {"photometric": "rgb"}),
    Kind("color 8 planes", COLOR.transpose(2, 0, 1), COLOR, {"photometric": "rgb", "planarconfig": "separate"}),
    Kind(
        "color 16 planes",
        COLOR16.transpose(2, 0, 1),
        scaled(COLOR16, 65535),
        {"photometric": "rgb", "planarconfig": "separate"},
    ),
    Kind("alpha", ALPHA, ALPHA[..., :3], {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    Kind("premultiplied", PREMULTIPLIED, PREMULTIPLIED, {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
    Kind("fourth channel", ALPHA, ALPHA[..., :3], {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    Kind("palette", GREY, (PALETTE.T)[GREY].astype(np.uint8), {"photometric": "palette", "colormap": PALETTE * 257}),
    Kind(
        "cmyk",
        CMYK,
        np.rint((255.0 - CMYK[..., :3]) * (255.0 - CMYK[..., 3:]) / 255).astype(np.uint8),
        {"photometric": "separated"},
    ),
]
LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {"rowsperstrip": 7},
    "one strip": {},
    "tiles": {"tile": (16, 32)},
    "tiles zlib": {"tile": (16, 16), "compression": "zlib"},
    "strips lzw": {"rowsperstrip": 16, "compression": "lzw"},
    "big endian": {"byteorder": ">", "rowsperstrip": 7},
    "big TIFF tiles": {"bigtiff": True, "tile": (32, 16), "byteorder": ">"},
}
STORED = {  # what is stored, so that the tag makes it upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def check(path: Path, expected: np.ndarray, near: int) -> None:
    """All ways to read a file agree, exactly with one another, and with what is expected up to rounding."""
    whole = load_image(path)
    assert whole.dtype == np.uint8
    assert whole.flags.c_contiguous
    assert whole.flags.writeable
    assert image_size(path) == whole.shape[:2] == expected.shape[:2]
    assert np.abs(whole.astype(int) - rgb(expected)).max() <= near
    np.testing.assert_array_equal(load_image(path.read_bytes()), whole)
    with open_picture(path) as image:
        assert (image.height, image.width) == whole.shape[:2]
        for x0, y0, x1, y1 in RECTANGLES:
            x1, y1 = min(x1, image.width), min(y1, image.height)
            if x0 < x1 and y0 < y1:
                np.testing.assert_array_equal(image.read(x0, y0, x1, y1), whole[y0:y1, x0:x1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_every_kind_in_every_layout(tmp_path: Path, kind: Kind, layout: str) -> None:
    options = {"photometric": "minisblack"} | kind.options
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, kind.stored, **options, **LAYOUTS[layout])
    np.testing.assert_array_equal(tifffile.imread(path), kind.stored)
    expected = kind.expected
    if kind.name == "premultiplied":
        alpha = kind.stored[..., 3:].astype(float)
        expected = np.minimum(kind.stored[..., :3] * (255 / alpha), 255).astype(np.uint8)
    check(path, np.asarray(expected), kind.near)


@pytest.mark.parametrize("layout", ["strips", "one strip", "tiles", "strips lzw"])
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("image", [GREY, GREY16, COLOR], ids=["grey", "gray 16", "color"])
def test_every_orientation(tmp_path: Path, image: np.ndarray, orientation: int, layout: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        np.ascontiguousarray(STORED[orientation](image)),
        photometric="rgb" if image.ndim == 3 else "minisblack",
        extratags=[(274, 3, 1, orientation, True)],
        **LAYOUTS[layout],
    )
    check(path, image if image.dtype == np.uint8 else scaled(image, 65535), 0)


@pytest.mark.parametrize("values", [GREY, GREY12, GREY16, COLOR, COLOR12, COLOR16, ALPHA])
def test_arrays_are_scaled_as_files_are(tmp_path: Path, values: np.ndarray) -> None:
    options = {"extrasamples": ["unassalpha"]} if values.shape[2:] == (4,) else {}
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb" if values.ndim == 3 else "minisblack", **options)
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif"), load_image(values))


def test_a_page_of_another_size_is_no_plane(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY)
        file.write(GREY[::4, ::4])  # such as a thumbnail
    check(tmp_path / "a.tif", GREY, 0)


def test_channels_without_a_meaning_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(5), photometric="minisblack", planarconfig="contig")
    for source in (tmp_path / "a.tif", (tmp_path / "a.tif").read_bytes()):
        with pytest.raises(
            SOTRError, match=r"has 5 channels; say which channel is meant \(sotr predict --channel NUMBER\)"
        ):
            load_image(source)


def test_damage_is_named_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COLOR, photometric="rgb", rowsperstrip=4, compression="zlib")
    content = path.read_bytes()
    for length in (len(content) // 2, len(content) // 4, 100, 20):
        path.write_bytes(content[:length])
        for source in (path, content[:length]):
            with pytest.raises(SOTRError) as caught:
                load_image(source)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 400
    assert capfd.readouterr().err == ""
