"""Starting, slow clients, too many clients, and stopping."""

import asyncio
import contextlib
import io
import json
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from sotr.cli import run
from sotr.serving.protocol import listen
from sotr.serving.service import PICTURES_AT_ONCE
from tests.serving.conftest import Server, problem, running
from tests.support.slow_files import jpeg_of_scans

TIMEOUT = 4


@pytest.fixture(scope="module")
def strict() -> Server:  # type: ignore[misc]
    """One request at a time, for four seconds: machines may be busy."""
    with running("--timeout", str(TIMEOUT), "--max-requests", "1", "--access-log") as server:
        yield server


def head(length: int) -> bytes:
    return (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_accepted_connections_send_small_answers_at_once() -> None:
    """asyncio itself decides by what the listening socket says of itself."""

    async def option_of_accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                connection = transport.get_extra_info("socket")
                found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        listener = listen("127.0.0.1", 0)
        port = listener.getsockname()[1]
        server = await asyncio.get_running_loop().create_server(Accepted, sock=listener)
        async with server:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            option = await asyncio.wait_for(found, 10)
            writer.close()
            return option

    assert asyncio.run(option_of_accepted()) != 0


def wait_until_busy(server: Server) -> None:
    deadline = time.monotonic() + 60
    while server.metric("sotr_uploads") < 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_slow_clients_shut_out_nobody_and_are_cut(strict: Server, sample: bytes) -> None:
    """More of them than there are places for uploads, and than there are for requests."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", strict.port))) for _ in range(20)]
        for client in slow:
            client.sendall(head(1000) + b"x" * 10)
        wait_until_busy(strict)
        time.sleep(1.2)
        for _ in range(3):
            assert strict.post(sample).status_code == 200
        assert strict.http.get("readyz").status_code == 200
        for client in slow:
            client.settimeout(60)
            answer = b"".join(iter(lambda client=client: client.recv(4096), b""))  # until the server closes
            assert answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 503"))
            assert b'"too_slow"' in answer or b'"busy"' in answer
    assert strict.metric("sotr_uploads") == 0


def test_slow_files_do_not_keep_the_service_from_working(sample: bytes) -> None:
    """Two such files, after which a good image was answered 504 while the server called itself ready; and SIGTERM while
    others are being decoded ends the process."""
    body, slower = jpeg_of_scans(240, 4992), jpeg_of_scans(250, 12000)
    with (
        running("--timeout", "6", "--engine", "pytorch", "--max-pixels", "200000000") as server,
        ThreadPoolExecutor(8) as clients,
    ):
        slow = [clients.submit(server.post, slower) for _ in range(4)]
        wait_for_decoders(server, 2)
        assert [problem(each.result())[:2] for each in slow] == [(504, "timeout")] * 4
        deadline = time.monotonic() + 5
        while server.metric("sotr_decoders_busy"):
            assert time.monotonic() < deadline, "decoding goes on though nobody waits for it"
            time.sleep(0.1)
        assert server.metric("sotr_decoders_ended") >= 2
        assert server.post(sample).status_code == 200
        again = [clients.submit(server.post, body) for _ in range(2)]
        wait_for_decoders(server, 2)
        server.process.send_signal(signal.SIGTERM)
        output, errors = server.process.communicate(timeout=20)
        assert (server.process.returncode, output, errors) == (0, "stopped\n", "")
        for each in again:
            assert each.exception() is not None or each.result().status_code in (200, 504)


def post_from(address: str, server: Server, body: bytes) -> httpx.Response:
    """Answered to another of this machine's addresses."""
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=120) as http:
        return http.post(server.url + "predict", content=body)


def wait_for_decoders(server: Server, count: int) -> None:
    deadline = time.monotonic() + 60
    while server.metric("sotr_decoders_busy") < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address on Linux alone")
def test_slow_files_of_one_address_keep_no_other_address_waiting_and_of_all_make_the_server_not_ready(
    sample: bytes,
) -> None:
    """Within the limits of scans, pixels and processor time; a few such files used to hold all decoders."""
    slow = jpeg_of_scans(250, 12000)
    processes = PICTURES_AT_ONCE + 1
    limits = ("--timeout", "60", "--max-pixels", "200000000")
    with running("--engine", "pytorch", *limits) as server, ThreadPoolExecutor(processes + 4) as clients:
        held = [clients.submit(post_from, "127.0.0.2", server, slow) for _ in range(processes + 2)]
        wait_for_decoders(server, PICTURES_AT_ONCE)
        assert server.post(sample).status_code == 200
        assert not any(each.done() for each in held), "the slow files were too quick for this test"
        assert server.http.get("readyz").status_code == 200
        another = clients.submit(post_from, "127.0.0.3", server, slow)
        wait_for_decoders(server, processes)
        while (answer := server.http.get("readyz")).status_code == 200:
            time.sleep(0.1)
        assert problem(answer)[:2] == (503, "stuck")
        assert "images have been decoded for" in problem(answer)[2]
        assert answer.headers["retry-after"] == "5"
        assert server.http.get("healthz").status_code == 200
        assert not another.done()
        server.process.kill()  # nobody waits for what these files come to


ENDLESS = """
import time
from sotr.model.segmenter import Segmenter
segment = Segmenter.segment
def endless(self, batch, **options):
    if batch[0].original_size == (5, 5):
        time.sleep(3600)
    return segment(self, batch, **options)
Segmenter.segment = endless
"""
"""A network that does not come to an end with one small image, as a driver that hangs makes it."""


def test_the_process_ends_even_if_its_network_does_not() -> None:
    """Threads cannot be ended, and Python waits for them when it leaves."""
    picture = io.BytesIO()
    Image.new("RGB", (5, 5)).save(picture, "PNG")
    with running("--engine", "pytorch", "--timeout", "3", script=ENDLESS) as server:
        assert problem(server.post(picture.getvalue()))[:2] == (504, "timeout")
        while server.metric("sotr_network_seconds") < 3:
            time.sleep(0.1)
        assert problem(server.http.get("readyz"))[:2] == (503, "stuck")
        server.process.send_signal(signal.SIGTERM)
        output, errors = server.process.communicate(timeout=60)
    assert (server.process.returncode, output) == (0, "stopped\n")
    assert errors == "warning: work that did not come to an end was given up\n"


def test_a_server_that_may_open_few_files_serves_and_says_little(sample: bytes) -> None:
    with running("--engine", "pytorch", "--timeout", "30", files=64) as server, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(90)]
        time.sleep(1)
        for client in crowd[:60]:
            client.close()
        time.sleep(1.5)
        assert httpx.post(server.url + "predict", content=sample, timeout=60).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        _, errors = server.process.communicate(timeout=60)
        assert errors.count("\n") <= 2, errors[:3000]


def test_an_answer_that_is_not_read_keeps_its_place_for_a_bounded_time(strict: Server) -> None:
    noise = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (1300, 1700, 3), np.uint8)
    Image.fromarray(pixels).save(noise, "BMP")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", strict.port))
        client.sendall(head(noise.tell()).replace(b"/predict", b"/upright") + noise.getvalue())
        client.settimeout(60)
        start = client.recv(1000)  # the answer is made, and on its way
        assert start.startswith(b"HTTP/1.1 200")
        assert problem(strict.post(b"x"))[:2] == (503, "busy")
        deadline = time.monotonic() + 60
        while strict.metric("sotr_pictures_in_flight"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        received = len(start)
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(1 << 16):
                received += len(piece)
        assert received < pixels.nbytes // 2
    whole = strict.post(noise.getvalue(), "upright")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(whole.content))), pixels)


def test_a_connection_without_a_request_is_cut(strict: Server) -> None:
    for start in (b"", b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "):
        with socket.create_connection(("127.0.0.1", strict.port)) as client:
            client.sendall(start)
            client.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(4096) == b""
    assert strict.alive()


def test_sigterm_drains() -> None:
    """The request under way is answered, new ones are refused, and the exit code is 0; nothing is said of clients that
    hung up before."""
    body = bytes(1000)
    with running("--engine", "pytorch") as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        with socket.create_connection(("127.0.0.1", server.port)) as another:
            another.sendall(head(len(body)) + body[:500])
            wait_until_busy(server)
        while server.metric("sotr_uploads") > 0:
            time.sleep(0.02)
        client.sendall(head(len(body)) + body[:500])
        wait_until_busy(server)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            while True:
                # One that waited when the door was shut is cut off.
                with contextlib.suppress(httpx.ReadError, httpx.RemoteProtocolError):
                    httpx.get(server.url + "healthz")
        assert server.process.poll() is None
        client.sendall(body[500:])
        client.settimeout(60)
        assert client.recv(4096).startswith(b"HTTP/1.1 422")
        output, errors = server.process.communicate(timeout=60)
        assert server.process.returncode == 0
        assert output.splitlines() == ["stopped"]
        assert errors == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no such model"], "there is no model 'no such model'"),
        (["--port", "70000"], "port is 70000"),
        (["--host", "256.1.1.1", "--no-auth"], "cannot listen on 256.1.1.1"),
        (["--host", "a..b", "--no-auth"], "cannot listen on a..b"),
        (["--timeout", ".inf"], "timeout is inf; it must be positive, and not infinite"),
        (["--max-pixels", "0"], "max_pixels is 0; it must be positive"),
        (["--max-pixels", "200000001"], "max_pixels is 200000001; it must be at most 200000000"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--timeout", "-1"], "timeout is -1.0"),
        (["--sample", "absent.png"], "absent.png: no such file"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--port", "0", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert captured.err.count("\n") == 1


def test_what_is_said_beside_the_log_is_json_too() -> None:
    with running("--access-log", "--engine", "pytorch") as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"this is not HTTP\r\n\r\n")
            client.recv(100)
        server.http.get("healthz")
        server.process.send_signal(signal.SIGTERM)
        _, errors = server.process.communicate(timeout=60)
    lines = [json.loads(line) for line in errors.splitlines()]
    assert any(line.get("path") == "/healthz" for line in lines)
    assert any("Invalid HTTP" in line.get("message", "") for line in lines)


def test_a_taken_port_is_said_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        pytest.fail("the model was loaded first")

    monkeypatch.setattr("sotr.serving.server.load", load)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}: address already in use" in capsys.readouterr().err
    assert threading.active_count() < 50
