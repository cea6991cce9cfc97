"""The functional heads (section 3.1): one linear layer each, shared by all levels."""

import math

from torch import nn

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
