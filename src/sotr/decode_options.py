"""Thresholds and limits of decoding, a part of every model. Nothing here needs PyTorch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from sotr.errors import SOTRError

NMS = ("gaussian", "linear", "mask")
"""What `DecodeOptions.nms` may be."""


@dataclass(frozen=True)
class DecodeOptions:
    """Thresholds and limits of decoding."""

    cell_threshold: float = 0.1
    """Class score, in 0..1, above which a cell is a candidate."""
    points_nms: bool = False
    """Keep a cell only if no better one is among the 2 x 2 cells up and left of it, per class and level. The paper has
    no such step, the released code has; of objects that touch it loses some, for a suppressed cell still suppresses."""
    max_candidates: int = 500
    """Candidates, best first by class score, whose masks are made at all."""
    max_nms: int = 500
    """Masks, best first by class score times certainty, that enter NMS."""
    min_area_strides: float = 0.0
    """Drop masks of at most this many pixels, counted at H / 4, times the stride of their level."""
    mask_threshold: float = 0.5
    """Probability, in 0..1, above which a pixel belongs to the object."""
    nms: Literal["gaussian", "linear", "mask"] = "gaussian"
    """Matrix NMS with a Gaussian or linear decay, or plain mask NMS, which drops what overlaps a better mask."""
    nms_sigma: float = 2.0
    """Sharpness of Matrix NMS's Gaussian decay."""
    nms_threshold: float = 0.5
    """Overlap, as intersection over union, above which plain mask NMS drops a mask."""
    upsample: Literal["logits", "probabilities"] = "logits"
    """What is resized to the image before it is thresholded."""
    score_threshold: float = 0.05
    """Final score, in 0..1, below which an object is dropped, in evaluation too."""
    operating_score: float = 0.3
    """Lowest final score, in 0..1, of the objects that `predict` returns by default. Training sets it to the score with
    the best F1 on the validation images."""
    max_objects: int = 100
    """Objects, best first, that are returned."""

    def __post_init__(self) -> None:
        for name in ("cell_threshold", "score_threshold", "operating_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise SOTRError(f"{name} is {getattr(self, name)}; it must lie in 0..1")
        if not 0 < self.mask_threshold < 1:
            raise SOTRError(f"mask_threshold is {self.mask_threshold}; it must lie between 0 and 1")
        for name in ("max_candidates", "max_nms", "max_objects"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise SOTRError(f"{name} is {getattr(self, name)}; it must be a whole number from 1 on")
        if self.nms not in NMS:
            raise SOTRError(f"there is no nms {self.nms!r}; choose one of {', '.join(NMS)}")
        if self.upsample not in ("logits", "probabilities"):
            raise SOTRError(f"upsample is {self.upsample!r}; choose logits or probabilities")
        if not 0 <= self.nms_threshold <= 1:
            raise SOTRError(f"nms_threshold is {self.nms_threshold}; it must lie in 0..1")
        if not 0 < self.nms_sigma <= 1e6:
            raise SOTRError(f"nms_sigma is {self.nms_sigma}; it must be positive, and at most a million")
        if not 0 <= self.min_area_strides <= 1e6:
            raise SOTRError(f"min_area_strides is {self.min_area_strides}; it must lie in 0..1,000,000")

    @property
    def threshold_logit(self) -> float:
        """The logit of `mask_threshold`: comparing there saves a sigmoid over every pixel."""
        return math.log(self.mask_threshold / (1 - self.mask_threshold))

    def with_max_objects(self, max_objects: int) -> "DecodeOptions":
        """The same for up to `max_objects` objects an image, with candidates enough to find that many."""
        return replace(
            self,
            max_objects=max_objects,
            max_candidates=max(self.max_candidates, 2 * max_objects),
            max_nms=max(self.max_nms, 2 * max_objects),
        )

    def with_changes(self, text: str) -> "DecodeOptions":
        """The same with some settings changed, as the command line gives them: "points_nms=false,nms_sigma=1.5".

        Raises:
            SOTRError: an unknown setting, or a value of the wrong type or out of range.
        """
        import yaml  # only where settings are given as text

        values = {}
        for part in text.split(","):
            name, equals, value = part.partition("=")
            if not equals:
                raise SOTRError(f"decoding setting {part!r} has no value; write NAME=VALUE,NAME=VALUE")
            values[name.strip()] = yaml.safe_load(value)
        return self.from_dict(asdict(self) | values)

    @classmethod
    def released(cls) -> "DecodeOptions":
        """How the authors' released code decodes: every candidate gets a mask, small ones are dropped."""
        return cls(points_nms=True, max_candidates=1_000_000, min_area_strides=1.0, upsample="probabilities")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DecodeOptions":
        """The options that `dataclasses.asdict` described; absent ones keep their defaults.

        Raises:
            SOTRError: an unknown setting, or a value of the wrong type or out of range.
        """
        defaults = asdict(cls())
        for name, value in values.items():
            if name not in defaults:
                raise SOTRError(f"unknown decoding setting {name}; the settings are {', '.join(defaults)}")
            kind = type(defaults[name])
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise SOTRError(f"decoding setting {name} is {value!r}; it must look like {defaults[name]!r}")
        return cls(**values)
