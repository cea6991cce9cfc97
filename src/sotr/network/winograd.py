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

from sotr.network.onednn import OneDNNConv

TILE = 4
"""Rows and columns of results that are computed at once."""

POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Where polynomials are evaluated, besides infinity. Rounding errors are half of what they are with 0, 1, -1, 2, -2."""

TILES_PER_THREAD = 18
"""Below so many tiles for each thread, oneDNN's own convolution is as quick."""

BYTES_AT_ONCE = 18 << 20
"""Of the elements of tiles: more would leave the cache, fewer would read the weights more often."""


def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """A^T (4, 6), G (6, 3) and B^T (6, 6) in float64, by Toom and Cook from POINTS."""

    def powers(count: int) -> Tensor:
        points = torch.tensor(POINTS, dtype=torch.float64)
        infinity = F.one_hot(torch.tensor([count - 1]), count).double()
        return torch.cat([points[:, None] ** torch.arange(count), infinity])

    results, kernel, inputs = powers(TILE).T, powers(3), torch.linalg.inv(powers(TILE + 2)).T
    scale = 2.0 ** inputs.abs().amax(1, keepdim=True).log2().round()  # by powers of two nothing is rounded
    return results, kernel * scale, inputs / scale


class WinogradConv(nn.Module):
    """A 3x3 convolution of stride 1, padded with one ring of zeros, in float32; equal to rounding.

    Its weights take four times the memory, and once more for oneDNN's convolution, which takes over where tiles are
    few. Its rounding errors are five times that one's.

    Args:
        conv: the convolution.
        activation: "none", "relu" or "leaky_relu".
        slope: of the Leaky ReLU.
    """

    def __init__(self, conv: nn.Conv2d, activation: str, slope: float | None) -> None:
        super().__init__()
        self.direct = OneDNNConv(conv, torch.float32, activation, slope, in_place=False)
        self.channels = conv.out_channels
        self.tiles_at_once = BYTES_AT_ONCE // (4 * (TILE + 2) ** 2 * max(conv.in_channels, conv.out_channels))
        self.slope = {"none": None, "relu": 0.0, "leaky_relu": slope}[activation]
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        to_results, to_kernel, to_inputs = transforms()
        self.to_results = torch.kron(to_results, to_results).float()  # 16, 36
        self.to_inputs = torch.kron(to_inputs, to_inputs).float()  # 36, 36
        weights = torch.einsum("ai,ocij,bj->aboc", to_kernel, conv.weight.detach().double(), to_kernel).float()
        self.weights = [torch.ops.mkldnn._reorder_linear_weight(each) for each in weights.flatten(0, 1)]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """activation(conv(x))."""
        return self.together([x_BCHW])[0]

    def together(self, maps_BCHW: Sequence[Tensor]) -> list[Tensor]:
        """activation(conv(x)) of each of several maps; for small ones, weights are read once."""
        tiles = sum(len(x) * math.ceil(x.shape[2] / TILE) * math.ceil(x.shape[3] / TILE) for x in maps_BCHW)
        if tiles < TILES_PER_THREAD * torch.get_num_threads():
            return [self.direct(x_BCHW) for x_BCHW in maps_BCHW]
        results: list[Tensor] = []
        pieces: list[_Piece] = []
        waiting = 0
        for x_BCHW in maps_BCHW:
            x_BHWC = x_BCHW.permute(0, 2, 3, 1).float().contiguous()
            y_BHWC = x_BHWC.new_empty(*x_BHWC.shape[:3], self.channels)
            results.append(y_BHWC.permute(0, 3, 1, 2))
            for piece in _pieces(x_BHWC, y_BHWC, self.tiles_at_once):
                if pieces and waiting + piece.tiles > self.tiles_at_once:
                    self._convolve(pieces)
                    pieces, waiting = [], 0
                pieces.append(piece)
                waiting += piece.tiles
        self._convolve(pieces)
        return results

    def _convolve(self, pieces: Sequence["_Piece"]) -> None:
        """Write the results of all pieces."""
        sizes = [piece.tiles for piece in pieces]
        shape = (len(self.weights), sum(sizes))
        inputs_STC = self.to_inputs.new_empty(*shape, pieces[0].inputs_66BdaC.shape[-1])
        for piece, part_STC in zip(pieces, inputs_STC.split(sizes, 1), strict=True):
            part_STC.view(piece.inputs_66BdaC.shape).copy_(piece.inputs_66BdaC)
        products_STC = self.to_inputs.new_empty(*shape, self.channels)
        for x_TC, weight, product_TC in zip(
            _transform(self.to_inputs, inputs_STC), self.weights, products_STC, strict=True
        ):
            product_TC.copy_(torch.ops.mkldnn._linear_pointwise(x_TC, weight, None, "none", [], ""))
        results_STC = _transform(self.to_results, products_STC)
        for piece, part_STC in zip(pieces, results_STC.split(sizes, 1), strict=True):
            self._write(part_STC, piece)

    def _write(self, results_STC: Tensor, piece: "_Piece") -> None:
        batch, down, across = piece.inputs_66BdaC.shape[2:5]
        _, rows, columns, _ = piece.out_BhWC.shape
        y_44BdaC = results_STC.view(TILE, TILE, batch, down, across, self.channels)
        y_BhWC = y_44BdaC.permute(2, 3, 0, 4, 1, 5).reshape(batch, TILE * down, TILE * across, self.channels)
        y_BhWC = y_BhWC[:, :rows, :columns]
        if self.bias is None:
            piece.out_BhWC.copy_(y_BhWC)
        else:
            torch.add(y_BhWC, self.bias, out=piece.out_BhWC)
        if self.slope is not None:
            F.leaky_relu_(piece.out_BhWC, self.slope)


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


def _transform(matrix_RS: Tensor, elements_STC: Tensor) -> Tensor:
    """The product over a tile's elements: (S, T, C) -> (R, T, C)."""
    # oneDNN is twice as quick as MKL here, the elements in the place of a weight.
    weight = elements_STC.flatten(1).T
    return torch.ops.mkldnn._linear_pointwise(matrix_RS, weight, None, "none", [], "").view(-1, *elements_STC.shape[1:])
