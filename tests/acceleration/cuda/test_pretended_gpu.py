"""What runs on CUDA, on tensors that are said to be there and hold nothing: on any machine this shows whether devices
and types go together, that no value is read and no size depends on one, and that what is recorded makes nothing on the
host. Gradients and copies to the host are not seen here; what the values are, `pytest -m gpu` tells on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sotr.acceleration.cuda import preprocess
from sotr.acceleration.cuda.packed_transformer import PackedTransformer
from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.learning.assignment import Assignment
from sotr.learning.losses import LossOptions, sotr_losses
from sotr.learning.targets import Targets
from sotr.masks import resize
from sotr.masks.resize import to_picture
from sotr.network import DensePredictions

CONFIG = SOTRConfig.preset("sotr-nano", 5)


@contextmanager
def gpu() -> Iterator[None]:
    """In the block new tensors hold nothing, and those on CUDA need none."""
    _forget()
    try:
        with FakeTensorMode():
            yield
    finally:
        _forget()


def _cached(module: ModuleType) -> list[Any]:
    return [each for each in vars(module).values() if hasattr(each, "cache_clear")]


def _forget() -> None:
    for cached in (*_cached(resize), *_cached(preprocess)):
        cached.cache_clear()


class NothingOnTheHost(TorchDispatchMode):
    """In the block no tensor may be made there, for a recording would not copy it again; numbers are part of it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert all(each.is_cuda or not each.ndim for each in tree_leaves(result) if isinstance(each, torch.Tensor)), (
            func
        )
        return result


def there(network: nn.Module) -> nn.Module:
    """The network, its weights on the pretended GPU."""
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, each in held.items():
                if each is not None:
                    empty = torch.empty(each.shape, dtype=each.dtype, device="cuda")
                    held[name] = nn.Parameter(empty) if isinstance(each, nn.Parameter) else empty
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_becomes_predictions_and_masks(dtype):
    network = build_network(CONFIG).eval()
    network.set_submodule("transformer", PackedTransformer(network.transformer))
    with gpu(), torch.no_grad():
        there(network)
        image_HW3 = torch.empty(90, 70, 3, dtype=torch.uint8, device="cuda")
        image_3hw = preprocess.preprocess_on_device(image_HW3.permute(2, 0, 1), (192, 149))
        inputs_B3HW = nn.functional.pad(image_3hw, (0, 11))[None].repeat(2, 1, 1, 1)
        with NothingOnTheHost(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            predictions = network(inputs_B3HW)
        assert {each.device.type for each in predictions} == {"cuda"}
        maps_IWH = to_picture(torch.empty(4, 48, 40, device="cuda"), (192, 160), (192, 149), (90, 70))
        assert (maps_IWH.shape[1:], maps_IWH.device.type) == ((70, 90), "cuda")


@pytest.mark.parametrize("options", [LossOptions(), LossOptions(points=12), LossOptions(mask_stride=2)])
def test_a_batch_gets_its_losses(options):
    network = build_network(CONFIG).train()
    with gpu():
        there(network)
        dense = network(torch.empty(2, 3, 128, 160, device="cuda"))
        predictions = DensePredictions(*(each.bfloat16() for each in dense))
        targets = [_targets(3, 128 // options.mask_stride, 160 // options.mask_stride) for _ in range(2)]
        labels_BK = torch.zeros(predictions.class_logits_BKM.shape[:2], dtype=torch.int64, device="cuda")
        cells_P = torch.zeros(12, dtype=torch.int64, device="cuda")
        losses = sotr_losses(predictions, targets, Assignment(labels_BK, cells_P, cells_P, (8, 4), 12), options)
        assert all(loss.is_cuda and loss.requires_grad for loss in losses.values())


def _targets(count: int, h: int, w: int) -> Targets:
    empty = torch.zeros(count, 4, device="cuda")
    masks_Ihw = torch.zeros(count, h, w, dtype=torch.uint8, device="cuda")
    return Targets(torch.zeros(count, dtype=torch.int64, device="cuda"), empty, empty[:, :2], masks_Ihw)


def test_to_wait_for_a_value_or_to_mix_devices_would_show():
    with gpu():
        on_gpu = torch.zeros(3, device="cuda")
        with pytest.raises(DataDependentOutputException):
            bool(on_gpu.sum() > 0)
        with pytest.raises(RuntimeError, match=r"two .*devices"):
            on_gpu + torch.zeros(3)
