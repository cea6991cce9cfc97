"""How the objects of a data set fit the scale ranges and grids of a network."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sotr.config import INPUT_DIVISOR, SOTRConfig
from sotr.data.coco import CocoDataset
from sotr.data.sizes import resized_size
from sotr.learning.assignment import claims
from sotr.masks import run_lengths as rle

_CHUNK = 20_000
"""Objects that are looked at together, whole images at a time."""


@dataclass(frozen=True)
class Objects:
    """The A objects of a data set that have pixels and are no crowds; pixels are those of the files."""

    rows_A: NDArray[np.int64]
    """Their places in the flat arrays of the data set."""
    pictures_A: NDArray[np.int64]
    boxes_A4: NDArray[np.int64]
    centers_A2: NDArray[np.float64]
    """Centers of mass, (x, y)."""
    sizes_N2: NDArray[np.int64]
    """Height and width of every image of the data set, with objects or without."""

    @property
    def sides_A(self) -> NDArray[np.float64]:
        """The square root of each box's area."""
        boxes = self.boxes_A4
        return np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]).astype(np.float64))

    def of_pictures(self, wanted: NDArray[np.int64]) -> "Objects":
        """The objects of some images."""
        kept = np.isin(self.pictures_A, wanted)
        return Objects(
            self.rows_A[kept], self.pictures_A[kept], self.boxes_A4[kept], self.centers_A2[kept], self.sizes_N2
        )


@dataclass(frozen=True)
class Fit:
    """What becomes of A objects on the grids of a network, without augmentation."""

    sides_A: NDArray[np.float64]
    """The square root of each box's area in pixels of the network input."""
    levels_A5: NDArray[np.bool_]
    """Which levels' scale ranges hold the object."""
    lost_A: NDArray[np.bool_]
    """Objects that claim cells, all of which a smaller object takes."""
    claimed: int
    """Cells that at least one object claims."""
    contested: int
    """Cells that more than one claims."""

    @property
    def unlearnable_A(self) -> NDArray[np.bool_]:
        """Objects that no level learns."""
        return ~np.any(self.levels_A5, axis=1)


def objects_of(data: CocoDataset) -> Objects:
    """Boxes and centers of mass of a data set's objects."""
    pictures = np.repeat(np.arange(len(data)), np.diff(data.offsets))
    rows = np.flatnonzero((data.boxes[:, 2] > 0) & ~data.iscrowd)
    centers: list[NDArray[np.float64]] = [np.zeros((0, 2))]
    for first in range(0, len(rows), _CHUNK):
        own = rows[first : first + _CHUNK]
        strings = data.strings(own.tolist())
        counts = rle.decode_counts(
            np.frombuffer(b"".join(strings), np.uint8), np.fromiter(map(len, strings), np.int64, len(strings))
        )
        centers.append(rle.centers(rle.counts_to_runs(*counts, data.sizes_N2[pictures[own], 0])))
    return Objects(rows, pictures[rows], np.asarray(data.boxes)[rows], np.concatenate(centers), data.sizes_N2)


def input_sizes(sizes_N2: NDArray[np.int64], config: SOTRConfig) -> NDArray[np.int64]:
    """(h, w) of each image after preprocessing, without padding."""
    kinds, kind_of = np.unique(sizes_N2, axis=0, return_inverse=True)
    resized = [resized_size(int(h), int(w), config.image_size, config.max_image_size) for h, w in kinds]
    return np.array(resized, np.int64).reshape(-1, 2)[kind_of.reshape(-1)]


def fit_to_grids(objects: Objects, config: SOTRConfig) -> Fit:
    """Which objects a network's levels and cells would learn."""
    scaled_N2 = input_sizes(objects.sizes_N2, config)
    ratios_A2 = (scaled_N2 / objects.sizes_N2)[objects.pictures_A][:, ::-1]  # of x, y
    boxes_A4 = objects.boxes_A4 * np.tile(ratios_A2, 2)
    padded_N2 = -(-scaled_N2 // INPUT_DIVISOR) * INPUT_DIVISOR
    areas_A = np.prod(boxes_A4[:, 2:] - boxes_A4[:, :2], axis=1)
    sides_A = np.sqrt(areas_A)
    low, high = np.array(config.scale_ranges, np.float64).T
    levels_A5 = (sides_A[:, None] >= low) & (sides_A[:, None] <= high)

    lost_A, claimed, contested = np.zeros(len(sides_A), np.bool_), 0, 0
    for own in _chunks(objects.pictures_A):
        cells, owners = claims(
            torch.from_numpy(boxes_A4[own]),
            torch.from_numpy((objects.centers_A2 * ratios_A2)[own]),
            torch.from_numpy(padded_N2[objects.pictures_A[own]]),
            config,
        )
        places = objects.pictures_A[own][owners.numpy()] * config.num_cells + cells.numpy()
        # The smallest object of each place comes first, and takes it; by area, of which roots round unlike ones alike.
        order = np.lexsort((areas_A[own][owners.numpy()], places))
        first = np.diff(places[order], prepend=-1) != 0
        claimants, winners = np.unique(owners.numpy()), owners.numpy()[order][first]
        lost_A[own.start + np.setdiff1d(claimants, winners)] = True
        claimed += int(first.sum())
        contested += int((np.diff(np.flatnonzero(np.append(first, True))) > 1).sum())
    return Fit(sides_A, levels_A5, lost_A, claimed, contested)


def _chunks(pictures_A: NDArray[np.int64]) -> Iterator[slice]:
    """Slices of about `_CHUNK` objects that never part the objects of an image."""
    first = 0
    while first < len(pictures_A):
        last = min(first + _CHUNK, len(pictures_A)) - 1
        last = int(np.searchsorted(pictures_A, pictures_A[last], side="right"))
        yield slice(first, last)
        first = last
