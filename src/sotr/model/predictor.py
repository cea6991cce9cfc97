"""What every model that segments pictures has in common, whatever runs it. Nothing here needs PyTorch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from PIL import Image

from sotr.data.choice import Choice
from sotr.data.images import MAX_PIXELS, ImageSource
from sotr.data.scaling import IntensityRange
from sotr.data.traits import Domain
from sotr.decode_options import DecodeOptions
from sotr.errors import SOTRError
from sotr.results.instances import Instances
from sotr.tiling import OVERLAP, check_tiles, open_picture, segment_tiles

Prepared = TypeVar("Prepared")

ENGINE_AFTER = 16
"""Images after which it pays to make a quicker engine on a CPU."""


class Predictor(ABC, Generic[Prepared]):
    """A trained model, ready to segment pictures; `Prepared` is a picture as its network takes it.

    Attributes:
        class_names: M names.
        category_ids: M original ids, as the training data numbered them.
        decode_options: thresholds and limits that `predict` uses.
        name: what to call the model in reports.
        device: where the network runs, such as "cpu"; its text is what people read.
        domain: how its training images look, or None where nobody knows.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    decode_options: DecodeOptions
    name: str
    device: Any
    domain: Domain | None

    @property
    def training_size(self) -> tuple[int, int] | None:
        """Height and width of a common training image, or None where nobody knows."""
        return self.domain.median_size if self.domain is not None else None

    @property
    @abstractmethod
    def edges(self) -> tuple[int, int]:
        """Shortest edge to which pictures are resized, and cap of the longest, in pixels."""

    @property
    @abstractmethod
    def intensity(self) -> IntensityRange | None:
        """Which values of a picture become black and white; None leaves them as `load_image` gives them."""

    def accelerate(self) -> None:
        """Make now what speeds up many predictions; exported models have nothing to make."""

    def change_decoding(self, text: str) -> None:
        """Change decoding settings of this model from now on; see `DecodeOptions.with_changes`.

        Raises:
            SOTRError: a setting is unknown or out of range, or decoding is inside an exported file.
        """
        self.decode_options = self.decode_options.with_changes(text)

    @abstractmethod
    def digest(self) -> str:
        """A hexadecimal number that is another one for other weights."""

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is also a sequence; the first signature takes it
        self,
        pictures: ImageSource,
        *,
        score: float | None = None,
        max_objects: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = OVERLAP,
        as_is: bool = False,
    ) -> Instances: ...

    @overload
    def predict(
        self,
        pictures: Sequence[ImageSource],
        *,
        score: float | None = None,
        max_objects: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = OVERLAP,
        as_is: bool = False,
    ) -> list[Instances]: ...

    def predict(
        self,
        pictures: ImageSource | Sequence[ImageSource],
        *,
        score: float | None = None,
        max_objects: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = OVERLAP,
        as_is: bool = False,
    ) -> Instances | list[Instances]:
        """Segment one picture, or a list of them.

        Args:
            pictures: a file name, a file's bytes, a PIL picture or an HW3 uint8 RGB array; or a list of these, which
                may be empty.
            score: objects below this score, in 0..1, are left out; None takes the score that was chosen on the model's
                validation images, `decode_options.operating_score`.
            max_objects: at most so many objects per picture, best first; None takes the model's `decode_options`.
            batch_size: pictures that go through the network together. Pictures of different sizes are padded to the
                largest of their batch, which changes scores and masks slightly; 1 avoids that.
            tile: segment each picture, of whatever size, in overlapping tiles of so many pixels a side, and merge their
                objects, see `sotr.tiling`; `max_objects` is then the limit of a tile, and `batch_size` counts tiles.
            overlap: part of a tile's side, above 0 and at most 0.5, that it shares with the next one.
            as_is: whether the pictures' values have been brought to the model's `intensity` already.

        Returns:
            `Instances` at the picture's own size, or a list of them for a list of pictures.

        Raises:
            SOTRError: a picture cannot be read or has the wrong type, or an argument is out of range.
        """
        if batch_size < 1:
            raise SOTRError(f"batch_size is {batch_size}; it must be at least 1")
        self.options_for(score, max_objects)  # checked even where there is no picture
        if tile is not None:
            check_tiles(tile, overlap)

            def in_tiles(picture: ImageSource) -> Instances:
                with open_picture(picture, choice=Choice(intensity=None if as_is else self.intensity)) as opened:
                    return segment_tiles(
                        lambda tiles: self.segment(
                            [self.prepare(tile, as_is=True) for tile in tiles], score=score, max_objects=max_objects
                        ),
                        opened,
                        tile,
                        overlap,
                        class_names=self.class_names,
                        category_ids=self.category_ids,
                        batch_size=batch_size,
                    )

            if isinstance(pictures, (str, Path, bytes, Image.Image, np.ndarray)):
                return in_tiles(pictures)
            return [in_tiles(picture) for picture in pictures]
        if isinstance(pictures, (str, Path, bytes, Image.Image, np.ndarray)):
            return self.segment([self.prepare(pictures, as_is=as_is)], score=score, max_objects=max_objects)[0]
        results: list[Instances] = []
        for start in range(0, len(pictures), batch_size):
            batch = [self.prepare(picture, as_is=as_is) for picture in pictures[start : start + batch_size]]
            results += self.segment(batch, score=score, max_objects=max_objects)
        return results

    @abstractmethod
    def prepare(self, picture: ImageSource, *, max_pixels: int = MAX_PIXELS, as_is: bool = False) -> Prepared:
        """The first half of `predict`: load, resize and normalise a picture; safe in several threads.

        Args:
            picture: as for `predict`.
            max_pixels: the largest width times height that is accepted.
            as_is: whether its values have been brought to the model's `intensity` already.

        Raises:
            SOTRError: the picture cannot be read or has more than `max_pixels` pixels.
        """

    @abstractmethod
    def segment(
        self, batch: Sequence[Prepared], *, score: float | None = None, max_objects: int | None = None
    ) -> list[Instances]:
        """The second half of `predict`: the objects of pictures that go through the network together.

        Args:
            batch: at least one; see `predict`'s `batch_size` for what different sizes do.
            score, max_objects: as for `predict`.
        """

    def options_for(self, score: float | None, max_objects: int | None) -> DecodeOptions:
        """The model's decoding for those who use it: objects from its operating score on, or from another, and no more
        than another number of them, where given.

        Raises:
            SOTRError: one of them is out of range.
        """
        options = self.decode_options
        if score is None:
            options = replace(options, score_threshold=max(options.operating_score, options.score_threshold))
        else:
            if not 0 <= score <= 1:
                raise SOTRError(f"score is {score}; it must lie in 0..1")
            options = replace(options, score_threshold=score)
        if max_objects is not None:
            if max_objects < 1:
                raise SOTRError(f"max_objects is {max_objects}; it must be at least 1")
            # More candidates than objects, for Matrix NMS weeds some out.
            options = options.with_max_objects(max_objects)
        return options
