"""3x3 convolutions with a quarter of the multiplications, for inference on CPUs.

Winograd's F(4 x 4, 3 x 3), after Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): a tile of
4 x 4 results is A^T [(G g G^T) * (B^T d B)] A of the kernel g and the 6 x 6 inputs d around the tile. Over all channels
the product of two numbers becomes that of two matrices, one for each of the 36 elements; both transforms of a tile are
products with Kronecker's square of their matrix.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sotr.network.onednn import OneDNNConv, has_quick_mkl

TILE = 4
"""Rows and columns of results that are computed at once."""

POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Where polynomials are evaluated, besides infinity. Rounding errors are half of what they are with 0, 1, -1, 2, -2."""


def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """A^T (4, 6), G (6, 3) and B^T (6, 6) in float64, by Toom and Cook from POINTS."""

    def powers(count: int) -> Tensor:
        points = torch.tensor(POINTS, dtype=torch.float64)
        infinity = F.one_hot(torch.tensor([count - 1]), count).double()
        return torch.cat([points[:, None] ** torch.arange(count), infinity])

    results, kernel, inputs = powers(TILE).T, powers(3), torch.linalg.inv(powers(TILE + 2)).T
    scale = 2.0 ** inputs.abs().amax(1, keepdim=True).log2().round()  # by powers of two nothing is rounded
    return results, kernel * scale, inputs / scale


class MKLProducts:
    """All 36 products in one call; results are written to the memory that is given."""

    def __init__(self, weights_SCO: Tensor) -> None:
        self.weights_SCO = weights_SCO

    def transform(self, matrix_RS: Tensor, elements_STC: Tensor, out_RTC: Tensor) -> Tensor:
        """The product over a tile's elements."""
        torch.mm(matrix_RS, elements_STC.flatten(1), out=out_RTC.flatten(1))
        return out_RTC

    def multiply(self, elements_STC: Tensor, out_STO: Tensor) -> Tensor:
        """The product of each element's channels with its weights."""
        return torch.bmm(elements_STC, self.weights_SCO, out=out_STO)


class OneDNNProducts:
    """Each product by itself, its weights laid out for it; results are memory of their own and copied where need be."""

    def __init__(self, weights_SCO: Tensor) -> None:
        self.weights = [torch.ops.mkldnn._reorder_linear_weight(each.T.contiguous()) for each in weights_SCO]

    def transform(self, matrix_RS: Tensor, elements_STC: Tensor, out_RTC: Tensor) -> Tensor:
        """The product over a tile's elements, which take the place of a weight; not in the memory that is given."""
        weight = elements_STC.flatten(1).T
        return torch.ops.mkldnn._linear_pointwise(matrix_RS, weight, None, "none", [], "").view(out_RTC.shape)

    def multiply(self, elements_STC: Tensor, out_STO: Tensor) -> Tensor:
        """The product of each element's channels with its weights."""
        for x_TC, weight, out_TO in zip(elements_STC, self.weights, out_STO, strict=True):
            out_TO.copy_(torch.ops.mkldnn._linear_pointwise(x_TC, weight, None, "none", [], ""))
        return out_STO


@dataclass(frozen=True)
class Library:
    """Who multiplies the matrices, and where that is quicker than oneDNN's own convolution.

    Attributes:
        products: how it does so.
        channels_from: products of channels before and after below which transforms take what is saved.
        tiles_per_thread: below so many tiles for each thread, a direct convolution is as quick.
        bytes_at_once: of the elements of tiles; more would leave the cache, fewer would read the weights more often.
    """

    products: type[MKLProducts] | type[OneDNNProducts]
    channels_from: int
    tiles_per_thread: int
    bytes_at_once: int


ONEDNN = Library(OneDNNProducts, channels_from=1 << 16, tiles_per_thread=18, bytes_at_once=18 << 20)
MKL = Library(MKLProducts, channels_from=1 << 13, tiles_per_thread=8, bytes_at_once=12 << 20)


def quickest_library() -> Library:
    """The one to use on this machine."""
    return MKL if has_quick_mkl() else ONEDNN


class WinogradConv(nn.Module):
    """A 3x3 convolution of stride 1, padded with one ring of zeros, in float32; equal to rounding.

    Its weights take four times the memory, and once more for oneDNN's convolution, which takes over where tiles are
    few. Its rounding errors are five times that one's.

    Args:
        conv: the convolution.
        activation: "none", "relu" or "leaky_relu".
        slope: of the Leaky ReLU.
        library: see `quickest_library`.
        over_input: results may be written over the inputs, which nobody reads again.
    """

    def __init__(
        self, conv: nn.Conv2d, activation: str, slope: float | None, library: Library, over_input: bool = False
    ) -> None:
        super().__init__()
        self.library = library
        self.over_input = over_input and conv.in_channels == conv.out_channels
        self.direct = OneDNNConv(conv, torch.float32, activation, slope, in_place=False)
        self.channels = conv.out_channels
        self.floats_of_tile = (TILE + 2) ** 2 * max(conv.in_channels, conv.out_channels)
        self.tiles_at_once = library.bytes_at_once // (4 * self.floats_of_tile)
        self.slope = {"none": None, "relu": 0.0, "leaky_relu": slope}[activation]
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        to_results, to_kernel, to_inputs = transforms()
        self.to_results = torch.kron(to_results, to_results).float()  # 16, 36
        self.to_inputs = torch.kron(to_inputs, to_inputs).float()  # 36, 36
        weights = torch.einsum("ai,ocij,bj->abco", to_kernel, conv.weight.detach().double(), to_kernel)
        weights_SCO = weights.float().flatten(0, 1).contiguous()
        self.products = library.products(weights_SCO)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """activation(conv(x))."""
        return self.together([x_BCHW])[0]

    def together(self, maps_BCHW: Sequence[Tensor]) -> list[Tensor]:
        """activation(conv(x)) of each of several maps; for small ones, weights are read once."""
        tiles = sum(len(x) * math.ceil(x.shape[2] / TILE) * math.ceil(x.shape[3] / TILE) for x in maps_BCHW)
        if tiles < self.library.tiles_per_thread * torch.get_num_threads():
            return [self.direct(x_BCHW) for x_BCHW in maps_BCHW]
        row = max(math.ceil(x.shape[3] / TILE) for x in maps_BCHW)
        room = self.to_inputs.new_empty(2, self.floats_of_tile * min(tiles, max(row, self.tiles_at_once)))
        results: list[Tensor] = []
        pieces: list[_Piece] = []
        waiting = 0
        for x_BCHW in maps_BCHW:
            x_BHWC = x_BCHW.permute(0, 2, 3, 1).float().contiguous()
            # A piece has read the rows around it before the one above it is written.
            y_BHWC = x_BHWC if self.over_input else x_BHWC.new_empty(*x_BHWC.shape[:3], self.channels)
            results.append(y_BHWC.permute(0, 3, 1, 2))
            for piece in _pieces(x_BHWC, y_BHWC, self.tiles_at_once):
                if pieces and waiting + piece.tiles > self.tiles_at_once:
                    self._convolve(pieces, room)
                    pieces, waiting = [], 0
                pieces.append(piece)
                waiting += piece.tiles
        self._convolve(pieces, room)
        return results

    def _convolve(self, pieces: Sequence["_Piece"], room: Tensor) -> None:
        """Write the results of all pieces."""
        sizes = [piece.tiles for piece in pieces]
        before = (len(self.to_inputs), sum(sizes), pieces[0].inputs_66BdaC.shape[-1])
        after = (*before[:2], self.channels)
        one, other = room
        inputs_STC = _part(one, before)
        for piece, part_STC in zip(pieces, inputs_STC.split(sizes, 1), strict=True):
            part_STC.view(piece.inputs_66BdaC.shape).copy_(piece.inputs_66BdaC)
        elements_STC = self.products.transform(self.to_inputs, inputs_STC, _part(other, before))
        products_STC = self.products.multiply(elements_STC, _part(one, after))
        out_STC = _part(other, (len(self.to_results), *after[1:]))
        results_STC = self.products.transform(self.to_results, products_STC, out_STC)
        for piece, part_STC in zip(pieces, results_STC.split(sizes, 1), strict=True):
            self._write(part_STC, piece)

    def _write(self, results_STC: Tensor, piece: "_Piece") -> None:
        batch, down, across = piece.inputs_66BdaC.shape[2:5]
        _, rows, columns, channels = piece.out_BhWC.shape
        y = results_STC.view(TILE, TILE, batch, down, across, channels).permute(2, 3, 0, 4, 1, 5)  # B d 4 a 4 C
        if (rows, columns) == (TILE * down, TILE * across):
            out = piece.out_BhWC.unflatten(2, (across, TILE)).unflatten(1, (down, TILE))
        else:
            y, out = y.reshape(batch, TILE * down, TILE * across, channels)[:, :rows, :columns], piece.out_BhWC
        if self.bias is None:
            out.copy_(y)
        else:
            torch.add(y, self.bias, out=out)
        if self.slope is not None:
            F.leaky_relu_(piece.out_BhWC, self.slope)


def _part(room: Tensor, shape: tuple[int, ...]) -> Tensor:
    return room[: math.prod(shape)].view(shape)


@dataclass
class _Piece:
    """Some rows of some pictures.

    Attributes:
        inputs_66BdaC: what d x a tiles of each picture read, a view in which tiles overlap.
        out_BhWC: the place of their results; the last tiles may reach beyond it.
    """

    inputs_66BdaC: Tensor
    out_BhWC: Tensor

    @property
    def tiles(self) -> int:
        return math.prod(self.inputs_66BdaC.shape[2:5])


def _pieces(x_BHWC: Tensor, y_BHWC: Tensor, most: int) -> Iterator[_Piece]:
    """Several small pictures, or bands of one height of a large one: `most` tiles, or one row of them."""
    batch, height, width, channels = x_BHWC.shape
    all_down, across = math.ceil(height / TILE), math.ceil(width / TILE)
    pictures = max(1, most // (all_down * across))
    bands = math.ceil(all_down / max(1, most // across))
    band = TILE * math.ceil(all_down / bands)
    for first in range(0, batch, pictures):
        for top in range(0, height, band):
            out_BhWC = y_BHWC[first : first + pictures, top : top + band]
            down = math.ceil(out_BhWC.shape[1] / TILE)
            above, below = top - 1, top + TILE * down + 1
            padding = (0, 0, 1, TILE * across - width + 1, max(0, -above), max(0, below - height))
            padded = F.pad(x_BHWC[first : first + pictures, max(0, above) : below], padding)
            of_picture, of_row, of_column, of_channel = padded.stride()
            overlapping = padded.as_strided(
                (TILE + 2, TILE + 2, len(padded), down, across, channels),
                (of_row, of_column, of_picture, TILE * of_row, TILE * of_column, of_channel),
            )
            yield _Piece(overlapping, out_BhWC)
