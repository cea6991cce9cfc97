"""Masks that know where their cell is: waves of position beside the mask features, and kernels that read them.

This is not in the paper. There a kernel separates two objects that look alike only by what the features say about
their position, which takes long to learn if there are many. `SOTRConfig.position_waves` switches it on.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sotr.config import SOTRConfig
from sotr.network import SOTR, DensePredictions
from sotr.network.heads import KernelHead

START_RADIUS = 1.5
"""Radius, in cells, of the disc around its cell that every mask is before training."""

START_LOGIT = 2.0
"""Mask logit at the disc's center."""


class PositionedSOTR(SOTR):
    """The paper's network with waves of position beside its mask features, and kernels that read them."""

    positioned = True

    def __init__(self, config: SOTRConfig) -> None:
        super().__init__(config)
        self.kernel_head = PositionedKernelHead(config.width, config.mask_channels, config.grids, config.position_waves)

    def forward(self, images_B3HW: Tensor) -> DensePredictions:
        """As the paper's network, with E + 4 F + 1 channels of mask features."""
        predictions = super().forward(images_B3HW)
        features_BEhw = with_positions(predictions.mask_features_BEhw, self.config.position_waves)
        return predictions._replace(mask_features_BEhw=features_BEhw)


def with_positions(features_BEhw: Tensor, count: int) -> Tensor:
    """Append 4 F + 1 channels: F cosines and F sines of x, those of y, and ones."""
    batch, _, height, width = features_BEhw.shape
    x_2Fw = _waves(_centers(width, features_BEhw.device), count).flatten(0, 1)
    y_2Fh = _waves(_centers(height, features_BEhw.device), count).flatten(0, 1)
    positions = torch.cat(
        (
            x_2Fw[:, None, :].expand(-1, height, -1),
            y_2Fh[:, :, None].expand(-1, -1, width),
            x_2Fw.new_ones(1, height, width),
        )
    )
    return torch.cat((features_BEhw, positions.to(features_BEhw.dtype).expand(batch, -1, -1, -1)), 1)


class PositionedKernelHead(KernelHead):
    """A kernel head whose last 4 F + 1 outputs say how the mask lies around its cell.

    For the cell at (cx, cy) they add to the mask's logits at (x, y), w counting the waves and f_w = 2^w pi,

        sum_w p_w cos(f_w (x - cx)) + q_w sin(f_w (x - cx)) + r_w cos(f_w (y - cy)) + s_w sin(f_w (y - cy)) + t

    which is linear in the waves of x and of y, so that a mask stays the product of its kernel and the features. Each
    level learns where p and r start; the head says what differs from there.
    """

    def __init__(self, width: int, mask_channels: int, grids: Sequence[int], count: int) -> None:
        super().__init__(width, mask_channels + 4 * count + 1)
        self.grids, self.parts = tuple(grids), (mask_channels, 4 * count, 1)
        self.waves_KA2F: Tensor
        self.heights_LF = nn.Parameter(torch.stack([_start(grid, count) for grid in grids]))
        columns_K = torch.cat([_centers(grid).repeat(grid) for grid in grids])
        rows_K = torch.cat([_centers(grid).repeat_interleave(grid) for grid in grids])
        waves_A2FK = torch.stack([_waves(columns_K, count), _waves(rows_K, count)])  # A: the two axes
        self.register_buffer("waves_KA2F", waves_A2FK.permute(3, 0, 1, 2).contiguous(), persistent=False)

    def forward(self, cells_BKC: Tensor) -> Tensor:
        """Features of all K cells, (B, K, C) -> (B, K, E + 4 F + 1)."""
        learned, around, constant = super().forward(cells_BKC).split(self.parts, -1)
        start_KF = torch.cat(
            [heights_F.expand(grid * grid, -1) for heights_F, grid in zip(self.heights_LF, self.grids, strict=True)]
        )
        p_BKAF, q_BKAF = around.unflatten(-1, (2, 2, -1)).unbind(-2)
        p_BKAF = p_BKAF + start_KF[:, None]
        cosines_KAF, sines_KAF = self.waves_KA2F.unbind(-2)
        # cos(a - b) = cos a cos b + sin a sin b, and sin(a - b) = sin a cos b - cos a sin b.
        of_cosines = p_BKAF * cosines_KAF - q_BKAF * sines_KAF
        of_sines = p_BKAF * sines_KAF + q_BKAF * cosines_KAF
        constant = constant + START_LOGIT - 2 * start_KF.sum(-1, keepdim=True)
        return torch.cat((learned, torch.stack((of_cosines, of_sines), -2).flatten(-3), constant), -1)


def _centers(count: int, device: torch.device | None = None) -> Tensor:
    """Middles of `count` equal parts of an axis from 0 to 1, the image's edges."""
    return (torch.arange(count, dtype=torch.float32, device=device) + 0.5) / count


def _waves(positions_N: Tensor, count: int) -> Tensor:
    """(N,) -> cosines and sines of `count` frequencies, each twice the one before, (2, F, N)."""
    frequencies_F = math.pi * 2.0 ** torch.arange(count, dtype=torch.float32, device=positions_N.device)
    angles_FN = frequencies_F[:, None] * positions_N
    return torch.stack((angles_FN.cos(), angles_FN.sin()))


def _start(grid: int, count: int) -> Tensor:
    """Heights (F,) of cosines whose sum falls from START_LOGIT to 0 within START_RADIUS cells, and stays below."""
    radius = START_RADIUS / grid
    # Waves longer than the disc's outline add up to one well; the curvature at its bottom sets the radius.
    used = min(count, 1 + max(0, round(-math.log2(math.pi * radius))))
    squares = [(math.pi * 2.0**wave) ** 2 for wave in range(used)]
    height = 2 * START_LOGIT / (radius**2 * sum(squares))
    return torch.tensor([height] * used + [0.0] * (count - used), dtype=torch.float32)
