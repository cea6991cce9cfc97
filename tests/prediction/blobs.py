"""A model that needs no training, and a disk that is soon full."""

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray

from sotr.data.images import load_image
from sotr.decode_options import DecodeOptions
from sotr.results.instances import Instances


class Blobs:
    """Connected bright places as objects of three classes by their strongest color; the score is their brightness.

    Stands in for `Segmenter` where a test is about what happens around it, for its results are known beforehand.
    """

    name = "blobs"
    class_names = ("red", "green", "blue")
    category_ids = (3, 17, 90)
    edges = (384, 640)
    intensity = None
    domain = None
    training_size = None

    def options_for(self, score: float | None, max_objects: int | None) -> DecodeOptions:
        return DecodeOptions(score_threshold=0.3 if score is None else score)

    def digest(self) -> str:
        return "00"

    def predict(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        *,
        score: float | None = None,
        max_objects: int | None = None,
        batch_size: int = 1,
        as_is: bool = False,
    ) -> list[Instances]:
        return [self._find(load_image(picture), score or 0.0) for picture in pictures]

    def _find(self, image: NDArray[np.uint8], score: float) -> Instances:
        count, labels = cv2.connectedComponents((image.max(2) > 100).astype(np.uint8))
        masks = labels == np.arange(1, count)[:, None, None]
        colors = np.array([image[mask].mean(0) for mask in masks]).reshape(-1, 3)
        found = Instances.from_masks(colors.max(1) / 255, colors.argmax(1), masks, self.class_names, self.category_ids)
        return found.filter(score)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file can be written beyond so many bytes: what a full disk does, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
