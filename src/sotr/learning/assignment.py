"""Which cell learns which object."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sotr.config import SOTRConfig
from sotr.learning.targets import Targets

_REACH = torch.tensor([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
"""Offsets from an object's central cell: it takes 3 x 3 cells at most."""


@dataclass  # not frozen: where weights are shared out, Lightning sets the fields of a copy
class Assignment:
    """The cells of a batch that learn an object, P in all, and the class of every cell."""

    labels_BK: Tensor
    """int64 class index of each cell, M where the cell is background."""
    cells_P: Tensor
    """int64 index k of each positive cell within its image; images one after the other."""
    objects_P: Tensor
    """int64 index of the cell's object within its image."""
    counts: tuple[int, ...]
    """Masks of each image that are learned; they sum to P. Host numbers, so that splitting P needs no device sync."""
    positives: int
    """Cells with a class. It is P but in the released variant, where a cell may learn the masks of several objects."""


def assign(targets: Sequence[Targets], config: SOTRConfig, padded_size: tuple[int, int]) -> Assignment:
    """Assign objects to cells.

    An object belongs to each level whose scale range holds the square root of its box area. There it takes the cells
    that the central part of its box (`config.center_fraction`, centered on the mask's center of mass) touches, at most
    3 x 3 around the center's own. Where several objects claim a cell, the one with the smallest box wins, for class
    and kernel alike. In the released variant the last one gives the cell its class, while its mask is compared with
    those of all claimants.

    Args:
        targets: the images of a batch.
        padded_size: (H, W) of the network input.
    """
    labels = torch.full((len(targets), config.num_cells), config.num_classes, dtype=torch.int64)
    cells, objects, counts, positives = [], [], [], 0
    for picture, target in enumerate(targets):
        claimed = claims(target.boxes_I4, target.centers_I2, torch.tensor(padded_size), config)
        owner_K = _owners(claimed, target, config)
        owned = torch.nonzero(owner_K >= 0)[:, 0]
        labels[picture, owned] = target.labels_I[owner_K[owned]]
        if config.variant == "released":
            learning_cells, learned_objects = claimed
        else:
            learning_cells, learned_objects = owned, owner_K[owned]
        cells.append(learning_cells)
        objects.append(learned_objects)
        counts.append(len(learning_cells))
        positives += len(owned)
    empty = torch.zeros(0, dtype=torch.int64)
    return Assignment(labels, torch.cat([empty, *cells]), torch.cat([empty, *objects]), tuple(counts), positives)


def claims(boxes_I4: Tensor, centers_I2: Tensor, padded_sizes: Tensor, config: SOTRConfig) -> tuple[Tensor, Tensor]:
    """Every pair of a cell and an object that claims it, as two index vectors.

    Args:
        boxes_I4, centers_I2: as in `Targets`.
        padded_sizes: (H, W) of the network input: one for all objects, or I x 2 if they are of several images.
    """
    boxes, centers = boxes_I4.double(), centers_I2.double()
    if config.variant == "released":
        centers = centers - 0.5  # the authors' code takes a pixel's index for its middle
    sizes_I2 = boxes[:, 2:] - boxes[:, :2]  # width, height
    scales_I = sizes_I2.prod(1).sqrt()
    half_I2 = sizes_I2 * (config.center_fraction / 2)
    extent = padded_sizes.double().flip(-1)
    cells, objects, start = [], [], 0
    for grid, (low, high) in zip(config.grids, config.scale_ranges, strict=True):
        center, first, last = (
            _cell(corner / extent, grid, config.variant) for corner in (centers, centers - half_I2, centers + half_I2)
        )
        reach_I9 = center[:, None] + _REACH.flip(1)  # (I, 9, 2), x before y
        valid_I9 = ((reach_I9 >= first[:, None]) & (reach_I9 <= last[:, None])).all(2)
        valid_I9 &= ((scales_I >= low) & (scales_I <= high))[:, None]
        cells.append((start + reach_I9[..., 1] * grid + reach_I9[..., 0])[valid_I9])
        objects.append(torch.nonzero(valid_I9)[:, 0])
        start += grid * grid
    return torch.cat(cells), torch.cat(objects)


def _cell(place: Tensor, grid: int, variant: str) -> Tensor:
    """Row or column of the cell that holds a place in 0..1."""
    if variant == "released":
        # The authors divide by 1 / N rounded to float32, so that a place on an edge may fall into the cell before it.
        cell = torch.div(place.float(), torch.tensor(1.0 / grid), rounding_mode="floor")
    else:
        cell = (place * grid).floor()
    return cell.long().clamp(0, grid - 1)


def _owners(claimed: tuple[Tensor, Tensor], target: Targets, config: SOTRConfig) -> Tensor:
    """(K,) the object whose class each cell learns, -1 for none; independent of the order of the claims."""
    cells, objects = claimed
    if config.variant == "released":
        return torch.full((config.num_cells,), -1).scatter_reduce(0, cells, objects, "amax")
    sizes_I2 = target.boxes_I4[:, 2:] - target.boxes_I4[:, :2]
    by_size = torch.argsort(sizes_I2.prod(1), stable=True)
    rank_I = torch.argsort(by_size)  # 0 is the smallest
    rank_K = torch.full((config.num_cells,), len(target)).scatter_reduce(0, cells, rank_I[objects], "amin")
    return torch.cat([by_size, torch.tensor([-1])])[rank_K]
