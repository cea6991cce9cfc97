"""Inference as PyTorch does it: the way that every quicker one is held equal to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sotr.network import SOTR, DensePredictions

Forward = Callable[[Tensor], DensePredictions]
"""Normalized images (B, 3, H, W) on the network's device -> raw predictions of every cell."""


def predict_plainly(network: SOTR, images_B3HW: Tensor, dtype: torch.dtype = torch.float32) -> DensePredictions:
    """The network's predictions in eval mode, whatever mode it is in and whatever surrounds the call.

    Args:
        network: with weights in float32; it is not changed.
        images_B3HW: on the network's device.
        dtype: of convolutions and matrix products; bfloat16 runs them under autocast.
    """
    kind = images_B3HW.device.type
    with evaluating(network), torch.autocast(kind, dtype, enabled=dtype != torch.float32):
        return network(images_B3HW.contiguous(memory_format=torch.channels_last))


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """In the block neither a surrounding autocast of a device nor another default device counts."""
    with torch.autocast(device.type, enabled=False), torch.device("cpu"):
        yield


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put all modules in eval mode, and back afterwards."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
