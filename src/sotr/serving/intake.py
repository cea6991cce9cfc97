"""Getting images out of a request: bounded in bytes, number and time, never by way of a disk."""

import asyncio
import base64
import difflib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from sotr.serving.problems import RequestError
from sotr.serving.settings import Limits
from sotr.serving.uploads import Upload

FIELD = "image"
"""The multipart field, and the key of a JSON object, that holds the image."""

MAX_IMAGES = 16
"""Images in one request, at most; together they may have as many bytes as one."""

JSON_SIGNS = 4096
"""Commas, brackets and quotation marks in a JSON body, at most: each may become a value of 50 times its bytes."""

PAUSE = 10.0
"""Seconds after which a client that sends nothing, in the middle of an image, is given up."""

FORM_OVERHEAD = 64 * 1024
"""Bytes that a multipart body may have beside the image."""

HOW_TO = (
    f"send the image as multipart field '{FIELD}', or as the body itself with Content-Type image/* or "
    "application/octet-stream"
)

HOW_TO_JSON = (
    f'send {{"{FIELD}": "BASE64"}}, or {{"images": [{{"name": "a.png", "{FIELD}": "BASE64"}}, ...]}} with up to '
    f"{MAX_IMAGES} images"
)


class Sent(NamedTuple):
    """An image as it came."""

    name: str
    """What the client calls it; may be empty."""
    body: bytes
    """Its file; empty if it could not be had."""
    problem: RequestError | None = None
    """Why not."""


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


async def read_picture(request: Request, limits: Limits, upload: Upload) -> bytes:
    """The file of the one image that a request carries.

    Raises:
        RequestError: there is none, or several, or it is too large, too slow, or not sent as `HOW_TO` says.
    """
    images, several = await read_images(request, limits, upload)
    if several:
        raise RequestError(400, "bad_form", f"here goes one image at a time; {HOW_TO}")
    if images[0].problem is not None:
        raise images[0].problem
    return images[0].body


async def read_images(request: Request, limits: Limits, upload: Upload) -> tuple[list[Sent], bool]:
    """The images that a request carries, and whether it asks for a list of answers.

    Raises:
        RequestError: there is none, or they are too many, too large, too slow, or not sent as `HOW_TO` says.
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
    if kind == "application/json":
        # Base64 has four characters for three bytes.
        text = await read_body(request, upload, limits.max_bytes, limits.max_bytes // 3 + FORM_OVERHEAD)
        return await asyncio.get_running_loop().run_in_executor(None, _from_json, text, limits.max_bytes)
    if kind != "application/octet-stream" and not kind.startswith("image/"):
        raise RequestError(415, "wrong_content_type", f"Content-Type is {kind[:80]!r}; {HOW_TO}")
    body = await read_body(request, upload, limits.max_bytes)
    if not body:
        raise RequestError(400, "empty_body", f"the body is empty; {HOW_TO}")
    return [Sent("", body)], False


async def read_body(request: Request, upload: Upload, max_bytes: int, overhead: int = 0) -> bytes:
    """The whole body of a request.

    Raises:
        RequestError: it is too large, or too slow.
    """
    body = bytearray()
    async with aclosing(_chunks(request, upload, max_bytes, overhead)) as chunks:
        async for chunk in chunks:
            body += chunk
    return bytes(body)


def parse_json(text: bytes, signs: int, how_to: str) -> dict[str, Any]:
    """A JSON object of few values, however long they are.

    Raises:
        RequestError: it is none.
    """
    problem = "it has too many values" if sum(text.count(sign) for sign in (b",", b"[", b"{", b'"')) > signs else ""
    try:
        content = None if problem else json.loads(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError, too
        problem = (
            str(error).partition(":")[0][:80].lower() if isinstance(error, ValueError) else "it is nested too deep"
        )
    if not problem and not isinstance(content, dict):
        problem = "it is no object"
    if problem:
        raise RequestError(400, "bad_json", f"the JSON cannot be used: {problem}; {how_to}")
    assert isinstance(content, dict)
    return content


def _from_json(text: bytes, max_bytes: int) -> tuple[list[Sent], bool]:
    content = parse_json(text, JSON_SIGNS, HOW_TO_JSON)
    wrong = sorted(set(content) - {FIELD, "images"})
    if wrong:
        message = f"the JSON has a key {wrong[0][:40]!r}; {HOW_TO_JSON}; settings belong into the address"
        raise RequestError(422, "invalid_setting", message)
    if len(content) != 1:
        raise RequestError(
            400, "no_picture", f"the JSON must have one of the keys {FIELD!r} and 'images'; {HOW_TO_JSON}"
        )
    if FIELD in content:
        image = _from_base64("", content[FIELD])
        if image.problem is not None:
            raise image.problem
        check_bytes([image], max_bytes)
        return [image], False
    entries = content["images"]
    if not isinstance(entries, list) or not entries:
        raise RequestError(400, "no_picture", f"'images' must be a list of at least one image; {HOW_TO_JSON}")
    refuse_too_many(len(entries))
    images = []
    for position, entry in enumerate(entries):
        named = entry if isinstance(entry, dict) else {FIELD: entry}
        if not set(named) <= {FIELD, "name"} or not isinstance(named.get("name", ""), str):
            raise RequestError(400, "bad_json", f"image {position} of the JSON cannot be used; {HOW_TO_JSON}")
        images.append(_from_base64(named.get("name", str(position)), named.get(FIELD)))
    check_bytes(images, max_bytes)
    return images, True


def _from_base64(name: str, text: object) -> Sent:
    """An image from its text, before which there may be the head of a data: address."""
    problem = ""
    if not isinstance(text, str):
        problem = f"the image is {'absent' if text is None else 'no text'}"
    elif not text:
        problem = "the image is empty"
    if not problem:
        assert isinstance(text, str)
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            body = base64.b64decode("".join(text.split()), validate=True)
        except ValueError:
            body, problem = b"", "the image is no base64; neither paths nor addresses are opened"
        if not problem and body:
            return Sent(name, body)
    return Sent(name, b"", RequestError(400, "bad_base64", f"{problem or 'the image is empty'}; {HOW_TO_JSON}"))


def refuse_too_many(images: int) -> None:
    """Refuse requests of too many images.

    Raises:
        RequestError: says how many there may be.
    """
    if images > MAX_IMAGES:
        message = f"there are {images} images in the request; send at most {MAX_IMAGES} at a time"
        raise RequestError(422, "too_many_images", message)


def check_bytes(images: Sequence[Sent], max_bytes: int) -> None:
    """Refuse images that have too many bytes together.

    Raises:
        RequestError: says how many they may have.
    """
    if sum(len(image.body) for image in images) > max_bytes:
        raise _too_large(max_bytes)


async def _from_form(request: Request, limits: Limits, upload: Upload) -> tuple[list[Sent], bool]:
    async with aclosing(_chunks(request, upload, limits.max_bytes, FORM_OVERHEAD)) as chunks:
        try:
            # One more than allowed, so that it can be said.
            parser = _InMemoryParser(
                request.headers, chunks, max_files=MAX_IMAGES + 1, max_fields=10, max_part_size=FORM_OVERHEAD
            )
            form = await parser.parse()
        except (MultiPartException, UnicodeError) as error:  # the latter of names in the encoding that it claims
            reason = (
                error.message.rstrip(".") if isinstance(error, MultiPartException) else "a name is not in its charset"
            )
            if reason.startswith("Too many files"):
                raise RequestError(
                    422,
                    "too_many_images",
                    f"there are more than {MAX_IMAGES} images in the request; send fewer at a time",
                ) from None
            message = f"the form cannot be read: {reason}; send up to {MAX_IMAGES} images, each as field '{FIELD}'"
            raise RequestError(400, "bad_form", message) from None
    try:
        parts = form.getlist(FIELD)
        if not parts:
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
        refuse_too_many(len(parts))
        images: list[Sent] = []
        for part in parts:
            if not isinstance(part, UploadFile):
                message = (
                    f"the field '{FIELD}' holds text, not a file; neither paths nor addresses are opened: send the "
                    f"image itself, with curl as -F {FIELD}=@picture.png"
                )
                raise RequestError(400, "no_picture", message)
            body = await part.read()
            empty = None if body else RequestError(400, "empty_body", f"the field '{FIELD}' is empty; {HOW_TO}")
            images.append(Sent(part.filename or str(len(images)), body, empty))
    finally:
        await form.close()
    if len(images) == 1 and images[0].problem is not None:
        raise images[0].problem
    return images, len(images) > 1


async def _chunks(request: Request, upload: Upload, max_bytes: int, overhead: int = 0) -> AsyncGenerator[bytes, None]:
    """The body piece by piece; counted, because a client's Content-Length need not be there, nor be true."""
    too_large = _too_large(max_bytes)
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
                raise RequestError(499, "client_gone", "the client hung up in the middle of the image") from None
            except TimeoutError:
                raise RequestError(
                    408, "too_slow", f"nothing of the image came for {PAUSE:.0f} s; send it again"
                ) from None
            received += len(chunk)
            upload.received = received
            if received > max_bytes + overhead:
                raise too_large
            yield chunk


def _too_large(max_bytes: int) -> RequestError:
    message = f"what was sent is larger than this server's limit of {_megabytes(max_bytes)}; shrink it, or send less"
    return RequestError(413, "body_too_large", message)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:g} MB" if count >= 1e6 else f"{count:,} bytes"
