"""Images that are neither files nor arrays."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sotr.data import sources
from sotr.data.images import load_image
from sotr.data.sources import fetched
from sotr.errors import SOTRError

RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
GRAY = RGB[..., 0]


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.from_numpy(RGB), RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1) / 255, RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1).double() / 255, RGB),
        ((torch.from_numpy(RGB) / 255).requires_grad_(), RGB),
        (torch.from_numpy(GRAY), GRAY[..., None].repeat(3, 2)),
        (torch.from_numpy(GRAY)[None], GRAY[..., None].repeat(3, 2)),
        (torch.zeros(3, 5, 3), np.zeros((5, 3, 3), np.uint8)),  # channels come first where both fit
        (torch.ones(3, 4, 4, dtype=torch.bfloat16), np.full((4, 4, 3), 255, np.uint8)),
    ],
)
def test_tensors(tensor: torch.Tensor, expected: np.ndarray) -> None:
    assert np.array_equal(load_image(tensor), expected)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 3, 4, 4), r"shape 2 x 3 x 4 x 4 is a batch; give a list of images, such as list\(tensor\)"),
        (torch.zeros(5, 4, 4), "shape 5 x 4 x 4 is no image"),
        (torch.zeros(3, 0, 4), "shape 3 x 0 x 4 is no image"),
        (torch.full((3, 4, 4), 255.0), "values from 255 to 255; floating point must lie in 0..1"),
        (torch.full((3, 4, 4), -0.1), "values from -0.1 to -0.1"),
        (torch.full((3, 4, 4), torch.nan), "values from nan"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "values of type int64; give uint8"),
    ],
)
def test_other_tensors_are_one_line(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(SOTRError, match=message) as caught:
        load_image(tensor)
    assert "\n" not in str(caught.value)


def test_open_files(tmp_path: Path) -> None:
    file = io.BytesIO(png())
    assert np.array_equal(load_image(file), RGB)
    with pytest.raises(SOTRError, match=r"has been read; rewind it with seek\(0\)"):
        load_image(file)
    (tmp_path / "a.png").write_bytes(png())
    with (tmp_path / "a.png").open("rb") as opened:
        assert np.array_equal(load_image(opened), RGB)
    assert np.array_equal(load_image(bytearray(png())), RGB)  # type: ignore[arg-type]
    with pytest.raises(SOTRError, match="is open as text; open it with mode 'rb'"):
        load_image(io.StringIO("text"))  # type: ignore[arg-type]


def test_what_is_no_image() -> None:
    with pytest.raises(SOTRError, match="NoneType is no image; give a file name"):
        load_image(None)  # type: ignore[arg-type]
    with pytest.raises(SOTRError, match=r"its channels first; give array\.transpose\(1, 2, 0\)"):
        load_image(RGB.transpose(2, 0, 1))
    with pytest.raises(SOTRError, match=r"is a URL; download it, or call model\.predict\(\.\.\., allow_url=True\)"):
        load_image("https://example.org/a.png")


class Answers(BaseHTTPRequestHandler):
    """A server with an image, a large file, and redirections."""

    def do_GET(self) -> None:
        target = {"/to-file": "file:///etc/hostname", "/to-image": "/image.png"}.get(self.path)
        content = {"/image.png": png(), "/large": bytes(3000)}.get(self.path)
        self.send_response(302 if target else 200 if content else 404)
        if target:
            self.send_header("Location", target)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_urls_are_fetched_within_limits(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetched(f"{site}/image.png") == fetched(f"{site}/to-image") == png()
    with pytest.raises(SOTRError, match=r"nothing: cannot be fetched: (HTTP Error 404|Not Found)"):
        fetched(f"{site}/nothing")
    # A server may not lead to files of this machine.
    with pytest.raises(SOTRError, match="cannot be fetched"):
        fetched(f"{site}/to-file")
    monkeypatch.setattr(sources, "URL_BYTES", 2000)
    with pytest.raises(SOTRError, match="large: exceeds"):
        fetched(f"{site}/large")
    monkeypatch.setattr(sources, "URL_SECONDS", -1.0)
    with pytest.raises(SOTRError, match="cannot be fetched"):
        fetched(f"{site}/image.png")
