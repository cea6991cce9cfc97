"""The functional heads (section 3.1): one linear layer each, shared by all levels; and Table 5's static kernels."""

import math

import torch
from torch import Tensor, nn

PRIOR_SCORE = 0.01
"""Score of every class in every cell before training, so that the many empty cells do not swamp the first steps."""


class ClassHead(nn.Linear):
    """Cell features (..., C) -> class logits (..., M)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.constant_(self.bias, -math.log((1 - PRIOR_SCORE) / PRIOR_SCORE))


class KernelHead(nn.Linear):
    """Cell features (..., C) -> the parameters of the cell's dynamic convolution (..., D)."""

    def __init__(self, width: int, kernel_parameters: int) -> None:
        super().__init__(width, kernel_parameters)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)


class StaticKernels(nn.Module):
    """Table 5's counterpart of the kernel head: each cell's convolution is learned once, whatever the image."""

    def __init__(self, num_cells: int, kernel_parameters: int) -> None:
        super().__init__()
        self.kernels_KD = nn.Parameter(torch.empty(num_cells, kernel_parameters))
        nn.init.normal_(self.kernels_KD, std=0.01)

    def forward(self, cells_BKC: Tensor) -> Tensor:
        """Cell features, of which only B matters, -> (B, K, D)."""
        return self.kernels_KD.expand(cells_BKC.shape[0], -1, -1)
