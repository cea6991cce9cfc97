"""Getting the picture out of a request: bounded in bytes and time, never by way of a disk."""

import asyncio
import difflib
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from sotr.serving.problems import RequestError
from sotr.serving.settings import Limits
from sotr.serving.uploads import Upload

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


class _InMemoryParser(MultiPartParser):
    # Starlette puts files over a megabyte on the disk, which may be full or read-only; here the body is bounded.
    spool_max_size = 2**40


def check_settings(request: Request) -> None:
    """Refuse settings that there are not, and those that are given twice: they would be ignored.

    Raises:
        RequestError: names the setting, and the nearest that there is.
    """
    dependant = getattr(request.scope.get("route"), "dependant", None)
    known = [field.alias for field in dependant.query_params] if dependant is not None else []
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
            raise RequestError(422, "invalid_setting", f"there is no setting {name[:40]!r}; {remedy}")
        if given.count(name) > 1:
            raise RequestError(422, "invalid_setting", f"the setting {name!r} is given more than once; give it once")


def accepts_gzip(request: Request) -> bool:
    """Whether the client asks for compressed answers."""
    for part in request.headers.get("accept-encoding", "").lower().split(","):
        coding, _, weight = part.replace(" ", "").partition(";q=")
        if coding in ("gzip", "*"):
            return weight not in ("0", "0.0", "0.00", "0.000")
    return False


async def read_picture(request: Request, limits: Limits, upload: Upload) -> bytes:
    """The bytes of the picture that a request carries.

    Raises:
        RequestError: there is none, or it is too large, too slow, or sent in another way than `HOW_TO` says.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = (
            f"Content-Encoding is {encoding[:40]!r}; send the image's file as it is, images are compressed already"
        )
        raise RequestError(415, "wrong_content_encoding", message)
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, limits, upload)
    if kind != "application/octet-stream" and not kind.startswith("image/"):
        raise RequestError(415, "wrong_content_type", f"Content-Type is {kind[:80]!r}; {HOW_TO}")
    body = bytearray()
    async with aclosing(_chunks(request, upload, limits.max_bytes)) as chunks:
        async for chunk in chunks:
            body += chunk
    if not body:
        raise RequestError(400, "empty_body", f"the body is empty; {HOW_TO}")
    return bytes(body)


async def _from_form(request: Request, limits: Limits, upload: Upload) -> bytes:
    async with aclosing(_chunks(request, upload, limits.max_bytes, FORM_OVERHEAD)) as chunks:
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
        others = [name for name in form if name != FIELD]
        if others:
            message = (
                f"the form has a field {others[0][:40]!r} besides '{FIELD}'; settings belong into the address, such as "
                "/predict?score=0.5"
            )
            raise RequestError(422, "invalid_setting", message)
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


async def _chunks(request: Request, upload: Upload, max_bytes: int, overhead: int = 0) -> AsyncGenerator[bytes, None]:
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
            upload.received = received
            if received > max_bytes + overhead:
                raise too_large
            yield chunk


def _megabytes(count: int) -> str:
    return f"{count / 1e6:g} MB" if count >= 1e6 else f"{count:,} bytes"
