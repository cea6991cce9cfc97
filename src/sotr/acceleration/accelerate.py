"""`accelerate`: the quickest way to the same predictions on a device, taken only after it proved itself."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sotr.acceleration.cpu.engine import NAME, can_run, engine
from sotr.acceleration.plain import Forward, predict_plainly
from sotr.acceleration.proof import give_way, proven
from sotr.data.transforms import preprocess
from sotr.errors import first_line
from sotr.masks.compress import Compress, compress_on_host
from sotr.network import SOTR, DensePredictions

Preprocess = Callable[[NDArray[np.uint8], int, int], Tensor]
"""Image (H, W, 3), shortest edge, longest edge -> the network's input (3, h, w), as `sotr.data.preprocess` makes it."""


@dataclass(frozen=True)
class Steps:
    """The steps of a prediction that a device may do in its own way. Each is a function equal to the plain one."""

    forward: Forward
    name: str = "plain PyTorch"
    """What the forward pass runs on."""
    preprocess: Preprocess = preprocess
    compress: Compress = compress_on_host


GRAPHS = "CUDA graphs"
"""The quick way of the network on a GPU."""


def plain_steps(network: SOTR, dtype: torch.dtype) -> Steps:
    """All steps in PyTorch and NumPy, on any device. They follow changes of the network."""
    return Steps(partial(predict_plainly, network, dtype=dtype))


def accelerate(network: SOTR, device: torch.device, dtype: torch.dtype, *, keep: bool = True) -> Steps:
    """The quickest steps that give the same on this device in this process; plain ones where nothing else does.

    Each quick way runs beside the plain one on one small input first. If the two differ by more than rounding, or the
    quick way fails, the plain one goes on and one line of warning says why. Quick ways do not follow later changes of
    the network's weights.

    Args:
        network: on `device`, in float32; it is not changed.
        device: where it predicts.
        dtype: of convolutions and matrix products, float32 or bfloat16.
        keep: what took time to make, in the user's cache folder.
    """
    steps = plain_steps(network, dtype)
    if device.type == "cpu" and can_run(network):
        quick = engine(network, dtype, keep)
        return steps if quick is None else replace(steps, forward=quick, name=NAME)
    if device.type == "cuda":
        return _on_cuda(network, device, dtype, steps)
    return steps


def _on_cuda(network: SOTR, device: torch.device, dtype: torch.dtype, plain: Steps) -> Steps:
    from sotr.acceleration.cuda import quick

    steps = plain
    forward = quick.forward(network, dtype)

    def replayed(images_B3HW: Tensor) -> DensePredictions:
        return [forward(images_B3HW) for _ in range(quick.CALLS)][-1]

    if proven(replayed, plain.forward, device, dtype, GRAPHS):
        steps = replace(steps, forward=forward, name=GRAPHS)
    try:
        steps = replace(steps, preprocess=quick.prove_preprocess(device), compress=quick.prove_compress(device))
    except Exception as error:  # whatever a quick way does wrong, the plain one is still there
        give_way("preprocessing and compression on the GPU", first_line(error))
    return steps
