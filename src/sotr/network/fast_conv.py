"""Which way of computing a convolution is the quickest on CPUs."""

import torch
from torch import nn

from sotr.network.onednn import OneDNNConv, OneDNNPointwiseConv
from sotr.network.winograd import WinogradConv, quickest_library

ADDING_CONV_UP_TO = {torch.float32: 1 << 20, torch.bfloat16: 1 << 18}
"""Weights below which a 1x1 convolution that adds in the same pass is quicker than a matrix product and a sum: oneDNN
falls to a fifth of its speed (float32) or less (bfloat16) in many 1x1 convolutions with more."""


def fast_conv(
    conv: nn.Conv2d,
    dtype: torch.dtype,
    activation: str = "none",
    slope: float | None = None,
    adds: bool = False,
    in_place: bool = False,
    over_input: bool = False,
) -> OneDNNConv | OneDNNPointwiseConv | WinogradConv:
    """A convolution for inference, its weight laid out once and for all, with what follows it.

    Args:
        conv: the convolution, padded with zeros.
        dtype: of the weight, the sums and the result; inputs are cast to it.
        activation: "none", "relu" or "leaky_relu".
        slope: of the Leaky ReLU.
        adds: a tensor will be added to each result, before the activation.
        in_place: the result may be written over that tensor, which nobody reads again.
        over_input: the result may be written over the input, which nobody reads again.
    """
    plain = conv.groups == 1 and conv.dilation == (1, 1)
    pointwise = plain and conv.kernel_size == (1, 1) and conv.padding == (0, 0)
    if pointwise and not (adds and conv.weight.numel() < ADDING_CONV_UP_TO.get(dtype, 0)):
        return OneDNNPointwiseConv(conv, dtype, activation, slope)
    tiled = plain and conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
    library = quickest_library()
    many = conv.in_channels * conv.out_channels >= library.channels_from
    if tiled and many and not adds and dtype == torch.float32:
        return WinogradConv(conv, activation, slope, library, over_input)
    return OneDNNConv(conv, dtype, activation, slope, in_place)
