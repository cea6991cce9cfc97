"""Stacks, films and images of several channels: the plane and the channel that are chosen, as tifffile reads them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from sotr.data.choice import Choice
from sotr.data.images import image_stack, load_image, load_values
from sotr.data.scaling import IntensityRange
from sotr.errors import SOTRError
from sotr.tiling import open_picture

RAW = IntensityRange(0, 255)
"""Leaves values of up to 255 as they are."""


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint16)


@dataclass(frozen=True)
class Kind:
    """A file, and what it holds as time x depth x channels x rows x columns."""

    name: str
    shape: tuple[int, ...]
    options: dict[str, Any]
    five: tuple[int, int, int] = (1, 1, 1)
    """Time points, depths, channels."""
    text: str = ""
    moved: tuple[int, ...] = field(default=())
    """The order of the axes that makes it time x depth x channels x rows x columns."""


OME = {"ome": True, "photometric": "minisblack"}
KINDS = [
    Kind(
        "ImageJ", (3, 2, 40, 50), {"imagej": True, "metadata": {"axes": "ZCYX"}}, (1, 3, 2), "3 planes (Z), 2 channels"
    ),
    Kind("film", (4, 40, 50), {"imagej": True, "metadata": {"axes": "TYX"}}, (4, 1, 1), "4 planes (T)"),
    Kind(
        "OME",
        (2, 3, 2, 40, 50),
        OME | {"metadata": {"axes": "TZCYX", "Channel": {"Name": ["DAPI", "GFP"]}}, "compression": "zlib"},
        (2, 3, 2),
        "2 x 3 planes (T x Z), 2 channels (1 DAPI, 2 GFP)",
    ),
    Kind("OME tiles", (3, 5, 64, 64), OME | {"metadata": {"axes": "ZCYX"}, "tile": (32, 32)}, (1, 3, 5), "5 channels"),
    Kind("pages", (5, 40, 50), {"photometric": "minisblack", "metadata": None}, (1, 5, 1), "5 planes (I)"),
    Kind("samples", (5, 40, 50), {"photometric": "minisblack", "planarconfig": "separate"}, (1, 1, 5), "5 channels"),
    Kind(
        "samples side by side",
        (40, 50, 4),
        {"photometric": "minisblack", "planarconfig": "contig"},
        (1, 1, 4),
        "4 channels",
        (2, 0, 1),
    ),
]


def write(path: Path, kind: Kind) -> np.ndarray:
    """Time x depth x channels x rows x columns."""
    stored = values(*kind.shape)
    tifffile.imwrite(path, stored, **kind.options)
    return stored.transpose(kind.moved or range(stored.ndim)).reshape(*kind.five, *sizes(kind))


def sizes(kind: Kind) -> tuple[int, int]:
    return (kind.shape[-3], kind.shape[-2]) if kind.moved else (kind.shape[-2], kind.shape[-1])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_plane_and_channel_can_be_had(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "a.tif"
    full = write(path, kind)
    times, depths, channels = kind.five
    stack = image_stack(path)
    assert stack is not None
    assert (stack.planes, stack.channels) == (times * depths, channels)
    assert kind.text in str(stack)
    for channel in range(channels):
        planes = full[:, :, channel].reshape(times * depths, *full.shape[3:])
        for plane, expected in enumerate(planes):
            choice = Choice(channel + 1 if channels > 1 else None, plane + 1 if len(planes) > 1 else None, None, RAW)
            np.testing.assert_array_equal(load_image(path, choice=choice)[..., 1], expected)
            np.testing.assert_array_equal(load_image(path.read_bytes(), choice=choice)[..., 1], expected)
            with open_picture(path, choice=choice) as picture:
                np.testing.assert_array_equal(picture.read(7, 5, 40, 33)[..., 0], expected[5:33, 7:40])
            np.testing.assert_array_equal(
                load_values(path, choice=choice), full.reshape(-1, *full.shape[2:])[plane].transpose(1, 2, 0)
            )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_nothing_is_taken_without_a_word(tmp_path: Path, kind: Kind) -> None:
    write(tmp_path / "a.tif", kind)
    with pytest.raises(
        SOTRError, match=r"a\.tif: has .*; say which (plane|channel) is meant .*--(plane|channel) NUMBER"
    ):
        load_image(tmp_path / "a.tif")
    with pytest.raises(SOTRError, match=r"a\.tif: has .*say which"), open_picture(tmp_path / "a.tif"):
        pass


def test_projections_are_along_z_for_each_time(tmp_path: Path) -> None:
    full = write(tmp_path / "a.tif", KINDS[2])
    stack = image_stack(tmp_path / "a.tif")
    assert stack is not None
    choices = list(stack.split(Choice("gfp", "max", None, RAW)))
    assert [choice.projection for choice in choices] == [1, 2]
    for time, choice in enumerate(choices):
        np.testing.assert_array_equal(load_image(tmp_path / "a.tif", choice=choice)[..., 0], full[time, :, 1].max(0))
    assert [choice.plane for choice in stack.split(Choice(1, "all"))] == [1, 2, 3, 4, 5, 6]
    film = write(tmp_path / "b.tif", KINDS[1])
    loaded = load_image(tmp_path / "b.tif", choice=Choice(plane="max", intensity=RAW))
    np.testing.assert_array_equal(loaded[..., 2], film[:, 0, 0].max(0))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(3, 1), "and no channel 3"),
        (Choice("RFP", 1), "none that is called 'RFP'"),
        (Choice(1, 7), "and no plane 7"),
        (Choice(1), "say which plane is meant"),
        (Choice(1, "all"), "say which plane is meant"),
        (Choice(1, "max"), "give one projection"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, choice: Choice, message: str) -> None:
    write(tmp_path / "a.tif", KINDS[2])
    with pytest.raises(SOTRError, match=message) as caught:
        load_image(tmp_path / "a.tif", choice=choice)
    assert "2 x 3 planes (T x Z), 2 channels (1 DAPI, 2 GFP)" in str(caught.value)


@pytest.mark.parametrize(("setting", "value"), [("channel", 0), ("plane", 0), ("plane", "first"), ("channel", "")])
def test_a_choice_that_cannot_be_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(SOTRError, match=f"{setting} is "):
        Choice(**{setting: value})


def test_a_choice_survives_the_way_to_another_process() -> None:
    choice = Choice("DAPI", "max", 2, IntensityRange(1, 99.8, percent=True))
    assert Choice.from_json(choice.to_json()) == choice


def test_channels_of_color_images(tmp_path: Path) -> None:
    color = values(40, 50, 3).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", color, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", np.stack([color, color]), photometric="rgb")
    for number in (1, 2, 3):
        for source in (tmp_path / "a.tif", color):
            loaded = load_image(source, choice=Choice(channel=number))
            np.testing.assert_array_equal(loaded, np.repeat(color[..., number - 1 : number], 3, 2))
    np.testing.assert_array_equal(load_image(tmp_path / "b.tif", choice=Choice(plane=2)), color)
    for source in (tmp_path / "a.tif", color):
        with pytest.raises(SOTRError, match="no channel 4"):
            load_image(source, choice=Choice(channel=4))
    with pytest.raises(SOTRError, match="no channel 2"):
        load_image(color[..., 0], choice=Choice(channel=2))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "um"}}, (0.5, 0.25)),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"unit": "micron"}}, (0.5, 0.5)),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"unit": "inch"}}, None),
        ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, (0.5, 0.5)),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({}, None),
        (OME | {"metadata": {"PhysicalSizeX": 325, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.4}}, (0.325, 0.4)),
    ],
)
def test_the_size_of_a_pixel(tmp_path: Path, options: dict[str, Any], expected: tuple[float, float] | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values(40, 50), **options)
    stack = image_stack(tmp_path / "a.tif")
    assert stack is not None
    assert stack.pixel_size_um == (expected if expected is None else pytest.approx(expected))


def test_stacks_of_imagej_beyond_4_gib_have_one_page(tmp_path: Path) -> None:
    """ImageJ then writes the pixels of all planes behind the first page's; here of a small file."""
    planes = values(3, 40, 50)
    content = tmp_path / "a.tif"
    tifffile.imwrite(content, planes, imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(content) as file:
        second = file.pages[1].offset
        pointer = content.read_bytes().index(second.to_bytes(4, (file.byteorder == "<" and "little") or "big"))
    data = bytearray(content.read_bytes())
    data[pointer : pointer + 4] = bytes(4)  # no page follows the first
    content.write_bytes(data)
    with tifffile.TiffFile(content) as file:
        assert (len(file.pages), file.series[0].shape) == (1, (3, 40, 50))
    for number, plane in enumerate(planes, 1):
        np.testing.assert_array_equal(load_image(content, choice=Choice(plane=number, intensity=RAW))[..., 0], plane)
