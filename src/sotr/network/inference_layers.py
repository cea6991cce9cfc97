"""Layers that inference computes with less work than training, on CUDA and elsewhere."""

import torch
from torch import Tensor, nn

from sotr.network.attention import PositionEmbedding


def scale_and_shift(norm: nn.GroupNorm, mean_BG: Tensor, rstd_BG: Tensor) -> tuple[Tensor, Tensor]:
    """What a group norm multiplies a map with, and adds to that, (B, C, 1, 1) each, given its groups' means and
    reciprocal deviations."""
    weight_Gc, bias_Gc = (each.unflatten(0, (norm.num_groups, -1)) for each in (norm.weight, norm.bias))
    scale_BGc = rstd_BG[..., None] * weight_Gc
    shift_BGc = bias_Gc - mean_BG[..., None] * scale_BGc
    return scale_BGc.flatten(1)[..., None, None], shift_BGc.flatten(1)[..., None, None]


class ChannelsLastGroupNorm(nn.Module):
    """Group norm of a map in channels-last memory, written over it; nobody may read it again.

    PyTorch's own copies such a map, and back.

    Args:
        norm: the norm.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The same shape."""
        groups = self.norm.num_groups
        cells_BLC = x_BCHW.permute(0, 2, 3, 1).flatten(1, 2).float()
        variance_BGc, mean_BGc = (
            each_BC.unflatten(1, (groups, -1)) for each_BC in torch.var_mean(cells_BLC, 1, correction=0)
        )
        mean_BG1 = mean_BGc.mean(2, keepdim=True)
        variance_BG1 = (variance_BGc + (mean_BGc - mean_BG1).square()).mean(2, keepdim=True)
        rstd_BG = (variance_BG1[..., 0] + self.norm.eps).rsqrt()
        scale_BC11, shift_BC11 = scale_and_shift(self.norm, mean_BG1[..., 0], rstd_BG)
        return torch.addcmul(shift_BC11, x_BCHW, scale_BC11, out=x_BCHW)  # in float32, whatever the map's type


class FixedPosition(nn.Module):
    """A position embedding that resamples its tables once for each size of map.

    Args:
        position: whose tables no longer change.
    """

    SIZES = 64
    """Sizes that are kept, the first; the levels' are always the same, P5's depends on the picture's."""

    def __init__(self, position: PositionEmbedding) -> None:
        super().__init__()
        self.position = position
        self._of_size: dict[torch.Size, Tensor] = {}

    def forward(self, x_BNNC: Tensor) -> Tensor:
        """(B, rows, columns, C) -> the same shape."""
        size = x_BNNC.shape[1:]
        embedding_1NNC = self._of_size.get(size)
        if embedding_1NNC is None:
            embedding_1NNC = self.position(torch.zeros_like(x_BNNC[:1]))
            if len(self._of_size) < self.SIZES:  # none is given up again, for a recorded graph may read it
                self._of_size[size] = embedding_1NNC
        return x_BNNC + embedding_1NNC
