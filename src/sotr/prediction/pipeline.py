"""Images through a model: the next ones are read, and results written, while the network works."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sotr.data.choice import WHOLE, Choice
from sotr.data.decoding_pool import DecodingPool
from sotr.data.images import MAX_PIXELS
from sotr.data.sources import ImageSource
from sotr.data.traits import Traits
from sotr.errors import SOTRError
from sotr.model.predictor import Predictor
from sotr.prediction.inputs import Picked
from sotr.results.instances import Instances
from sotr.results.selection import labels_of
from sotr.tiling import TilePicture, check_tiles, open_picture, segment_tiles

READERS = min(4, os.cpu_count() or 1)
"""Images that are read at the same time, each in a process of its own, which can be ended."""

FILE_SECONDS = 60.0
"""Seconds that a file may take to be read, where nothing else is asked for."""

PENDING_WRITES = 2
"""Results that may wait to be written."""


@dataclass(frozen=True)
class Segmentation:
    """How images are segmented; see `sotr.predict` for what the settings mean."""

    model: Predictor
    score: float
    max_objects: int | None
    batch_size: int
    tile: int | None
    overlap: float
    file_seconds: float = FILE_SECONDS
    """Seconds that a file may take to be read; one that takes longer is skipped."""
    choice: Choice = WHOLE
    """What is taken of files with several images, and which values become black and white."""
    no_overlap: bool = False
    """Whether pixels of several objects are left to the best."""
    classes: Sequence[str] | None = None
    """Names of the classes whose objects are wanted; None for all."""

    def choice_of(self, picked: Picked) -> Choice:
        """What to take of an image file: the model's own black and white where none are given."""
        return replace(picked.choice, intensity=picked.choice.intensity or self.model.intensity)

    def check(self) -> None:
        """Refuse settings that are out of range.

        Raises:
            SOTRError: names the setting.
        """
        if self.tile is not None:
            check_tiles(self.tile, self.overlap)
        labels_of(self.model.class_names, self.classes or ())
        if not 0 < self.file_seconds < math.inf:
            raise SOTRError(f"file_seconds is {self.file_seconds}; it must be positive, and not infinite")
        self._predict([])

    def of_images(self, images: Sequence[NDArray[np.uint8]], as_is: bool = False) -> list[Instances]:
        """The objects of HW3 uint8 RGB images.

        Args:
            as_is: whether their values are what the model's `intensity` makes of them.
        """
        if self.tile is None:
            return [self._wanted(found) for found in self._predict(images, as_is)]
        found = []
        for image in images:
            with open_picture(image, choice=Choice(intensity=None if as_is else self.model.intensity)) as picture:
                found.append(self.of_picture(picture))
        return found

    def of_picture(self, picture: TilePicture, progress: Callable[[float], None] | None = None) -> Instances:
        """The objects of one image in tiles; see `segment_tiles` for `progress`."""
        assert self.tile is not None
        found = segment_tiles(
            partial(self._predict, as_is=True),
            picture,
            self.tile,
            self.overlap,
            class_names=self.model.class_names,
            category_ids=self.model.category_ids,
            batch_size=self.batch_size,
            progress=progress,
        )
        return self._wanted(found)

    def _wanted(self, instances: Instances) -> Instances:
        wanted = instances.filter(class_name=self.classes)
        return wanted.without_overlap() if self.no_overlap else wanted

    def _predict(self, images: Sequence[NDArray[np.uint8]], as_is: bool = False) -> list[Instances]:
        return self.model.predict(
            images, score=self.score, max_objects=self.max_objects, batch_size=self.batch_size, as_is=as_is
        )


@dataclass(frozen=True)
class Segmented:
    """One image of a stream."""

    picked: Picked
    image: NDArray[np.uint8] | None
    """HW3 uint8 RGB; None if it could not be read, is not wanted, or is too large to be drawn on."""
    instances: Instances | None
    """None if it could not be read."""
    error: str = ""
    """Why it could not be read."""
    traits: Traits | None = None
    """How it looks; None if it could not be read, or was not read as a whole."""


@dataclass
class Waits:
    """Seconds that the network waited for others, and those it was at work."""

    reading: float = 0.0
    network: float = 0.0
    writing: float = 0.0

    @contextmanager
    def timing(self, name: Literal["reading", "network", "writing"]) -> Iterator[None]:
        """Add the time that the block takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - started)

    def __str__(self) -> str:
        total = max(self.reading + self.network + self.writing, 1e-9)
        parts = {"the network": self.network, "reading images": self.reading, "writing results": self.writing}
        return ", ".join(f"{part} {100 * seconds / total:.0f} %" for part, seconds in parts.items())


def segment_files(
    segmentation: Segmentation, images: Iterable[Picked], waits: Waits, progress: Callable[[float], None], draw: bool
) -> Iterator[Segmented]:
    """Segment image files in order; memory holds a few images, whatever their number.

    Args:
        segmentation: model and settings.
        images: the files, and what to take of them.
        waits: is added to.
        progress: called with the images, or parts of one, that were done since the last call.
        draw: whether the images themselves are wanted.
    """
    with DecodingPool(READERS) as decoders:
        if segmentation.tile is None:
            yield from _whole(segmentation, images, waits, progress, draw, decoders)
        else:
            for picked in images:
                yield _in_tiles(segmentation, picked, waits, progress, draw, decoders)


def _whole(
    segmentation: Segmentation,
    images: Iterable[Picked],
    waits: Waits,
    progress: Callable[[float], None],
    draw: bool,
    decoders: DecodingPool,
) -> Iterator[Segmented]:
    loaded = _read_ahead(images, segmentation.batch_size + READERS, decoders, segmentation)
    while True:
        with waits.timing("reading"):
            batch = list(islice(loaded, segmentation.batch_size))
        if not batch:
            return
        with waits.timing("network"):
            images_read = [picture.image for picture in batch if picture.image is not None]
            found = iter(segmentation.of_images(images_read, as_is=True))
        for picture in batch:
            if picture.image is None:
                yield picture
            else:
                yield replace(picture, image=picture.image if draw else None, instances=next(found))
        progress(len(batch))


def _in_tiles(
    segmentation: Segmentation,
    picked: Picked,
    waits: Waits,
    progress: Callable[[float], None],
    draw: bool,
    decoders: DecodingPool,
) -> Segmented:
    done = 0.0

    def advance(part: float) -> None:
        nonlocal done
        done += part
        progress(part)

    def load(source: ImageSource, *, max_pixels: int, choice: Choice) -> NDArray[np.uint8]:
        assert isinstance(source, Path)
        return decoders.load(source, max_pixels=max_pixels, choice=choice, seconds=segmentation.file_seconds)

    choice = segmentation.choice_of(picked)

    try:
        # Tiles are read while others are in the network: all of it counts as the network's time.
        with waits.timing("network"), open_picture(picked.path, load, choice) as picture:
            instances = segmentation.of_picture(picture, advance)
            draw = draw and picture.height * picture.width <= MAX_PIXELS
            image = picture.read(0, 0, picture.width, picture.height) if draw else None
    except SOTRError as error:
        progress(1 - done)
        return _unreadable(picked, error)
    return Segmented(picked, image, instances, traits=None if image is None else Traits.of(image))


def _read_ahead(
    images: Iterable[Picked], ahead: int, decoders: DecodingPool, segmentation: Segmentation
) -> Iterator[Segmented]:
    """The images in order, without objects; up to `ahead` of them are read before they are asked for."""
    waiting: deque[Future[Segmented]] = deque()
    rest = iter(images)
    with ThreadPoolExecutor(READERS) as readers:
        try:
            while True:
                waiting += [
                    readers.submit(_load, decoders, segmentation, picked)
                    for picked in islice(rest, ahead - len(waiting))
                ]
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            decoders.close()  # otherwise an interrupt would wait for slow files
            readers.shutdown(wait=False, cancel_futures=True)


def _load(decoders: DecodingPool, segmentation: Segmentation, picked: Picked) -> Segmented:
    choice = segmentation.choice_of(picked)
    try:
        image = decoders.load(picked.path, choice=choice, seconds=segmentation.file_seconds)
        return Segmented(picked, image, None, traits=Traits.of(image))
    except SOTRError as error:
        return _unreadable(picked, error)


def _unreadable(picked: Picked, error: SOTRError) -> Segmented:
    return Segmented(picked, None, None, str(error).removeprefix(f"{picked.path}: "))


class Writer:
    """Does what it is given one after the other, in a thread of its own; made by `write_behind`."""

    def __init__(self, thread: ThreadPoolExecutor, waits: Waits) -> None:
        self._thread, self._waits = thread, waits
        self._pending: deque[Future[None]] = deque()

    def do(self, task: Callable[[], None]) -> None:
        """Have `task` done later; waits if too many are, and raises what went wrong with an earlier one."""
        self._pending.append(self._thread.submit(task))
        self.wait(PENDING_WRITES)

    def wait(self, pending: int = 0) -> None:
        """Wait until no more than so many tasks are left."""
        with self._waits.timing("writing"):
            while len(self._pending) > pending:
                self._pending.popleft().result()


@contextmanager
def write_behind(waits: Waits) -> Iterator[Writer]:
    """A writer whose tasks are all done when the block ends well; if it does not, those not begun are dropped."""
    with ThreadPoolExecutor(1) as thread:
        writer = Writer(thread, waits)
        try:
            yield writer
            writer.wait()
        finally:
            thread.shutdown(wait=True, cancel_futures=True)
