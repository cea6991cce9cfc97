"""What an exported file says of itself: all that has to be known to use it. Nothing here needs PyTorch."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sotr.data.traits import Domain
from sotr.decode_options import DecodeOptions
from sotr.errors import SOTRError

FORMAT = 1
"""Version of the description; to be raised when older software could no longer use the file."""

METADATA_KEY = "sotr"
"""Where the description is kept, as JSON: among an ONNX file's metadata, or in an OpenVINO model's runtime info."""

INPUT = "images"
"""float32 B x 3 x H x W: RGB in 0..1, minus `mean`, divided by `std`; zeros at the bottom and the right up to
multiples of 32."""

OBJECT_OUTPUTS = ("scores", "labels", "mask_logits", "count")
"""Scores B x I, best first, and class positions B x I; mask logits B x I x H/4 x W/4; objects of each image, B: what
comes after the first `count` objects of an image is padding."""

RAW_OUTPUTS = ("class_logits", "kernels", "mask_features")
"""The dense predictions B x K x M, B x K x D and B x E x H/4 x W/4, before any decision."""


@dataclass(frozen=True)
class ExportDescription:
    """Preprocessing, classes and decoding of an exported model."""

    name: str
    """What to call the model in reports."""
    content: Literal["objects", "raw"]
    """Which outputs the file has: `OBJECT_OUTPUTS` or `RAW_OUTPUTS`."""
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    """Original id of each class."""
    image_size: int
    """Shortest edge, in pixels, to which images are resized: bilinear, with antialiasing."""
    max_image_size: int
    """Cap of the longest edge, in pixels, after that."""
    mean: tuple[float, ...]
    """Of R, G and B in 0..1, subtracted."""
    std: tuple[float, ...]
    """Of R, G and B, divided by."""
    decode_options: DecodeOptions
    """What the decoding inside the file was made with; what is left to do outside needs some of it, too."""
    intensity_percentiles: tuple[float, ...] = ()
    """Two percentiles of an image's values that become black and white before it is resized, or none."""
    domain: Domain | None = None
    """How the model's training images look."""

    def to_json(self) -> str:
        """One line of JSON."""
        plain = {"format": FORMAT, **asdict(self)}
        plain["decoding"] = plain.pop("decode_options")
        return json.dumps(plain, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "ExportDescription":
        """What `to_json` wrote.

        Raises:
            SOTRError: it is damaged, or of a newer format; the message has to be completed with the file's name.
        """
        try:
            values = json.loads(text)
            if values["format"] > FORMAT:
                raise SOTRError(
                    f"has format {values['format']}, this version reads up to {FORMAT}; "
                    "install a newer sotr (pip install --upgrade sotr)"
                )
            description = cls(
                name=_checked(values["name"], str),
                content=values["content"],
                class_names=tuple(_checked(name, str) for name in values["class_names"]),
                category_ids=tuple(_checked(number, int) for number in values["category_ids"]),
                image_size=_checked(values["image_size"], int),
                max_image_size=_checked(values["max_image_size"], int),
                mean=tuple(_checked(number, float) for number in values["mean"]),
                std=tuple(_checked(number, float) for number in values["std"]),
                decode_options=DecodeOptions.from_dict(values["decoding"]),
                # Files of before have no such entry.
                intensity_percentiles=tuple(
                    _checked(value, float) for value in values.get("intensity_percentiles", ())
                ),
                domain=Domain.from_dict(values["domain"]) if values.get("domain") else None,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SOTRError(f"has a damaged description ({type(error).__name__}: {error}); export it again") from None
        sound = (
            description.content in ("objects", "raw")
            and len(description.class_names) == len(description.category_ids) > 0
            and 1 <= description.image_size <= description.max_image_size
            and len(description.mean) == len(description.std) == 3
            and all(map(math.isfinite, description.mean + description.std))
            and min(description.std) > 0
            and _are_percentiles(description.intensity_percentiles)
        )
        if not sound:
            raise SOTRError("has a damaged description (values that contradict one another); export it again")
        return description


def _are_percentiles(ends: tuple[float, ...]) -> bool:
    return not ends or (len(ends) == 2 and 0 <= ends[0] < ends[1] <= 100)


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
