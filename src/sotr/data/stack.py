"""What a TIFF file holds besides one image: channels, planes of a stack or a film, the size of a pixel."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from sotr.data.choice import ALL, MAX, Choice
from sotr.errors import SOTRError

if TYPE_CHECKING:
    import tifffile

MICROMETERS = {"nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4}
"""How many micrometers units of length have, by the names that programs write."""

_CENTIMETER = 3
_RGB_KINDS = (2, 3, 5, 6)  # RGB, palette, CMYK, YCbCr
_ALPHA = (1, 2)


@dataclass(frozen=True)
class Stack:
    """The first series of a TIFF file."""

    axes: tuple[tuple[str, int], ...]
    """Letter and length of each axis whose positions are pages, the last one varying fastest: C are channels."""
    samples: int
    """Channels that are kept in one page; 1 where it is gray or a color image."""
    color: bool
    """Whether a page is a color image."""
    names: tuple[str, ...]
    """Of the channels, where the file has them."""
    pixel_size_um: tuple[float, float] | None
    """Width and height of a pixel in micrometers, where the file tells them."""

    @classmethod
    def of(cls, file: "tifffile.TiffFile") -> "Stack":
        """What an open file holds; one image where its own description is damaged."""
        page = file.pages.first
        try:
            series = file.series[0]
            page, letters, lengths = series.keyframe, series.axes, series.shape
        except Exception:  # damaged notes make tifffile raise almost anything; the first page may be sound
            letters, lengths = "", ()
        samples = int(page.samplesperpixel)
        color = int(page.photometric) in _RGB_KINDS
        if not color and samples == 2 and tuple(map(int, page.extrasamples))[:1] in ((_ALPHA[0],), (_ALPHA[1],)):
            samples = 1
        inside = {"Y", "X", "S"} | ({"C"} if samples > 1 and "S" not in letters else set())
        axes = [(letter, int(length)) for letter, length in zip(letters, lengths, strict=True) if letter not in inside]
        return cls(
            tuple((letter, length) for letter, length in axes if length > 1),
            1 if color else samples,
            color,
            _names(file),
            _pixel_size(file, page),
        )

    @property
    def channels(self) -> int:
        """Channels to choose from."""
        return dict(self.axes).get("C", 1) * self.samples

    @property
    def plane_axes(self) -> tuple[tuple[str, int], ...]:
        """The axes of the planes, the last one varying fastest."""
        return tuple(axis for axis in self.axes if axis[0] != "C")

    @property
    def planes(self) -> int:
        return math.prod(length for _, length in self.plane_axes)

    @property
    def _projected(self) -> str:
        """The axis along which planes are projected: Z, or else the last."""
        letters = [letter for letter, _ in self.plane_axes]
        return "Z" if "Z" in letters or not letters else letters[-1]

    @property
    def projections(self) -> int:
        """Images that a projection of the planes gives, one for each time point."""
        return math.prod(length for letter, length in self.plane_axes if letter != self._projected)

    def __str__(self) -> str:
        """The axes, such as "3 x 5 planes (T x Z), 2 channels (1 DAPI, 2 GFP)"."""
        parts = []
        if self.planes > 1:
            letters, lengths = (
                " x ".join(str(each) for each in column) for column in zip(*self.plane_axes, strict=True)
            )
            parts.append(f"{lengths} planes ({letters})")
        if self.channels > 1:
            names = ", ".join(f"{number} {name}" for number, name in enumerate(self.names, 1))
            parts.append(f"{self.channels} channels{f' ({names})' * bool(names)}")
        return ", ".join(parts) or "one image"

    def split(self, choice: Choice) -> Iterator[Choice]:
        """The choices of single images that a choice of all planes, or of projections, stands for."""
        if choice.plane == ALL and self.planes > 1:
            yield from (replace(choice, plane=number) for number in range(1, self.planes + 1))
        elif choice.plane == MAX and self.projections > 1:
            yield from (replace(choice, projection=number) for number in range(1, self.projections + 1))
        else:
            yield choice

    def pages(self, choice: Choice, name: str) -> tuple[list[int], int | None]:
        """Positions, in the series, of the pages whose brightest values are the chosen image, and the sample to take of
        each; None takes all.

        Raises:
            SOTRError: the choice does not tell, or there is no such image.
        """
        channel = self._channel(choice, name)
        lengths = [length for _, length in self.axes]
        numbers = np.arange(math.prod(lengths)).reshape(lengths)
        letters = [letter for letter, _ in self.axes]
        if "C" in letters:
            numbers = np.moveaxis(numbers, letters.index("C"), 0)[channel or 0]
            letters.remove("C")
        sample = channel if self.samples > 1 or (self.color and choice.channel is not None) else None
        if choice.plane == MAX and letters:
            groups = np.moveaxis(numbers, letters.index(self._projected), -1).reshape(self.projections, -1)
            if choice.projection is None and self.projections > 1:
                raise SOTRError(f"{name}: has {self}; give one projection of them, or a plane")
            return groups[(choice.projection or 1) - 1].tolist(), sample
        planes = numbers.reshape(-1).tolist()
        if choice.plane in (None, ALL, MAX):
            if len(planes) > 1:
                raise SOTRError(
                    f"{name}: has {self}; say which plane is meant (sotr predict --plane NUMBER, all or max), or save "
                    "it alone"
                )
            return planes, sample
        if int(choice.plane) > len(planes):  # no word is left
            raise SOTRError(f"{name}: has {self}, and no plane {choice.plane}")
        return [planes[int(choice.plane) - 1]], sample

    def _channel(self, choice: Choice, name: str) -> int | None:
        """The chosen channel, from 0; None where the image is in color and is meant as that."""
        wanted, count = choice.channel, 3 if self.color and self.channels == 1 else self.channels
        if wanted is None:
            if self.channels > 1:
                raise SOTRError(
                    f"{name}: has {self}; say which channel is meant (sotr predict --channel NUMBER), or save it alone"
                )
            return None
        if isinstance(wanted, str):
            same = [number for number, own in enumerate(self.names) if own.casefold() == wanted.casefold()]
            if not same:
                raise SOTRError(f"{name}: has {self}, and none that is called {wanted!r}; give its number")
            return same[0]
        if wanted > count:
            raise SOTRError(f"{name}: has {self}, and no channel {wanted}")
        return wanted - 1


def _names(file: "tifffile.TiffFile") -> tuple[str, ...]:
    """The names of the channels in an OME-TIFF file's first image."""
    pixels = _ome_pixels(file)
    found = [] if pixels is None else [each for each in pixels if each.tag.endswith("}Channel")]
    names = tuple(each.get("Name", "") for each in found)
    return names if all(names) else ()


def _ome_pixels(file: "tifffile.TiffFile") -> ElementTree.Element | None:
    """What OME-XML says of the first image's pixels."""
    text = file.ome_metadata
    if not text or "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities of entities would fill any memory
        return None
    try:
        return next((each for each in ElementTree.fromstring(text).iter() if each.tag.endswith("}Pixels")), None)
    except ElementTree.ParseError:
        return None


def _pixel_size(file: "tifffile.TiffFile", page: Any) -> tuple[float, float] | None:
    """Width and height of a pixel, in micrometers, by OME-XML, by ImageJ's notes, or by a resolution in centimeters;
    one in inches is that of a screen or a printer."""
    try:
        if (pixels := _ome_pixels(file)) is not None:
            sizes = [
                float(pixels.attrib[f"PhysicalSize{axis}"]) * MICROMETERS[pixels.get(f"PhysicalSize{axis}Unit", "µm")]
                for axis in "XY"
            ]
        else:
            unit = str((file.imagej_metadata or {}).get("unit", ""))
            unit = re.sub(r"\\u00b5", "µ", unit, flags=re.IGNORECASE)
            if not unit and int(page.tags.valueof("ResolutionUnit", default=0)) == _CENTIMETER:
                unit = "cm"
            tags = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
            sizes = [MICROMETERS[unit] * below / above for above, below in tags]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (sizes[0], sizes[1]) if all(math.isfinite(size) and size > 0 for size in sizes) else None
