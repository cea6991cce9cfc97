"""The `serve` command: a model behind uvicorn, which drains and ends with code 0 when it is told to stop."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import uvicorn
from rich.console import Console
from rich.markup import escape
from uvicorn.protocols.http.h11_impl import H11Protocol

from sotr.data.images import load_image
from sotr.errors import SOTRError
from sotr.loading import load
from sotr.serving.answers import to_png
from sotr.serving.app import create_app
from sotr.serving.intake import Limits
from sotr.serving.sample import draw_sample

MAX_CONNECTIONS = 512
"""Open connections, idle ones included; further ones are closed at once."""

LINGER = 5.0
"""Seconds for which the rest of a refused picture is read and thrown away: closing at once would destroy the answer on
its way to a client that is still sending."""

LOOPBACK = ("localhost", "::1")

_HEADERS = [("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"), ("Referrer-Policy", "no-referrer")]


def serve(
    model: str | Path = "nuclei",
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    batch_size: int = 8,
    max_bytes: int = Limits.max_bytes,
    max_pixels: int = Limits.max_pixels,
    max_requests: int = Limits.max_requests,
    timeout: float = Limits.timeout,
    sample: str | Path | None = None,
    access_log: bool = False,
    quiet: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    engine: Literal["auto", "pytorch"] = "auto",
) -> None:
    """Serve a model over HTTP: POST /predict takes a picture, and the page at / shows what comes of it.

    /docs describes the interface. SIGTERM and Ctrl+C end the server once the requests that it has are answered. There
    is no access control: beyond this machine, put a reverse proxy in front.

    Args:
        model: a bundled model, a model or training run folder, a hub id, or an exported file (.onnx, .xml), for which
            PyTorch is not needed.
        host: address to listen on; the default answers this machine alone, 0.0.0.0 whoever can reach it.
        port: port to listen on; 0 takes a free one, which is printed.
        device: auto, cpu, cuda, cuda:1, mps; an exported file runs on cpu or cuda.
        batch_size: pictures of one size that go through the network together when several wait.
        max_bytes: largest file of a picture that is accepted, in bytes.
        max_pixels: largest width times height that is accepted.
        max_requests: requests worked on at the same time, waiting ones included; further ones are answered 503, and so
            are those whose turn would come too late.
        timeout: seconds that a request may take, slow clients' sending included.
        sample: a picture that the page offers to try; by default one of drawn cell nuclei.
        access_log: write a line of JSON per request to standard error.
        quiet: print nothing but warnings.
        precision: float32, or bfloat16: quicker where the device computes it in hardware, with slightly other results.
        engine: auto takes the quickest way that proves equal to plain PyTorch, such as OpenVINO on CPUs if it is
            installed; pytorch takes plain PyTorch, which starts at once and needs less memory.

    Raises:
        SOTRError: the model or the sample cannot be used, a setting is out of range, or the port is taken.
    """
    if batch_size < 1:
        raise SOTRError(f"batch_size is {batch_size}; it must be at least 1")
    limits = Limits(max_bytes, max_pixels, max_requests, timeout)
    sample_png = to_png(draw_sample() if sample is None else load_image(sample))
    segmenter = load(model, device, precision, engine)
    segmenter.accelerate()
    # The first call sets up threads and kernels, which no client should wait for.
    segmenter.predict(sample_png)
    app = create_app(segmenter, limits, batch_size, sample_png, access_log)
    listener = listen(host, port)

    console = Console(quiet=quiet, highlight=False, soft_wrap=True)
    address = _address(host, listener.getsockname()[1])
    console.print(f"{escape(segmenter.name)} on {segmenter.device}: {address} (interface: {address}docs); stop: Ctrl+C")
    if not (host.startswith("127.") or host in LOOPBACK):
        print(f"warning: {host} is open to other machines, and there is no access control", file=sys.stderr)  # noqa: T201
    config = uvicorn.Config(
        app,
        http=_guarded_protocol(timeout),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        headers=_HEADERS,
        server_header=False,
        # Requests end by themselves in time; the second is for their answers.
        timeout_graceful_shutdown=round(timeout) + 1,
    )
    server = uvicorn.Server(config)
    with _stopping_on_signals(server):
        server.run(sockets=[listener])
    console.print("stopped")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, made before the server starts so that failure is one clear line."""
    if not 0 <= port <= 65535:
        raise SOTRError(f"port is {port}; it must lie in 0..65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
        # asyncio turns Nagle's algorithm off only where the socket names its protocol, which create_server leaves out;
        # with it, each small answer on a kept connection waits 40 ms for the client's acknowledgment.
        return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listener.detach())
    except (OSError, UnicodeError) as error:  # the latter of names that no host can have
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise SOTRError(f"cannot listen on {host} port {port}: {reason}; choose others with --host, --port") from None


def _address(host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    return f"http://{shown}:{port}/"


@contextmanager
def _stopping_on_signals(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the server, before uvicorn listens to them and after it has.

    When uvicorn has drained, it raises the signal once more for whoever listened before it; that would be the command
    line, whose exit code 143 or 130 means broken off. A server that has answered all it took has ended well.
    """

    def stop(*_: object) -> None:
        server.should_exit = True

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _guarded_protocol(timeout: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 for clients that are slow, many or broken.

    uvicorn itself waits without end for a request's head, for a client to take its answer, and for one to finish
    sending what was refused. Here a connection that spends `timeout` or `LINGER` seconds so is cut.
    """

    class GuardedProtocol(H11Protocol):
        _cut: asyncio.TimerHandle | None = None
        _taking: asyncio.TimerHandle | None = None

        def pause_writing(self) -> None:
            """The connection is full: from now on the client has a time to take its answer."""
            super().pause_writing()
            if self._taking is None:
                self._taking = self.loop.call_later(timeout, self.transport.abort)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > MAX_CONNECTIONS:
                transport.abort()
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._taken()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            self._taken()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Like every error, JSON."""
            body = json.dumps({"error": {"code": "bad_http", "message": "this is not an HTTP request"}}).encode()
            head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"Connection: close\r\n\r\n" + body)
            self.transport.close()

        def _taken(self) -> None:
            if self._taking is not None:
                self._taking.cancel()
                self._taking = None

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()
            elif self._cut is None:
                refused = self.cycle is not None and self.cycle.more_body
                self._cut = self.loop.call_later(LINGER if refused else timeout, self.transport.abort)

        def _unwatch(self) -> None:
            if self._cut is not None:
                self._cut.cancel()
                self._cut = None

    return GuardedProtocol
