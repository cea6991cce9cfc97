"""Getting the picture out of a request: bounded in bytes and time, never by way of a disk."""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from sotr.data.images import MAX_PIXELS
from sotr.errors import SOTRError
from sotr.serving.problems import RequestError

FIELD = "image"
"""The multipart field that holds the picture."""

PAUSE = 10.0
"""Seconds after which a client that sends nothing, in the middle of a picture, is given up."""

FORM_OVERHEAD = 64 * 1024
"""Bytes that a multipart body may have beside the picture."""

HOW_TO = (
    f"send the picture as multipart field '{FIELD}', or as the body itself with Content-Type image/* or "
    "application/octet-stream"
)


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Raises:
        SOTRError: a limit is not positive, or more pixels than can be drawn.
    """

    max_bytes: int = 32_000_000
    """Bytes of a picture's file."""
    max_pixels: int = 25_000_000
    """Width times height of a picture."""
    max_requests: int = 32
    """Requests that are worked on at the same time, waiting ones included."""
    timeout: float = 60.0
    """Seconds that a request may take, from its head to its answer."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_requests", "timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise SOTRError(f"{name} is {getattr(self, name)}; it must be positive, and not infinite")
        if self.max_pixels > MAX_PIXELS:
            raise SOTRError(f"max_pixels is {self.max_pixels}; it must be at most {MAX_PIXELS}")


class _InMemoryParser(MultiPartParser):
    # Starlette puts files over a megabyte on the disk, which may be full or read-only; here the body is bounded.
    spool_max_size = 2**40


async def read_picture(request: Request, limits: Limits) -> bytes:
    """The bytes of the picture that a request carries.

    Raises:
        RequestError: there is none, or it is too large, too slow, or sent in another way than `HOW_TO` says.
    """
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, limits)
    if kind != "application/octet-stream" and not kind.startswith("image/"):
        raise RequestError(415, "wrong_content_type", f"Content-Type is {kind[:80]!r}; {HOW_TO}")
    body = bytearray()
    async with aclosing(_chunks(request, limits.max_bytes)) as chunks:
        async for chunk in chunks:
            body += chunk
    if not body:
        raise RequestError(400, "empty_body", f"the body is empty; {HOW_TO}")
    return bytes(body)


async def _from_form(request: Request, limits: Limits) -> bytes:
    async with aclosing(_chunks(request, limits.max_bytes, FORM_OVERHEAD)) as chunks:
        try:
            parser = _InMemoryParser(request.headers, chunks, max_files=1, max_fields=10, max_part_size=FORM_OVERHEAD)
            form = await parser.parse()
        except (MultiPartException, UnicodeError) as error:  # the latter of names in the encoding that it claims
            reason = (
                error.message.rstrip(".") if isinstance(error, MultiPartException) else "a name is not in its charset"
            )
            message = f"the form cannot be read: {reason}; send one picture, as field '{FIELD}'"
            raise RequestError(400, "bad_form", message) from None
    try:
        part = form.get(FIELD)
        if part is None:
            names = ", ".join(repr(name[:40]) for name in form) or "none"
            message = f"the form has no field '{FIELD}' (its fields: {names}); {HOW_TO}"
            raise RequestError(400, "no_picture", message)
        if not isinstance(part, UploadFile):
            message = (
                f"the field '{FIELD}' holds text, not a file; neither paths nor addresses are opened: send the "
                f"picture itself, with curl as -F {FIELD}=@picture.png"
            )
            raise RequestError(400, "no_picture", message)
        body = await part.read()
    finally:
        await form.close()
    if not body:
        raise RequestError(400, "empty_body", f"the field '{FIELD}' is empty; {HOW_TO}")
    return body


async def _chunks(request: Request, max_bytes: int, overhead: int = 0) -> AsyncGenerator[bytes, None]:
    """The body piece by piece; counted, because a client's Content-Length need not be there, nor be true."""
    message = f"the picture's file is larger than this server's limit of {_megabytes(max_bytes)}; shrink it"
    too_large = RequestError(413, "body_too_large", message)
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes + overhead:
        raise too_large
    received = 0
    async with aclosing(request.stream()) as stream:
        while True:
            try:
                async with asyncio.timeout(PAUSE):
                    chunk = await anext(stream)
            except StopAsyncIteration:
                return
            except ClientDisconnect:
                raise RequestError(499, "client_gone", "the client hung up in the middle of the picture") from None
            except TimeoutError:
                raise RequestError(
                    408, "too_slow", f"nothing of the picture came for {PAUSE:.0f} s; send it again"
                ) from None
            received += len(chunk)
            if received > max_bytes + overhead:
                raise too_large
            yield chunk


def _megabytes(count: int) -> str:
    return f"{count / 1e6:g} MB" if count >= 1e6 else f"{count:,} bytes"
