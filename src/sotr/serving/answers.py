"""Instances as the answers of the service: JSON with masks of three kinds, a label image, GeoJSON, or the overlay."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field

from sotr.masks.polygons import flat
from sotr.results.geojson import feature_collection
from sotr.results.instances import Instances
from sotr.results.outlines import polygons_of
from sotr.serving.exchange import compact
from sotr.serving.problems import ProblemDetails

MaskKind = Literal["rle", "polygons", "png"]

Format = Literal["json", "overlay", "labels", "geojson"]


class ClassName(BaseModel):
    """A class of the model."""

    id: int = Field(description="category id, as the training data numbered it")
    name: str


class RLEMask(BaseModel):
    """A mask as COCO's compressed run-length encoding: exact, and what pycocotools reads."""

    size: tuple[int, int] = Field(description="height and width of the image")
    counts: str


class PNGMask(BaseModel):
    """A mask as a gray PNG, 0 outside and 255 inside, of the object's box alone."""

    x: int = Field(description="column of the PNG's left edge in the image")
    y: int = Field(description="row of the PNG's upper edge in the image")
    png: str = Field(description="the file, in base64")


class FoundObject(BaseModel):
    """One object, its coordinates in pixels of the upright image, origin at the top left."""

    class_name: str
    category_id: int
    score: float
    area: int = Field(description="pixels of the mask")
    box: tuple[float, float, float, float] = Field(description="left, top, right, bottom, half-open; tight")
    segmentation: RLEMask | list[list[float]] | PNGMask = Field(description="the mask, as `masks` asked for it")


class Objects(BaseModel):
    """The objects of an image, best score first."""

    height: int
    width: int
    classes: list[ClassName]
    objects: list[FoundObject]
    notes: list[str] = Field(default=[], description="what to know about this answer, in lines of plain text")


class Prediction(Objects):
    """The answer for one image."""

    model: str


class Failed(BaseModel):
    """An image of several that cannot be used."""

    name: str
    error: ProblemDetails


class Named(Objects):
    """The objects of one image of several."""

    name: str = Field(description="as the client named it, or its position")


class Predictions(BaseModel):
    """The answer for several images, in their order."""

    model: str
    results: list[Named | Failed]


def to_json(instances: Instances, head: Mapping[str, str], masks: MaskKind, notes: Sequence[str] = ()) -> bytes:
    """The objects as JSON behind what `head` says, see `Prediction`."""
    answer: dict[str, Any] = {**head, **instances.to_json(), "notes": list(notes)}
    if masks != "rle":
        for i, found in enumerate(answer["objects"]):
            found["segmentation"] = (
                [flat(polygon) for polygon in polygons_of(instances, i)]
                if masks == "polygons"
                else _png_mask(*instances.mask_crop(i))
            )
    return compact(answer)


def to_geojson(instances: Instances) -> bytes:
    """The objects as a GeoJSON FeatureCollection."""
    return compact(feature_collection(instances))


def to_label_image(instances: Instances, tiff: bool) -> tuple[bytes, str]:
    """A file whose pixels are 0, or an object's position plus 1, and its content type: a PNG of 16 bits, or a TIFF if
    that is asked for or there are more objects than 16 bits can number."""
    labels_HW, buffer = instances.label_image(), io.BytesIO()
    if tiff or labels_HW.dtype != np.uint16:
        tifffile.imwrite(buffer, labels_HW, compression="zlib")
        return buffer.getvalue(), "image/tiff"
    Image.fromarray(labels_HW).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue(), "image/png"


def to_png(image: NDArray[np.uint8]) -> bytes:
    """An HW3 RGB or HW gray image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _png_mask(mask_hw: NDArray[np.bool_], x: int, y: int) -> dict[str, Any]:
    return {"x": x, "y": y, "png": base64.b64encode(to_png(mask_hw * np.uint8(255))).decode()}
