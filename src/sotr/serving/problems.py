"""What goes wrong, as the client is told: a status, a short code for programs and one line for people."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from sotr.data.decoding_pool import DecodingMemoryError
from sotr.data.images import PictureTooLargeError
from sotr.errors import SOTRError

_LOG = logging.getLogger("sotr.serving")


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        status: the HTTP status.
        code: names the kind of error, for programs.
        message: one line that names what is wrong and the remedy, for people.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        # What clients send may hold halves of characters, which cannot be written.
        super().__init__(message.encode("utf-8", "replace").decode())
        self.status = status
        self.code = code
        self.headers = headers

    @classmethod
    def of_picture(cls, error: SOTRError) -> "RequestError":
        """The answer to an image that the loader refused."""
        reason = str(error).removeprefix("<bytes>: ")
        if isinstance(error, PictureTooLargeError):
            # The limit is not the client's to raise.
            reason = reason.removesuffix(", predict in pieces with --tile, or raise max_pixels")
            return cls(413, "picture_too_large", f"the image is too large: {reason}")
        if isinstance(error, DecodingMemoryError):
            return out_of_memory()
        return cls(422, "unreadable_picture", f"what was sent {reason}")


def out_of_memory() -> RequestError:
    """The answer where the memory does not suffice."""
    message = "the server has too little memory for this image just now; try again later, or shrink it"
    return RequestError(503, "out_of_memory", message, {"Retry-After": "10"})


class ProblemDetails(BaseModel):
    """Which error it was."""

    code: str = Field(description="the kind of error, for programs", examples=["unreadable_picture"])
    message: str = Field(description="one line that says what is wrong, for people")


class Problem(BaseModel):
    """The body of every answer from 400 on."""

    error: ProblemDetails


def problem_response(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as JSON."""
    content = {"error": {"code": code, "message": " ".join(message.split())}}
    return JSONResponse(content, status, {"Cache-Control": "no-store", **(headers or {})})


def add_problem_handlers(app: FastAPI) -> None:
    """Make every error of the application JSON of one kind."""
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(RequestValidationError, _invalid_setting)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(MemoryError, _no_memory)
    app.add_exception_handler(Exception, _bug)


async def _request_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return problem_response(error.status, error.code, str(error), error.headers)


async def _invalid_setting(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    message = f"{name} is {str(first.get('input'))[:50]!r}; {str(first['msg']).lower()}; /docs lists the settings"
    return problem_response(422, "invalid_setting", message)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    texts = {
        404: ("not_found", "there is nothing at this address; /docs lists what there is"),
        405: ("method_not_allowed", f"{request.method} is not possible here; /docs lists what is"),
    }
    code, message = texts.get(error.status_code, ("bad_request", str(error.detail)))
    return problem_response(error.status_code, code, message, dict(error.headers or {}))


async def _no_memory(request: Request, _: Exception) -> JSONResponse:
    return await _request_error(request, out_of_memory())


async def _bug(request: Request, error: Exception) -> JSONResponse:
    # The server above logs the traceback; the client learns nothing of the inside.
    _LOG.error("%s %s failed: %s", request.method, request.url.path, type(error).__name__)
    return problem_response(500, "internal_error", "the server failed on this request; its log says why")
