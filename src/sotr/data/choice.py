"""Which image of a file is meant, where it holds several, and how its values become 8 bits."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from sotr.data.scaling import IntensityRange
from sotr.errors import SOTRError

ALL, MAX = "all", "max"
"""Words for planes: each of them, and their brightest values."""


@dataclass(frozen=True)
class Choice:
    """What to take of an image file.

    Attributes:
        channel: its number, from 1, or its name; None where the file has only one, or is a color image.
        plane: its number, from 1, in the order of the file; "all", or "max", the brightest values along Z, or along the
            only axis there is; None where the file has only one.
        projection: of several projections, one for each time point, the number of the one that is meant, from 1.
        intensity: which values become black and white; None takes the rule of `sotr.data.load_image`.
    """

    channel: int | str | None = None
    plane: int | str | None = None
    projection: int | None = None
    intensity: IntensityRange | None = None

    def __post_init__(self) -> None:
        for name, words in (("channel", None), ("plane", (ALL, MAX))):
            value = getattr(self, name)
            if isinstance(value, str) and value.isdecimal():
                object.__setattr__(self, name, value := int(value))
            if isinstance(value, int) and value < 1:
                raise SOTRError(f"{name} is {value}; they are numbered from 1")
            if isinstance(value, str) and (not value if words is None else value not in words):
                others = "all or max" if words else "or a name"
                raise SOTRError(f"{name} is {value!r}; give a number from 1, {others}")

    @classmethod
    def of(cls, channel: int | str | None, plane: int | str | None, intensity_range: str | None) -> "Choice":
        """The choice that the settings of `sotr predict` make.

        Raises:
            SOTRError: names the one that is wrong.
        """
        return cls(channel, plane, None, None if intensity_range is None else IntensityRange.parse(intensity_range))

    def to_json(self) -> str:
        """One line, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Choice":
        """What `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        intensity = values.pop("intensity")
        return cls(**values, intensity=None if intensity is None else IntensityRange(**intensity))


WHOLE = Choice()
"""Nothing chosen: right for every file that holds one image."""
