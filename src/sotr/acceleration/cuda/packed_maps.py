"""Several maps packed side by side into one, so that a layer takes them all at once.

Five grids and P5 through twelve layers are hundreds of small kernels, and a GPU takes longer to launch each than to run
it. Packed, they are as many as for a single map. Operations on single cells do not depend on where a cell lies.
Attention gets a mask of the cells that belong to the same map. Convolutions find zeros between the maps, as beyond a
map's edge.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

Size = tuple[int, int]
"""Rows and columns."""

Place = tuple[int, int]
"""Row and column of a map's first cell."""

ALIGNMENT = 8
"""Numbers to whose multiples the kernels of attention want the rows of a mask to begin."""


class Layout(NamedTuple):
    """Where each map lies in a packed map of which size."""

    places: tuple[Place, ...]
    size: Size


class Packing(NamedTuple):
    """Maps of B images packed into one map each, R x L cells.

    Attributes:
        layout: where they lie.
        sizes: of the maps.
        inside_RL1: 1 in the cells of maps, 0 between them.
        rows_S1LL: 0 for two cells of a row that are of one map, else -inf; S = B R.
        columns_S1RR: the same of its columns; S = B L.
    """

    layout: Layout
    sizes: tuple[Size, ...]
    inside_RL1: Tensor
    rows_S1LL: Tensor
    columns_S1RR: Tensor

    def join(self, maps_BNNC: Sequence[Tensor]) -> Tensor:
        """The maps (B, rows, columns, C) packed (B, R, L, C), with zeros in between."""
        packed_BRLC = maps_BNNC[0].new_zeros(maps_BNNC[0].shape[0], *self.layout.size, maps_BNNC[0].shape[3])
        for window, x_BNNC in zip(self._windows(), maps_BNNC, strict=True):
            packed_BRLC[window] = x_BNNC
        return packed_BRLC

    def split(self, packed_BRLC: Tensor) -> list[Tensor]:
        """The maps, as views of the packed one."""
        return [packed_BRLC[window] for window in self._windows()]

    def _windows(self) -> list[tuple[slice, slice, slice]]:
        return [
            (slice(None), slice(top, top + rows), slice(left, left + columns))
            for (top, left), (rows, columns) in zip(self.layout.places, self.sizes, strict=True)
        ]


def packing_of(maps_BNNC: Sequence[Tensor]) -> Packing:
    """Where maps (B, rows, columns, C) of one device and type go in a packed map of as few cells as possible."""
    first = maps_BNNC[0]
    sizes = tuple((x_BNNC.shape[1], x_BNNC.shape[2]) for x_BNNC in maps_BNNC)
    layout = lay_out(sizes)
    owner_RL = torch.zeros(layout.size, dtype=torch.int32, device=first.device)
    for number, ((top, left), (rows, columns)) in enumerate(zip(layout.places, sizes, strict=True), 1):
        owner_RL[top : top + rows, left : left + columns] = number
    kind = first.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else first.dtype
    masks = [_mask(owner, first.shape[0], dtype) for owner in (owner_RL, owner_RL.T)]
    return Packing(layout, sizes, (owner_RL[:, :, None] > 0).to(first.dtype), *masks)


def _mask(owner_RL: Tensor, batch: int, dtype: torch.dtype) -> Tensor:
    """What to add to the attention's products along the rows; cells between maps see one another, for softmax over
    nothing is not a number."""
    same_RLL = owner_RL[:, :, None] == owner_RL[:, None]
    lines, length = owner_RL.shape
    mask = torch.zeros(batch, lines, length, -(-length // ALIGNMENT) * ALIGNMENT, dtype=dtype, device=owner_RL.device)
    mask[..., :length].masked_fill_(~same_RLL, -torch.inf)
    return mask.flatten(0, 1)[:, None, :, :length]


@torch.compiler.assume_constant_result
def lay_out(sizes: tuple[Size, ...]) -> Layout:
    """Places for maps of these sizes, a row or column apart at least, in the packed map of fewest cells among some."""
    return _lay_out(sizes)


@lru_cache(maxsize=1024)
def _lay_out(sizes: tuple[Size, ...]) -> Layout:
    widths = {sum(chosen) + len(chosen) - 1 for chosen in _subsets([columns for _, columns in sizes])}
    widest = max(columns for _, columns in sizes)
    layouts = [_stack(sizes, width) for width in sorted(widths) if width >= widest]
    return min(layouts, key=lambda layout: layout.size[0] * layout.size[1])


def _subsets(numbers: Sequence[int]) -> Iterable[tuple[int, ...]]:
    return (chosen for count in range(1, len(numbers) + 1) for chosen in combinations(numbers, count))


def _stack(sizes: tuple[Size, ...], width: int) -> Layout:
    """The tallest maps first, each as far up, then as far left, as one fits in a packed map of this width."""
    free = [0] * width  # of each column the first row below all maps
    places: dict[int, Place] = {}
    for index in sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True):
        rows, columns = sizes[index]
        starts = {0} | {left + sizes[other][1] + 1 for other, (_, left) in places.items()}
        # The column to the right is a gap, too, unless the packed map ends there.
        top, left = min((max(free[left : left + columns + 1]), left) for left in starts if left + columns <= width)
        places[index] = top, left
        free[left : left + columns + 1] = [top + rows + 1] * len(free[left : left + columns + 1])
    height = max(top + sizes[index][0] for index, (top, _) in places.items())
    return Layout(tuple(places[index] for index in range(len(sizes))), (height, width))
