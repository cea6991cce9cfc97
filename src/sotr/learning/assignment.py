"""Which cell learns which object."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sotr.config import SOTRConfig
from sotr.learning.targets import Targets

_REACH = torch.tensor([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
"""Offsets from an object's central cell: it takes 3 x 3 cells at most."""


@dataclass(frozen=True)
class Assignment:
    """The cells of a batch that learn an object, P in all, and the class of every cell."""

    labels_BK: Tensor
    """int64 class index of each cell, M where the cell is background."""
    cells_P: Tensor
    """int64 index k of each positive cell within its picture; pictures one after the other."""
    objects_P: Tensor
    """int64 index of the cell's object within its picture."""
    counts: tuple[int, ...]
    """Positive cells of each picture; they sum to P. Host numbers, so that splitting P needs no device sync."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Assignment":
        return Assignment(
            self.labels_BK.to(device, non_blocking=non_blocking),
            self.cells_P.to(device, non_blocking=non_blocking),
            self.objects_P.to(device, non_blocking=non_blocking),
            self.counts,
        )


def assign(targets: Sequence[Targets], config: SOTRConfig, padded_size: tuple[int, int]) -> Assignment:
    """Assign objects to cells.

    An object belongs to each level whose scale range holds the square root of its box area. There it takes the cells
    that the central part of its box (`config.center_fraction`, centred on the mask's centre of mass) touches, at most
    3 x 3 around the centre's own. Where several objects claim a cell, the one with the smallest box wins, for class
    and kernel alike.

    Args:
        targets: the pictures of a batch.
        padded_size: (H, W) of the network input.
    """
    num_cells = config.num_cells
    labels = torch.full((len(targets), num_cells), config.num_classes, dtype=torch.int64)
    cells, objects, counts = [], [], []
    for picture, target in enumerate(targets):
        object_K = _object_of_cell(target, config, padded_size)
        cell = torch.nonzero(object_K >= 0)[:, 0]
        labels[picture, cell] = target.labels_I.cpu()[object_K[cell]]
        cells.append(cell)
        objects.append(object_K[cell])
        counts.append(len(cell))
    empty = torch.zeros(0, dtype=torch.int64)
    return Assignment(labels, torch.cat([empty, *cells]), torch.cat([empty, *objects]), tuple(counts))


def _object_of_cell(target: Targets, config: SOTRConfig, padded_size: tuple[int, int]) -> Tensor:
    """(K,) index of the object that each cell learns, -1 for none."""
    boxes, centers = target.boxes_I4.cpu(), target.centers_I2.cpu()
    sizes_I2 = boxes[:, 2:] - boxes[:, :2]  # width, height
    scales_I = sizes_I2.prod(1).sqrt()
    by_size = torch.argsort(scales_I, stable=True)
    rank_I = torch.argsort(by_size)  # 0 is the smallest
    nobody = len(target)
    extent = torch.tensor([padded_size[1], padded_size[0]], dtype=torch.float32)

    levels = []
    for grid, (low, high) in zip(config.grids, config.scale_ranges, strict=True):

        def cell_of(position_I2: Tensor, grid: int = grid) -> Tensor:
            return (position_I2 / extent * grid).floor().long().clamp(0, grid - 1)

        half = sizes_I2 * (config.center_fraction / 2)
        center, first, last = cell_of(centers), cell_of(centers - half), cell_of(centers + half)
        claims_I9 = center[:, None] + _REACH.flip(1)  # (I, 9, 2), x before y
        valid_I9 = ((claims_I9 >= first[:, None]) & (claims_I9 <= last[:, None])).all(2)
        valid_I9 &= ((scales_I >= low) & (scales_I <= high))[:, None]
        index = (claims_I9[..., 1] * grid + claims_I9[..., 0])[valid_I9]
        rank = rank_I[:, None].expand(-1, len(_REACH))[valid_I9]
        # The smallest rank wins a cell, whatever the order of the claims.
        levels.append(torch.full((grid * grid,), nobody).scatter_reduce(0, index, rank, "amin"))
    rank_K = torch.cat(levels)
    return torch.cat([by_size, torch.tensor([-1])])[rank_K]
