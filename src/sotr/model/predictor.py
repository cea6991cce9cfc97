"""What every model that segments images has in common, whatever runs it. Nothing here needs PyTorch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Generic, TypeVar, overload

from sotr.data.choice import Choice
from sotr.data.images import MAX_PIXELS
from sotr.data.scaling import IntensityRange
from sotr.data.sources import ImageSource, fetched, is_one_image, is_url, plain_source, several_images
from sotr.data.traits import Domain
from sotr.decode_options import DecodeOptions
from sotr.errors import SOTRError
from sotr.results.instances import Instances
from sotr.tiling import OVERLAP, check_tiles, open_picture, segment_tiles

Prepared = TypeVar("Prepared")

ENGINE_AFTER = 16
"""Images after which it pays to make a quicker engine on a CPU."""


class Predictor(ABC, Generic[Prepared]):
    """A trained model, ready to segment images; `Prepared` is an image as its network takes it.

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
        """Shortest edge to which images are resized, and cap of the longest, in pixels."""

    @property
    @abstractmethod
    def intensity(self) -> IntensityRange | None:
        """Which values of an image become black and white; None leaves them as `load_image` gives them."""

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
        allow_url: bool = False,
    ) -> Instances: ...

    @overload
    def predict(
        self,
        pictures: Iterable[ImageSource],
        *,
        score: float | None = None,
        max_objects: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = OVERLAP,
        as_is: bool = False,
        allow_url: bool = False,
    ) -> list[Instances]: ...

    def predict(
        self,
        pictures: ImageSource | Iterable[ImageSource],
        *,
        score: float | None = None,
        max_objects: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = OVERLAP,
        as_is: bool = False,
        allow_url: bool = False,
    ) -> Instances | list[Instances]:
        """Segment one image, or several.

        Args:
            pictures: a file name; a file's bytes; an open file, which is read from where it stands; a PIL image; an
                array H x W, H x W x 3 (RGB) or H x W x 4, uint8 or uint16; a PyTorch tensor, see `plain_source` in
                `sotr.data.sources`. Or a list or generator of these, which may be empty.
            score: objects below this score, in 0..1, are left out; None takes the score that was chosen on the model's
                validation images, `decode_options.operating_score`.
            max_objects: at most so many objects per image, best first; None takes the model's `decode_options`.
            batch_size: images that go through the network together. Images of different sizes are padded to the
                largest of their batch, which changes scores and masks slightly; 1 avoids that.
            tile: segment each image, of whatever size, in overlapping tiles of so many pixels a side, and merge their
                objects, see `sotr.tiling`; `max_objects` is then the limit of a tile, and `batch_size` counts tiles.
            overlap: part of a tile's side, above 0 and at most 0.5, that it shares with the next one.
            as_is: whether the images' values have been brought to the model's `intensity` already.
            allow_url: whether file names may be http and https addresses, which are fetched: up to 256 MiB, in 30 s.

        Returns:
            `Instances` at the image's own size, or a list of them for several images. They show themselves on their
            image in notebooks, and refer to it weakly: it is not kept in memory for them.

        Raises:
            SOTRError: an image cannot be read or has the wrong type, or an argument is out of range.
        """
        images = [pictures] if is_one_image(pictures) else several_images(pictures)
        results = list(self._each(images, score, max_objects, batch_size, tile, overlap, as_is, allow_url))
        return results[0] if is_one_image(pictures) else results

    def predict_many(
        self,
        images: Iterable[ImageSource],
        *,
        score: float | None = None,
        max_objects: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = OVERLAP,
        allow_url: bool = False,
    ) -> Iterator[Instances]:
        """The objects of each image in turn, as they are found: memory holds one batch, however many images come.

        Args:
            images: a list, a generator or the like; it is asked for the next batch when that is needed.
            score, max_objects, batch_size, tile, overlap, allow_url: as for `predict`.

        Raises:
            SOTRError: as `predict`; for settings at once, for an image when its turn comes.
        """
        if is_one_image(images):
            raise SOTRError("predict_many takes a list or generator of images; for one image there is predict")
        several = several_images(images)
        return self._each(several, score, max_objects, batch_size, tile, overlap, False, allow_url)

    def _each(
        self,
        images: Iterable[ImageSource],
        score: float | None,
        max_objects: int | None,
        batch_size: int,
        tile: int | None,
        overlap: float,
        as_is: bool,
        allow_url: bool,
    ) -> Iterator[Instances]:
        """The objects of each image, batch by batch; the settings are checked before there is any."""
        if batch_size < 1:
            raise SOTRError(f"batch_size is {batch_size}; it must be at least 1")
        self.options_for(score, max_objects)
        if tile is not None:
            check_tiles(tile, overlap)

        def plain(image: ImageSource) -> ImageSource:
            return plain_source(fetched(str(image)) if allow_url and is_url(image) else image)

        def of_batch(batch: Sequence[ImageSource], as_is: bool) -> list[Instances]:
            prepared = [self.prepare(plain(image), as_is=as_is) for image in batch]
            return self.segment(prepared, score=score, max_objects=max_objects)

        def in_tiles(image: ImageSource, side: int) -> Instances:
            choice = Choice(intensity=None if as_is else self.intensity)
            with open_picture(plain(image), choice=choice) as opened:
                return segment_tiles(
                    lambda tiles: of_batch(tiles, True),
                    opened,
                    side,
                    overlap,
                    class_names=self.class_names,
                    category_ids=self.category_ids,
                    batch_size=batch_size,
                )

        def found() -> Iterator[Instances]:
            waiting = iter(images)
            while batch := list(islice(waiting, 1 if tile is not None else batch_size)):
                results = of_batch(batch, as_is) if tile is None else [in_tiles(batch[0], tile)]
                for image in batch:
                    yield results.pop(0).with_image(None if is_url(image) else image)

        return found()

    @abstractmethod
    def prepare(self, picture: ImageSource, *, max_pixels: int = MAX_PIXELS, as_is: bool = False) -> Prepared:
        """The first half of `predict`: load, resize and normalize an image; safe in several threads.

        Args:
            picture: as for `predict`.
            max_pixels: the largest width times height that is accepted.
            as_is: whether its values have been brought to the model's `intensity` already.

        Raises:
            SOTRError: the image cannot be read or has more than `max_pixels` pixels.
        """

    @abstractmethod
    def segment(
        self, batch: Sequence[Prepared], *, score: float | None = None, max_objects: int | None = None
    ) -> list[Instances]:
        """The second half of `predict`: the objects of images that go through the network together.

        Args:
            batch: at least one; see `predict`'s `batch_size` for what different sizes do.
            score, max_objects: as for `predict`.
        """

    def options_for(self, score: float | None, max_objects: int | None) -> DecodeOptions:
        """The decoding options of `predict`: those of the model, with its operating score as the lowest score unless
        `score` is given, and with `max_objects` if that is given.

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
