"""The `serve` command: a model behind uvicorn, which drains and ends with code 0 when it is told to stop."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import uvicorn
from fastapi import FastAPI
from rich.console import Console
from rich.markup import escape

from sotr.data.images import load_image
from sotr.errors import SOTRError
from sotr.loading import load
from sotr.serving.answers import to_png
from sotr.serving.app import create_app
from sotr.serving.label_studio import LabelStudio
from sotr.serving.monitor import json_logging
from sotr.serving.protocol import at_one_time, guarded_protocol, listen, most_connections
from sotr.serving.sample import draw_sample
from sotr.serving.settings import Limits, ServerSettings, access_of, is_loopback

_HEADERS = [("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"), ("Referrer-Policy", "no-referrer")]


def serve(
    model: str | Path = "nuclei",
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    batch_size: int | None = None,
    max_bytes: int = Limits.max_bytes,
    max_pixels: int = Limits.max_pixels,
    max_requests: int = Limits.max_requests,
    timeout: float = Limits.timeout,
    sample: str | Path | None = None,
    access_log: bool = False,
    quiet: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    engine: Literal["auto", "pytorch"] = "auto",
    api_key_file: str | Path | None = None,
    auth: bool = True,
    allowed_hosts: str | None = None,
    cors_origin: str | None = None,
    label_studio: bool = False,
    label_studio_url: str | None = None,
) -> None:
    """Serve a model over HTTP: POST /predict takes an image, and the page at / shows what comes of it.

    /docs describes the interface. SIGTERM and Ctrl+C end the server once the requests that it has are answered. Where
    other machines reach the server, it wants a key from its clients.

    Args:
        model: a bundled model, a model or training run folder, a hub id, or an exported file (.onnx, .xml), for which
            PyTorch is not needed.
        host: address to listen on; the default answers this machine alone, 0.0.0.0 whoever can reach it.
        port: port to listen on; 0 takes a free one, which is printed.
        device: auto, cpu, cuda, cuda:1, mps; an exported file runs on cpu or cuda.
        batch_size: images of one size that go through the network together when several wait; by default 1 on a CPU,
            where more gain nothing, else 8.
        max_bytes: largest file of an image that is accepted, in bytes.
        max_pixels: largest width times height that is accepted.
        max_requests: requests worked on at the same time, waiting ones included; further ones are answered 503, and so
            are those whose turn would come too late.
        timeout: seconds that a request may take, slow clients' sending included.
        sample: an image that the page offers to try; by default one of drawn cell nuclei.
        access_log: write a line of JSON per request to standard error.
        quiet: print nothing but warnings.
        precision: float32, or bfloat16: quicker where the device computes it in hardware, with slightly other results.
        engine: auto takes the quickest way that proves equal to plain PyTorch, such as OpenVINO on CPUs if it is
            installed; pytorch takes plain PyTorch, which starts at once and needs less memory.
        api_key_file: a file with a key of at least 16 characters that clients must show; the page asks for it once.
            Needed where other machines reach the server.
        auth: --no-auth lets everyone ask who reaches the server.
        allowed_hosts: names under which the server answers, such as lab.example,*.lab.example; * is every name. By
            default those of this machine if it alone reaches the server, else every name.
        cors_origin: other servers whose pages may ask this one, such as https://lab.example, separated by commas.
        label_studio: be Label Studio's ML backend, too, at the address /label-studio.
        label_studio_url: address of Label Studio, from which images are fetched, and behind commas those of other
            servers whose images its tasks name; by default LABEL_STUDIO_URL of the environment, else
            http://localhost:8080. LABEL_STUDIO_API_KEY is its token, if it shall not be the one that it sends.

    Raises:
        SOTRError: the model or the sample cannot be used, a setting is out of range, or the port is taken.
    """
    limits = Limits(max_bytes, max_pixels, max_requests, timeout)
    access = access_of(host, api_key_file, auth, allowed_hosts, cors_origin)
    studio = LabelStudio.of(label_studio_url, os.environ) if label_studio else None
    if label_studio_url is not None and not label_studio:
        raise SOTRError("label_studio_url is of use with --label-studio only; give both")
    settings = ServerSettings(host, port, batch_size, limits, access, access_log, quiet)
    if access_log:
        json_logging()
    connections = most_connections()
    sample_png = to_png(draw_sample() if sample is None else load_image(sample))
    # Before the model, whose loading takes seconds. Who asks in the meantime has to wait.
    with listen(host, port) as listener:
        segmenter = load(model, device, precision, engine)
        segmenter.accelerate()
        # The first call sets up threads and kernels, which no client should wait for.
        segmenter.predict(sample_png)
        together = settings.batch_size_on(segmenter.device)
        app = create_app(segmenter, limits, together, sample_png, access_log, access, studio)

        console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        address = _address(host, listener.getsockname()[1])
        console.print(
            f"{escape(segmenter.name)} on {segmenter.device}: {address} (interface: {address}docs); stop: Ctrl+C"
        )
        if access.key is None and not is_loopback(host):
            print(f"warning: {host} is open to other machines, and everyone may ask", file=sys.stderr)  # noqa: T201
        _run(app, settings, listener, connections)
        console.print("stopped")
    if not app.state.service.close():
        # Threads cannot be ended, and Python waits for them when it leaves.
        print("warning: work that did not come to an end was given up", file=sys.stderr, flush=True)  # noqa: T201
        sys.stdout.flush()
        os._exit(0)


def _run(app: FastAPI, settings: ServerSettings, listener: socket.socket, most: int) -> None:
    """Serve until a signal comes and the requests that are there are answered."""
    timeout = settings.limits.timeout
    config = uvicorn.Config(
        app,
        http=guarded_protocol(timeout, most),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        headers=_HEADERS,
        server_header=False,
        backlog=at_one_time(most),
        # Requests end by themselves in time; the second is for their answers.
        timeout_graceful_shutdown=round(timeout) + 1,
    )
    server = uvicorn.Server(config)
    with _stopping_on_signals(server):
        server.run(sockets=[listener])


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
