"""How the interface describes itself: what is sent, what comes back, and what may go wrong."""

from typing import Any

from pydantic import BaseModel, Field

from sotr.serving.answers import ClassName, Prediction, Predictions
from sotr.serving.intake import FIELD, MAX_IMAGES
from sotr.serving.problems import Problem

DESCRIPTION = """
Instance segmentation: send an image, get the objects in it with their masks. Coordinates are pixels of the upright
image (EXIF rotation applied), origin at the top left, half-open.

Every error is JSON, `{"error": {"code": ..., "message": ...}}`. When the server is busy it answers 503 at once;
`Retry-After` says in how many seconds to try again. Where the server wants a key, send it as
`Authorization: Bearer KEY` or `X-API-Key: KEY`.
"""

_FILE = {"type": "string", "format": "binary"}
_RETRY = {"Retry-After": {"description": "seconds until it is worth to try again", "schema": {"type": "integer"}}}
_ALLOW = {"Allow": {"description": "the methods that there are", "schema": {"type": "string"}}}

_BASE64 = {"type": "string", "contentEncoding": "base64", "description": "the file; a data: address will do, too"}
_ONE_JSON = {"type": "object", "required": [FIELD], "properties": {FIELD: _BASE64}, "additionalProperties": False}
_NAMED_JSON = {**_ONE_JSON, "properties": {FIELD: _BASE64, "name": {"type": "string"}}}
_LIST_JSON = {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": {"anyOf": [_NAMED_JSON, _BASE64]}}
_SEVERAL_JSON = {
    "type": "object",
    "required": ["images"],
    "properties": {"images": _LIST_JSON},
    "additionalProperties": False,
}


def _body(description: str, form: dict[str, Any], json: dict[str, Any]) -> dict[str, Any]:
    content = {
        "multipart/form-data": {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: form}}},
        "application/json": {"schema": json},
        "application/octet-stream": {"schema": _FILE},
        "image/*": {"schema": _FILE},
    }
    return {"requestBody": {"required": True, "description": description, "content": content}}


IMAGE_BODY = _body(f"One image: as multipart field `{FIELD}`, in JSON, or as the body itself.", _FILE, _ONE_JSON)

IMAGES_BODY = _body(
    f"One image: as multipart field `{FIELD}`, in JSON, or as the body itself; or up to {MAX_IMAGES}, each as such a "
    "field, or as a list in JSON.",
    {"anyOf": [_FILE, {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": _FILE}]},
    {"anyOf": [_ONE_JSON, _SEVERAL_JSON]},
)

BUSY: dict[str, Any] = {
    "model": Problem,
    "description": "too many requests, or too little memory; see the header Retry-After",
    "headers": _RETRY,
}

ACCESS_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "no key, or a wrong one"},
    405: {"model": Problem, "description": "not for this method", "headers": _ALLOW},
    421: {"model": Problem, "description": "the server does not answer to this name"},
}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "no image in the request"},
    **ACCESS_PROBLEMS,
    403: {"model": Problem, "description": "a page of another server asks"},
    408: {"model": Problem, "description": "the image came too slowly"},
    413: {"model": Problem, "description": "the image has too many bytes or pixels"},
    415: {"model": Problem, "description": "neither a form nor an image, or compressed once more"},
    422: {"model": Problem, "description": "no readable image, too many, or a setting unknown or out of range"},
    503: BUSY,
    504: {"model": Problem, "description": "time is up"},
}

PNG = {"image/png": {"schema": _FILE}}
PREDICTED: dict[str, Any] = {
    "model": Prediction | Predictions,
    "content": {**PNG, "image/tiff": {"schema": _FILE}, "application/geo+json": {"schema": {"type": "object"}}},
    "description": "the objects in the format that was asked for; of several images one result each, in their order",
}
UPRIGHT: dict[str, Any] = {"content": PNG, "description": "the image"}


class InputSize(BaseModel):
    """To what images are resized, in pixels."""

    shortest_edge: int
    longest_edge: int = Field(description="cap of the longest edge")
    tile: int = Field(description="side of tiles in which objects are as large as in the training images")


class AcceptedLimits(BaseModel):
    """What the server accepts."""

    max_bytes: int
    max_pixels: int
    max_requests: int
    timeout: float = Field(description="seconds")


class ModelDescription(BaseModel):
    """The model and what the server accepts."""

    name: str
    version: str = Field(description="of the program")
    device: str
    input: InputSize
    classes: list[ClassName]
    colors: list[str] = Field(description="in which objects are drawn, as #rrggbb")
    lowest_score: float
    usual_score: float = Field(description="lowest score of the objects in an answer, unless the request sets another")
    max_objects: int
    limits: AcceptedLimits


class Status(BaseModel):
    """That all is well."""

    status: str
