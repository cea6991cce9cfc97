"""Instances as the answers of the service: JSON with masks of three kinds, or the overlay."""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field

from sotr.masks.polygons import flat
from sotr.results.instances import Instances
from sotr.results.outlines import polygons_of

MaskKind = Literal["rle", "polygons", "png"]


class ClassName(BaseModel):
    """A class of the model."""

    id: int = Field(description="category id, as the training data numbered it")
    name: str


class RLEMask(BaseModel):
    """A mask as COCO's compressed run-length encoding: exact, and what pycocotools reads."""

    size: tuple[int, int] = Field(description="height and width of the picture")
    counts: str


class PNGMask(BaseModel):
    """A mask as a grey PNG, 0 outside and 255 inside, of the object's box alone."""

    x: int = Field(description="column of the PNG's left edge in the picture")
    y: int = Field(description="row of the PNG's upper edge in the picture")
    png: str = Field(description="the file, in base64")


class FoundObject(BaseModel):
    """One object, its coordinates in pixels of the upright picture, origin at the top left."""

    class_name: str
    category_id: int
    score: float
    area: int = Field(description="pixels of the mask")
    box: tuple[float, float, float, float] = Field(description="left, top, right, bottom, half-open; tight")
    segmentation: RLEMask | list[list[float]] | PNGMask = Field(description="the mask, as `masks` asked for it")


class Prediction(BaseModel):
    """The objects of a picture, best score first."""

    model: str
    height: int
    width: int
    classes: list[ClassName]
    objects: list[FoundObject]
    notes: list[str] = Field(default=[], description="what to know about this answer, in lines of plain text")


def to_json(instances: Instances, model: str, masks: MaskKind, notes: Sequence[str] = ()) -> bytes:
    """The body of a JSON answer, see `Prediction`."""
    answer: dict[str, Any] = {"model": model, **instances.to_json(), "notes": list(notes)}
    if masks != "rle":
        for i, found in enumerate(answer["objects"]):
            found["segmentation"] = (
                [flat(polygon) for polygon in polygons_of(instances, i)]
                if masks == "polygons"
                else _png_mask(*instances.mask_crop(i))
            )
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


def to_png(image: NDArray[np.uint8]) -> bytes:
    """An HW3 RGB or HW grey picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _png_mask(mask_hw: NDArray[np.bool_], x: int, y: int) -> dict[str, Any]:
    return {"x": x, "y": y, "png": base64.b64encode(to_png(mask_hw * np.uint8(255))).decode()}
