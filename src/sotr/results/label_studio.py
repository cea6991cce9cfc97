"""Objects as regions of Label Studio: polygons, or masks that its brush can change."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np

from sotr.errors import SOTRError
from sotr.masks.polygons import EXACT
from sotr.results.instances import Instances
from sotr.results.outlines import polygons_of

Kind = Literal["polygonlabels", "brushlabels"]

_RUN_BITS = (3, 4, 8, 16)
"""Bits in which Label Studio's run lengths may be written."""


class Control(NamedTuple):
    """What takes regions of an image in a project's labeling configuration."""

    kind: Kind
    name: str
    """Of the control's tag."""
    image: str
    """Of the image's tag."""
    key: str
    """Of a task's data, under which the image's address stands."""
    labels: Mapping[str, str]
    """Class name -> label; objects of other classes are left out."""


def control_of(configuration: str, class_names: tuple[str, ...]) -> Control:
    """The first control of a labeling configuration that takes polygons or brushed masks.

    Labels are those of the classes' names, in any case. A single class takes a single label, whatever their names.

    Raises:
        SOTRError: the configuration cannot be read, or it has no such control, or no label of the model's classes.
    """
    try:
        if "<!" in configuration.replace("<!--", ""):
            raise ValueError("declarations are not read")
        root = ElementTree.fromstring(configuration)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise SOTRError(f"the labeling configuration cannot be read: {error}") from None
    images = {tag.get("name"): tag.get("value", "").removeprefix("$") for tag in root.iter("Image")}
    for tag in root.iter():
        kind: Kind | None = "polygonlabels" if tag.tag == "PolygonLabels" else None
        kind = "brushlabels" if tag.tag == "BrushLabels" else kind
        image = tag.get("toName")
        if kind is None or not images.get(image):
            continue
        written = [label.get("alias") or label.get("value") or "" for label in tag.iter("Label")]
        folded = {label.casefold(): label for label in written}
        labels = {name: folded[name.casefold()] for name in class_names if name.casefold() in folded}
        if not labels and len(class_names) == len(written) == 1:
            labels = {class_names[0]: written[0]}
        if not labels:
            raise SOTRError(
                f"the labeling configuration has the labels {', '.join(written)[:200] or '(none)'}, and the model "
                f"finds {', '.join(class_names)[:200]}; name a <Label> as a class of the model"
            )
        return Control(kind, tag.get("name", ""), str(image), images[image], labels)
    raise SOTRError("the labeling configuration has no <PolygonLabels> or <BrushLabels> for an <Image>; add one")


def prediction(instances: Instances, control: Control, model: str, tolerance: float = EXACT) -> dict[str, Any]:
    """An image's objects as Label Studio's prediction; its score is the mean of theirs.

    Args:
        model: what to call the prediction's origin.
        tolerance: of polygons, as of `sotr.masks.polygons.polygons`.
    """
    height, width = instances.image_size
    values = _polygons if control.kind == "polygonlabels" else _brushed
    regions = [
        {
            "id": f"{i}-{part}",
            "type": control.kind,
            "from_name": control.name,
            "to_name": control.image,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": round(float(instances.scores_I[i]), 4),
            "value": {**value, control.kind: [control.labels[name]]},
        }
        for i, name in enumerate(instances.class_names[label] for label in instances.labels_I)
        if name in control.labels
        for part, value in enumerate(values(instances, i, tolerance))
    ]
    mean = float(instances.scores_I.mean()) if len(instances) else 0.0
    return {"model_version": model, "score": round(mean, 4), "result": regions}


def _polygons(instances: Instances, i: int, tolerance: float) -> list[dict[str, Any]]:
    percent = np.array([100 / instances.image_size[1], 100 / instances.image_size[0]])
    found = polygons_of(instances, i, tolerance)
    return [{"points": np.round(polygon * percent, 9).tolist(), "closed": True} for polygon in found]


def _brushed(instances: Instances, i: int, _: float) -> list[dict[str, Any]]:
    return [{"format": "rle", "rle": brush_rle(instances, i)}]


def brush_rle(instances: Instances, i: int) -> list[int]:
    """Object i as Label Studio's run lengths: bytes of an RGBA image, row by row, each 255 inside the mask, else 0.

    A head says how many values there are (32 bits), how many bits a value has less 1 (5), and in how many bits run
    lengths may be written less 1 (four times 4). A run is a bit 1, which of the four (2 bits), its length less 1, and
    its value.
    """
    (height, width), (mask_hw, x, y) = instances.image_size, instances.mask_crop(i)
    steps = np.diff(np.pad(mask_hw, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, stops = (np.flatnonzero(steps == step) for step in (1, -1))
    along = steps.shape[1]
    borders = [(at // along + y) * width + at % along + x for at in (starts, stops)]
    bounds = np.concatenate([[0], np.stack(borders, 1).ravel(), [height * width]])
    lengths, values = 4 * np.diff(bounds), np.arange(len(bounds) - 1) % 2 * 255
    bits = [f"{4 * height * width:032b}{7:05b}", *(f"{size - 1:04b}" for size in _RUN_BITS)]
    most = 1 << _RUN_BITS[-1]
    for length, value in zip(lengths.tolist(), values.tolist(), strict=True):
        for piece in [most] * (length // most) + [length % most] * bool(length % most):
            which = next(index for index, size in enumerate(_RUN_BITS) if piece <= 1 << size)
            bits.append(f"1{which:02b}{piece - 1:0{_RUN_BITS[which]}b}{value:08b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))
