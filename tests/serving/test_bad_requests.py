"""What is sent wrongly, too large, too slowly or broken gets one clear line, and the server keeps serving."""

import contextlib
import io
import socket
import struct
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image

from sotr.results.instances import Instances
from tests.serving.conftest import Server, problem
from tests.support.slow_files import jpeg_of_scans


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that claims side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
JPEG = encode(Image.fromarray(NOISE), "JPEG")

BAD_BODIES = {
    "empty": (b"", 400, "empty_body", "the body is empty"),
    "text": (b"not a picture at all\n" * 9, 422, "unreadable_picture", "not an image that can be read"),
    "truncated": (JPEG[: len(JPEG) // 2], 422, "unreadable_picture", "damaged"),
    "bomb": (bomb(40_000), 413, "picture_too_large", "1600 megapixels, over the limit of 25; cut or shrink it"),
    "bomb inside the limit": (bomb(4_000), 422, "unreadable_picture", "damaged"),
    "a JPEG of 3,000 scans": (jpeg_of_scans(3000, 4992), 422, "unreadable_picture", "more than 256 scans"),
    "a PPM written as text": (b"P2 9999 999 255\n" + b"7 " * 2_500_000, 422, "unreadable_picture", "values as text"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", 422,
                   "unreadable_picture", "its format is none that is known here"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_pictures(server: Server, name: str) -> None:
    body, status, code, words = BAD_BODIES[name]
    for response in (
        server.post(body, kind="image/png"),
        server.http.post("predict", files={"image": ("x.png", body, "image/png")}),
        server.post(body, "upright"),
    ):
        assert problem(response)[:2] == (status, code)
        assert words.replace("the body", "") in problem(response)[2]
    assert server.alive()


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_extreme_shapes(server: Server, size: tuple[int, int]) -> None:
    answer = server.post(encode(Image.new("L", size, 90), "PNG")).json()
    assert (answer["width"], answer["height"]) == size


def test_cmyk_and_the_first_frame_of_an_animation(server: Server, sample: bytes, expected: Instances) -> None:
    picture = Image.open(io.BytesIO(sample))
    certain = int((expected.scores_I > 0.5).sum())
    frames = encode(picture.convert("L"), "GIF", save_all=True, append_images=[Image.new("L", picture.size)] * 2)
    for body in (encode(picture.convert("CMYK"), "JPEG", quality=95), frames):
        objects = server.post(body, "predict?score=0.5").json()["objects"]
        assert abs(len(objects) - certain) <= 0.1 * certain


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations(server: Server, expected: Instances, sample: bytes, orientation: int) -> None:
    """However the pixels are stored, the objects are those of the upright picture."""
    upright = Image.open(io.BytesIO(sample))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    answer = server.post(encode(stored, "PNG", exif=exif), "predict?max_objects=5").json()
    assert (answer["height"], answer["width"]) == expected.image_size
    boxes = [found["box"] for found in answer["objects"]]
    assert np.allclose(boxes, expected.boxes_I4[:5], atol=1)


@pytest.mark.parametrize(
    ("options", "status", "code", "words"),
    [
        ({"content": b"x", "headers": {"Content-Type": "text/html"}}, 415, "wrong_content_type", "'text/html'"),
        ({"data": {"image": "photo.png"}}, 415, "wrong_content_type", "multipart field 'image'"),
        ({"files": {"picture": b"x"}}, 400, "no_picture", "no field 'image' (its fields: 'picture')"),
        ({"files": {"image": (None, "/etc/passwd")}}, 400, "no_picture", "holds text, not a file"),
        ({"files": {"image": (None, "http://127.0.0.1:1/a.png")}}, 400, "no_picture", "holds text, not a file"),
        ({"files": {"image": b""}}, 400, "empty_body", "field 'image' is empty"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "bad_form", "boundary"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "bad_form", "form"),
        (
            {
                "content": b'--b\r\nContent-Disposition: form-data; name="xn--99999999999"\r\n\r\nx\r\n--b--\r\n',
                "headers": {"Content-Type": "multipart/form-data; boundary=b; charset=idna"},
            },
            400,
            "bad_form",
            "charset",
        ),
        ({"params": {"score": "1.5"}}, 422, "invalid_setting", "score is '1.5'"),
        ({"params": {"score": "nan"}}, 422, "invalid_setting", "score is 'nan'"),
        ({"params": {"max_objects": "0"}}, 422, "invalid_setting", "max_objects is '0'"),
        ({"params": {"max_objects": "1000000"}}, 422, "invalid_setting", "max_objects is '1000000'"),
        ({"params": {"format": "pdf"}}, 422, "invalid_setting", "format is 'pdf'"),
        ({"params": {"scroe": "0.9"}}, 422, "invalid_setting", "no setting 'scroe'; did you mean 'score'?"),
        ({"params": [("score", "0.5"), ("score", "0.9")]}, 422, "invalid_setting", "'score' is given more than once"),
        (
            {"files": {"image": b"x"}, "data": {"score": "0.9"}},
            422,
            "invalid_setting",
            "a field 'score' besides 'image'",
        ),
        ({"params": {"tile": "31"}}, 422, "invalid_setting", "tile is '31'"),
        ({"params": {"tile": "64", "overlap": "0.6"}}, 422, "invalid_setting", "overlap is '0.6'"),
        ({"content": b"x", "headers": {"Content-Encoding": "gzip"}}, 415, "wrong_content_encoding", "as it is"),
        ({"params": {"masks": "x" * 5000}}, 422, "invalid_setting", "masks is 'xxx"),
    ],
)
def test_bad_requests(server: Server, options: dict, status: int, code: str, words: str) -> None:
    response = server.http.post("predict", **options)
    assert problem(response)[:2] == (status, code)
    assert words in problem(response)[2]
    assert server.alive()


def test_wrong_addresses_and_methods(server: Server) -> None:
    assert problem(server.http.get("nothing/here"))[:2] == (404, "not_found")
    assert problem(server.http.get("../../etc/passwd"))[:2] == (404, "not_found")
    assert problem(server.http.get("%2e%2e/app.py"))[:2] == (404, "not_found")
    for method, path, allowed in (("GET", "predict", "POST"), ("DELETE", "model", "GET"), ("POST", "page.css", "GET")):
        refused = server.http.request(method, path)
        assert problem(refused)[:2] == (405, "method_not_allowed")
        assert refused.headers["allow"].split(", ")[-1] == allowed or allowed in refused.headers["allow"]
    for path in ("healthz", "readyz", "model", ""):
        assert server.http.head(path).status_code == 200


def test_half_a_gigabyte_is_refused_early_and_never_held(server: Server) -> None:
    """Sent in pieces without a Content-Length, and announced with one."""
    memory = server.metric("process_resident_memory_bytes")
    refused = server.post(bytes(1_000_000) for _ in range(40))
    assert problem(refused)[:2] == (413, "body_too_large")
    assert "limit of 32 MB" in problem(refused)[2]
    # Whoever goes on sending regardless may find the connection cut before the answer has been looked at.
    with contextlib.suppress(httpx.TransportError):
        assert server.post(bytes(1_000_000) for _ in range(500)).status_code == 413
    assert server.metric("process_resident_memory_bytes") < memory + 300e6

    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 500000000\r\n\r\n"
        )
        assert b" 413 " in client.recv(4096)
    assert server.alive()


def test_what_is_not_http_gets_json_too(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        head, _, body = client.recv(4096).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b'"bad_http"' in body
    assert server.alive()


def test_a_client_that_hangs_up_harms_nobody(server: Server, sample: bytes) -> None:
    for cut in (len(sample) // 2, len(sample)):  # in the middle of the picture, and before the answer
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            head = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
            head += f"Content-Length: {len(sample)}\r\n\r\n"
            client.sendall(head.encode() + sample[:cut])
    assert server.post(sample).status_code == 200
    assert server.alive()
