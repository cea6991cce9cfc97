"""Masks that know where their cell is: waves of position beside the mask features, and kernels that read them.

This is not in the paper. There a kernel separates two objects that look alike only by what the features say about
their position, which takes long to learn if there are many. `SOTRConfig.position_waves` switches it on.
"""

import math

import torch
from torch import Tensor, nn

from sotr.config import SOTRConfig
from sotr.network import SOTR, DensePredictions

SHORTEST = 8
"""Half a period of the shortest wave, in pixels; each other wave is twice as long as the one before."""

START_RADIUS = 1.5
"""Radius, in cells of an image of the configuration's size, of the disc around its cell that every mask is before
training."""

START_LOGIT = 2.0
"""Mask logit at the disc's center."""


class PositionedSOTR(SOTR):
    """The paper's network with waves of position beside its mask features, and kernels that read them.

    The mask features get F cosines and F sines of x, those of y, and ones. The last 4 F + 1 outputs of the kernel head
    say how a mask lies around its cell: for the cell at (cx, cy) they add to the logits of the pixel at (x, y)

        sum_w p_w cos(f_w (x - cx)) + q_w sin(f_w (x - cx)) + r_w cos(f_w (y - cy)) + s_w sin(f_w (y - cy)) + t

    which is linear in the waves of x and of y, so that a mask stays the product of its kernel and the features.
    Positions are in pixels: the same object looks the same wherever it lies and however large the image is. Each level
    learns where p and r start; the head says what differs from there.
    """

    positioned = True

    def __init__(self, config: SOTRConfig) -> None:
        super().__init__(config)
        count = config.position_waves
        self.parts = config.mask_channels, 4 * count, 1
        self.heights_LF = nn.Parameter(torch.stack([_start(config.image_size / grid, count) for grid in config.grids]))
        x_K = torch.cat([_centers(grid).repeat(grid) for grid in config.grids])
        y_K = torch.cat([_centers(grid).repeat_interleave(grid) for grid in config.grids])
        self.places_K2: Tensor
        self.register_buffer("places_K2", torch.stack((x_K, y_K), 1), persistent=False)

    def forward(self, images_B3HW: Tensor) -> DensePredictions:
        """As the paper's network, with E + 4 F + 1 channels of mask features."""
        logits_BKM, kernels_BKD, features_BEhw = super().forward(images_B3HW)
        size = images_B3HW.shape[2], images_B3HW.shape[3]
        return DensePredictions(
            logits_BKM, self.placed(kernels_BKD, size), with_positions(features_BEhw, size, self.config.position_waves)
        )

    def placed(self, kernels_BKD: Tensor, size: tuple[int, int]) -> Tensor:
        """Kernels that speak of positions around their cells -> kernels for the waves of an image of H x W pixels."""
        height, width = size
        learned, around, constant = kernels_BKD.split(self.parts, -1)
        start_KF = torch.cat(
            [heights_F.expand(n * n, -1) for heights_F, n in zip(self.heights_LF, self.config.grids, strict=True)]
        )
        x_K, y_K = self.places_K2.unbind(1)
        count = self.config.position_waves
        waves_2AFK = torch.stack((_waves(x_K * width, count), _waves(y_K * height, count)), 1)  # A: the two axes
        cosines_KAF, sines_KAF = waves_2AFK.permute(0, 3, 1, 2)
        p_BKAF, q_BKAF = around.unflatten(-1, (2, 2, -1)).unbind(-2)
        p_BKAF = p_BKAF + start_KF[:, None]
        # cos(a - b) = cos a cos b + sin a sin b, and sin(a - b) = sin a cos b - cos a sin b.
        of_cosines = p_BKAF * cosines_KAF - q_BKAF * sines_KAF
        of_sines = p_BKAF * sines_KAF + q_BKAF * cosines_KAF
        constant = constant + START_LOGIT - 2 * start_KF.sum(-1, keepdim=True)
        return torch.cat((learned, torch.stack((of_cosines, of_sines), -2).flatten(-3), constant), -1)


def with_positions(features_BEhw: Tensor, size: tuple[int, int], count: int) -> Tensor:
    """Append 4 F + 1 channels to the features of an image of H x W pixels: F cosines and F sines of x, those of y, and
    ones."""
    batch, _, height, width = features_BEhw.shape
    device = features_BEhw.device
    x_2Fw = _waves(_centers(width, device) * size[1], count).flatten(0, 1)
    y_2Fh = _waves(_centers(height, device) * size[0], count).flatten(0, 1)
    positions = torch.cat(
        (
            x_2Fw[:, None, :].expand(-1, height, -1),
            y_2Fh[:, :, None].expand(-1, -1, width),
            x_2Fw.new_ones(1, height, width),
        )
    )
    return torch.cat((features_BEhw, positions.to(features_BEhw.dtype).expand(batch, -1, -1, -1)), 1)


def _centers(count: int, device: torch.device | None = None) -> Tensor:
    """Middles of `count` equal parts of an axis from 0 to 1."""
    return (torch.arange(count, dtype=torch.float32, device=device) + 0.5) / count


def _frequencies(count: int, device: torch.device | None = None) -> Tensor:
    """Radians per pixel of the waves, (F,), the shortest first."""
    return math.pi / SHORTEST * 0.5 ** torch.arange(count, dtype=torch.float32, device=device)


def _waves(pixels_N: Tensor, count: int) -> Tensor:
    """Positions (N,) in pixels -> cosines and sines of `count` waves, (2, F, N)."""
    angles_FN = _frequencies(count, pixels_N.device)[:, None] * pixels_N
    return torch.stack((angles_FN.cos(), angles_FN.sin()))


def _start(cell: float, count: int) -> Tensor:
    """Heights (F,) of cosines whose sum falls from START_LOGIT to 0 within START_RADIUS cells, and stays below."""
    radius = START_RADIUS * cell
    frequencies_F = _frequencies(count)
    # Waves longer than the disc's outline add up to one well; the curvature at its bottom sets the radius.
    used_F = frequencies_F <= torch.clamp(frequencies_F[-1], min=math.sqrt(2) / radius)
    return 2 * START_LOGIT / (radius**2 * (used_F * frequencies_F.square()).sum()) * used_F
