"""The quick ways on a GPU, each beside the proof that it gives what the host does."""

import copy
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sotr.acceleration.cuda.compress import compress_on_gpu
from sotr.acceleration.cuda.packed_transformer import PackedTransformer
from sotr.acceleration.cuda.preprocess import preprocess_on_device
from sotr.acceleration.cuda.recorded import Recorded
from sotr.acceleration.plain import Forward, predict_plainly
from sotr.data.sizes import resized_size
from sotr.data.transforms import preprocess
from sotr.masks.compress import Compress, compress_on_host
from sotr.network import SOTR, DensePredictions
from sotr.network.transformer import Transformer

CALLS = 6
"""Calls of one size after which the network is replayed from a graph; a proof makes as many."""


def forward(network: SOTR, dtype: torch.dtype) -> Forward:
    """The network in CUDA graphs, its maps packed where its transformer is the paper's. Parameters are shared."""
    tensors = chain(network.parameters(), network.buffers())
    packed = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    if type(network.transformer) is Transformer:
        # Layers other than the paper's twin layers take one map at a time.
        with suppress(TypeError):
            packed.set_submodule("transformer", PackedTransformer(network.transformer))
    recorded = Recorded(partial(predict_plainly, packed, dtype=dtype))

    def run(images_B3HW: Tensor) -> DensePredictions:
        return DensePredictions(*recorded(images_B3HW))

    return run


def prove_preprocess(device: torch.device) -> "partial[Tensor]":
    """Preprocessing on the device, which gave the same bits as the host's for one image of noise.

    Raises:
        ArithmeticError: it did not.
    """
    on_device = partial(_preprocess, device=device)
    image_HW3 = np.random.default_rng(0).integers(0, 256, (53, 71, 3), np.uint8)
    if not torch.equal(on_device(image_HW3, 32, 64).cpu(), preprocess(image_HW3, 32, 64)):
        raise ArithmeticError("its pixels differ from the host's")
    return on_device


def _preprocess(image_HW3: NDArray[np.uint8], shortest: int, longest: int, device: torch.device) -> Tensor:
    size = resized_size(image_HW3.shape[0], image_HW3.shape[1], shortest, longest)
    pinned_HW3 = torch.from_numpy(image_HW3).pin_memory().to(device, non_blocking=True)
    return preprocess_on_device(pinned_HW3.permute(2, 0, 1), size)


def prove_compress(device: torch.device) -> Compress:
    """Compression on the device, which gave the same masks as the host's for some ragged ones.

    Raises:
        ArithmeticError: it did not.
    """
    maps_Ihw = torch.randint(-8, 9, (5, 6, 8), generator=torch.Generator().manual_seed(0)).float()
    sizes: Sequence[tuple[int, int]] = (24, 32), (22, 30), (41, 57)
    found = compress_on_gpu(maps_Ihw.to(device), 0.1, *sizes)
    expected = compress_on_host(maps_Ihw, 0.1, *sizes)
    if found.texts != expected.texts or (found.boxes_I4 != expected.boxes_I4).any():
        raise ArithmeticError("its masks differ from the host's")
    return compress_on_gpu
