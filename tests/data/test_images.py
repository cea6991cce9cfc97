"""The image loader: every kind of image becomes upright RGB, everything else one clear line."""

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import EpsImagePlugin, Image, PngImagePlugin

from sotr.data.images import image_size, list_images, load_image
from sotr.errors import SOTRError

RGB = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [40, 50, 60], [70, 80, 90]]], np.uint8)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_rgb_survives_each_way_in(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    for source in (path, str(path), path.read_bytes(), Image.fromarray(RGB), RGB):
        loaded = load_image(source)
        assert loaded.dtype == np.uint8
        assert loaded.flags.c_contiguous
        assert loaded.flags.writeable
        np.testing.assert_array_equal(loaded, RGB)


def test_the_array_is_a_copy() -> None:
    source = RGB.copy()
    load_image(source)[:] = 0
    np.testing.assert_array_equal(source, RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: np.rot90(RGB, 2).transpose(1, 0, 2),
        8: np.rot90(RGB),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), upright)


def test_grey_bilevel_and_grey_alpha_get_three_equal_channels() -> None:
    grey = np.array([[0, 100, 255]], np.uint8)
    expected = np.repeat(grey[..., None], 3, 2)
    alpha = Image.merge("LA", (Image.fromarray(grey), Image.new("L", (3, 1), 7)))
    for image in (Image.fromarray(grey), alpha):
        np.testing.assert_array_equal(load_image(png(image)), expected)
    bilevel = load_image(png(Image.fromarray(grey).convert("1", dither=Image.Dither.NONE)))
    assert bilevel[0, :, 0].tolist() == [0, 0, 255]


def test_transparency_is_dropped_not_composited() -> None:
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 0, np.uint8)])
    np.testing.assert_array_equal(load_image(png(Image.fromarray(rgba))), RGB)
    np.testing.assert_array_equal(load_image(rgba), RGB)


@pytest.mark.filterwarnings("error")
def test_palette_with_transparency_gives_its_colours() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 10, 20, 30, 40, 250])
    palette.putdata([0, 1])
    palette.info["transparency"] = bytes([0, 128])
    assert load_image(png(palette)).tolist() == [[[200, 10, 20], [30, 40, 250]]]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = load_image(tmp_path / "a.jpg")[8, 8]
    assert red > 240
    assert max(green, blue) < 15


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 51, 255], [0, 51, 255]),  # 8-bit values in a 16-bit file
        ([0, 256, 4095], [0, 16, 255]),  # a 12-bit camera
        ([0, 4096, 65535], [0, 16, 255]),
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_16_bit_scales_from_the_smallest_camera_range_that_holds_it(
    tmp_path: Path, values: list[int], expected: list[int]
) -> None:
    array = np.array([values], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(array).save(tmp_path / name)
        loaded = load_image(tmp_path / name)
        assert loaded.shape == (1, 3, 3)
        assert loaded[0, :, 0].tolist() == expected == loaded[0, :, 2].tolist()
    assert load_image(array)[0, :, 1].tolist() == expected


def test_32_bit_integers_beyond_16_bit_and_floats_scale_from_their_extremes(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-100, 0, 100]], np.int32)).save(tmp_path / "i.tif")
    assert load_image(tmp_path / "i.tif")[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.5, np.nan, 1.0, 1.5]], np.float32)).save(tmp_path / "f.tif")
    assert load_image(tmp_path / "f.tif")[0, :, 0].tolist() == [0, 0, 128, 255]
    Image.fromarray(np.full((2, 2), 3.5, np.float32)).save(tmp_path / "flat.tif")
    assert not load_image(tmp_path / "flat.tif").any()


def pnm(kind: bytes, values: np.ndarray) -> bytes:
    head = b"%s\n# a note\n%d %d\n65535\n" % (kind, values.shape[1], values.shape[0])
    plain = kind in (b"P2", b"P3")
    return head + (" ".join(map(str, values.ravel())).encode() if plain else values.astype(">u2").tobytes())


DEEP = {
    "png": imagecodecs.png_encode,
    "jp2": lambda values: imagecodecs.jpeg2k_encode(values, codecformat="jp2", reversible=True, level=0),
    "j2k": lambda values: imagecodecs.jpeg2k_encode(values, codecformat="j2k", reversible=True, level=0),
    "pnm": lambda values: pnm(b"P5" if values.ndim == 2 else b"P6", values),
    "plain pnm": lambda values: pnm(b"P2" if values.ndim == 2 else b"P3", values),
    "tiff": lambda values: tiff(values),
}


def tiff(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="rgb" if values.ndim == 3 else "minisblack")
    return buffer.getvalue()


@pytest.mark.parametrize("most", [200, 1000, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", DEEP)
def test_deep_color_and_grey_follow_one_rule(tmp_path: Path, kind: str, channels: int, most: int) -> None:
    """In every format as in an array, whatever share of the 16 bits the camera uses."""
    if channels == 4 and kind not in ("png", "jp2"):
        pytest.skip("the format, or its writer here, has no alpha")
    values = np.random.default_rng(0).integers(0, most + 1, (40, 50, channels)).astype(np.uint16)
    values[0, 0] = most
    if channels == 4:
        values[..., 3] = 65535
    values = values[..., 0] if channels == 1 else values
    range_end = next(end for end in (255, 1023, 4095, 65535) if most <= end)
    expected = np.rint(values[..., :3] * (255 / range_end)) if channels > 1 else np.rint(values * (255 / range_end))
    content = DEEP[kind](values)
    (tmp_path / "a.bin").write_bytes(content)
    for source in (values, content, tmp_path / "a.bin"):
        loaded = load_image(source)
        grey = loaded if channels > 1 else loaded[..., 1]
        assert np.abs(grey - expected).max() <= 1, source if isinstance(source, Path) else type(source)
        np.testing.assert_array_equal(loaded, load_image(values))
    assert image_size(tmp_path / "a.bin") == (40, 50)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_range_that_a_file_declares(bits: int, channels: int) -> None:
    most = 2**bits - 1
    values = np.random.default_rng(0).integers(0, most // 2, (40, 50, channels)).astype(np.uint16)
    values = values[..., 0] if channels == 1 else values
    expected = np.rint(values * (255 / most))
    buffer = io.BytesIO()
    photometric = "rgb" if channels > 1 else "minisblack"
    tifffile.imwrite(buffer, values, photometric=photometric, bitspersample=bits)
    for content in (
        imagecodecs.jpeg2k_encode(values, bitspersample=bits, reversible=True, level=0),
        pnm(b"P5" if channels == 1 else b"P6", values).replace(b"65535", str(most).encode(), 1),
        buffer.getvalue(),
    ):
        loaded = load_image(content)
        assert np.abs((loaded if channels > 1 else loaded[..., 0]) - expected).max() <= 1


def test_deep_color_is_turned_upright(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 3, dtype=np.uint16).reshape(2, 3, 3) * 3000
    content = imagecodecs.png_encode(values)
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(raw)) + b"eXIf" + raw + struct.pack(">I", zlib.crc32(b"eXIf" + raw))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), load_image(np.rot90(values, -1).copy()))
    assert image_size(tmp_path / "a.png") == (3, 2)


def test_one_pixel() -> None:
    assert load_image(png(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]
    assert load_image(np.array([[9]], np.uint8)).tolist() == [[[9, 9, 9]]]


def test_missing_folder_text_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    for name, words in {
        "absent.png": "no such file",
        "notes.png": "is not an image that can be read; its format",
        "empty.jpg": "is not an image that can be read; the file is empty",
    }.items():
        with pytest.raises(SOTRError, match=f"{name}: .*{words}"):
            load_image(tmp_path / name)
    with pytest.raises(SOTRError, match=r"is a folder"):
        load_image(tmp_path)
    with pytest.raises(SOTRError, match=r"^<bytes>: is not an image .*its format") as caught:
        load_image(b"nothing")
    assert "BytesIO" not in str(caught.value)
    with pytest.raises(SOTRError, match=r"^<bytes>: .*the file is empty"):
        load_image(b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP"])
def test_truncated_files_are_errors_of_one_line(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    whole = buffer.getvalue()
    with pytest.raises(SOTRError) as caught:
        load_image(whole[: len(whole) // 2])
    assert str(caught.value).startswith("<bytes>: ")
    assert "\n" not in str(caught.value)


def bomb(side: int) -> bytes:
    """A tiny PNG whose header claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
def test_postscript_is_not_run() -> None:
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(SOTRError, match="its format is none that is known here; save it again as PNG"):
        load_image(program)
    with pytest.raises(SOTRError, match="is PostScript, which is run rather than read; save it again as PNG"):
        load_image(Image.open(io.BytesIO(program)))


def test_formats_that_hold_other_pictures_do_not_smuggle_them_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """An icon unpacks its PNG while it is opened, an IPTC record hands its content to any format."""

    def unpack(*_: object) -> None:
        pytest.fail("an image was unpacked")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", unpack)
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "load", unpack)
    content = bomb(40_000)
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 24, len(content), 22) + content
    field = lambda record, number, data: struct.pack(">BBBH", 0x1C, record, number, len(data)) + data  # noqa: E731
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    iptc = field(3, 20, b"\0\x09") + field(3, 30, b"\0\x09") + field(3, 60, b"\x01\0") + field(3, 120, b"\x05")
    for smuggler in (icon, iptc + field(8, 10, program)):
        with pytest.raises(SOTRError, match="is not an image that can be read; its format is none"):
            load_image(smuggler)


def test_the_pixel_limit_is_ours_and_adjustable() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(SOTRError, match=r"100000 x 100000 is 10000 megapixels, over the limit of 200.*max_pixels"):
        load_image(bomb(100_000))
    # Between Pillow's own warning, its own error and our limit, the file is refused for what it is: truncated.
    for side in (10_000, 14_000):
        with pytest.raises(SOTRError, match=r"is damaged"):
            load_image(bomb(side))
    assert limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(SOTRError, match=r"max_pixels"):
        load_image(RGB, max_pixels=5)
    assert load_image(RGB, max_pixels=6).shape == RGB.shape


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2), np.float32), np.zeros((3, 4, 5), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4), np.uint8)],
)
def test_arrays_that_are_no_pictures(array: np.ndarray) -> None:
    with pytest.raises(SOTRError, match=r"^<array>: "):
        load_image(array)


def test_list_images_takes_files_folders_and_globs_once_each_in_order(tmp_path: Path) -> None:
    names = ["b.png", "a.JPG", "sub/c.tif", "sub/notes.txt", "sub/.hidden.png", "odd.dat"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def listed(*inputs: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in list_images([tmp_path / name for name in inputs])]

    assert listed("") == ["a.JPG", "b.png", "sub/c.tif"]
    assert listed("odd.dat", "b.png", "") == ["odd.dat", "b.png", "a.JPG", "sub/c.tif"]
    assert listed("sub/../b.png", "b.png", "") == ["sub/../b.png", "a.JPG", "sub/c.tif"]
    assert listed("*") == ["a.JPG", "b.png"]
    assert listed("**/*.tif") == ["sub/c.tif"]


def test_folders_of_copies_are_passed_over_and_every_readable_ending_is_taken(tmp_path: Path) -> None:
    copies = [
        ".ipynb_checkpoints/a-checkpoint.png",
        ".Trash/b.png",
        "__MACOSX/c.png",
        "sub/.thumbnails/d.png",
        "._e.png",
    ]
    taken = [f"sub/a{suffix}" for suffix in (".jfif", ".pnm", ".mpo", ".j2k", ".apng", ".PNG", ".Tif")]
    for name in copies + taken:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert {str(path.relative_to(tmp_path)) for path in list_images([tmp_path])} == set(taken)
    assert {str(path.relative_to(tmp_path)) for path in list_images([tmp_path / "**" / "*"])} == set(taken)
    assert list_images([tmp_path / "__MACOSX"]) == [tmp_path / "__MACOSX/c.png"]  # it was asked for


def test_list_images_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for inputs, words in (
        ([], "no images given"),
        ([tmp_path / "empty"], "empty: the folder holds no images"),
        ([tmp_path / "*.png"], "the pattern matches no images"),
        ([tmp_path / "x.png"], "x.png: no such file"),
        (["a" * 5000], "a: no such file or folder"),
        (["a\0b.png"], "b.png: no such file or folder"),
    ):
        with pytest.raises(SOTRError, match=words):
            list_images(inputs)


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].png").touch()
    assert list_images([tmp_path / "a[1].png"]) == [tmp_path / "a[1].png"]
