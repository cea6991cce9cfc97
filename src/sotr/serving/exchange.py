"""What a request says of its client, and what it is answered."""

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from fastapi import Request

from sotr.serving.problems import RequestError

R = TypeVar("R")


class Content(NamedTuple):
    """What an answer holds."""

    body: bytes
    media_type: str
    headers: Mapping[str, str] = MappingProxyType({})


def client_of(request: Request) -> str:
    """The address that a request comes from; empty if it is not known."""
    return request.client.host if request.client else ""


def accepts_gzip(request: Request) -> bool:
    """Whether the client asks for compressed answers."""
    for part in request.headers.get("accept-encoding", "").lower().split(","):
        coding, _, weight = part.replace(" ", "").partition(";q=")
        if coding in ("gzip", "*"):
            return weight not in ("0", "0.0", "0.00", "0.000")
    return False


def accepts_tiff(request: Request) -> bool:
    """Whether the client asks for TIFF files."""
    return "image/tiff" in request.headers.get("accept", "").lower()


def compact(content: Any) -> bytes:
    """JSON without spaces; halves of characters, which cannot be written, become question marks."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def packed(
    make: Callable[[], bytes], media_type: str, gzipped: bool, headers: Mapping[str, str] = MappingProxyType({})
) -> Content:
    """What `make` gives, compressed if that is asked for: here, in a thread, and not where all requests are handled."""
    body = make()
    if gzipped and len(body) > 1000:
        body = gzip.compress(body, 5)
        return Content(body, media_type, {"Content-Encoding": "gzip", "Vary": "Accept-Encoding", **headers})
    return Content(body, media_type, {"Vary": "Accept-Encoding", **headers})


async def unless_gone(request: Request, work: Awaitable[R]) -> R:
    """The result of `work`, which is given up when the client hangs up: nobody would read the answer."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestError(499, "client_gone", "the client has hung up")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
