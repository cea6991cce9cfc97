"""The dynamic convolution of Equation 1: cells' kernels on the unified mask feature."""

import math

from torch import Tensor
from torch.nn import functional as F


def mask_logits(kernels_PD: Tensor, features_Ehw: Tensor) -> Tensor:
    """Convolve one image's mask features with each of P kernels.

    Args:
        kernels_PD: D = lambda^2 E parameters each, laid out as (E, lambda, lambda); lambda is 1 or 3.
        features_Ehw: the unified mask feature.

    Returns:
        (P, h, w) mask logits.
    """
    channels, height, width = features_Ehw.shape
    size = math.isqrt(kernels_PD.shape[1] // channels)
    if size == 1:  # one matrix product
        return (kernels_PD @ features_Ehw.flatten(1)).unflatten(1, (height, width))
    return F.conv2d(features_Ehw[None], kernels_PD.view(-1, channels, size, size), padding=size // 2)[0]


def convolved_features(features_Ehw: Tensor, parameters: int) -> Tensor:
    """What kernels of D parameters multiply: `mask_logits` is kernels_PD times this, (D, h, w)."""
    channels, height, width = features_Ehw.shape
    size = math.isqrt(parameters // channels)
    if size == 1:
        return features_Ehw
    return F.unfold(features_Ehw[None], size, padding=size // 2)[0].unflatten(1, (height, width))
