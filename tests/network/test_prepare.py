import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from sotr.config import SOTRConfig
from sotr.network import SOTR
from sotr.network.onednn import OneDNNConv, OneDNNLinear, product
from sotr.network.prepare import prepare_for_inference

NANO = SOTRConfig.preset("sotr-nano", num_classes=3)


def lively(config, seed=0):
    """A network whose every part matters: batch norms that norm, convolution branches that are not zero."""
    torch.manual_seed(seed)
    network = SOTR(config).eval()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(
                torch.rand_like(tensor) + 0.5 if "var" in name or "weight" in name else torch.randn_like(tensor) / 5
            )
        elif tensor.is_floating_point() and not tensor.any():
            tensor.copy_(torch.randn_like(tensor) / 50)
    return network


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backbone": "resnet26", "depth": 1},  # bottlenecks, as in ResNet-50
        {"backbone": "resnet26", "depth": 1, "deformable_stages": (4,)},
        {"backbone": "mobilenetv3_small_050", "depth": 1},
        {"backbone": "convnext_atto", "depth": 1},
        {"transformer": "original", "kernel_size": 3},
        {"transformer": "pure_twin", "mask_transformer_levels": (4, 5)},
        {"transformer": "none", "mask_transformer_levels": (), "dynamic_kernels": False},
        {"variant": "released", "mlp_ratio": 4.0},
    ],
)
def test_predicts_the_same(changes):
    network = lively(replace(NANO, **changes))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    prepared = prepare_for_inference(network)
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        for found, expected in zip(prepared(images), network(images), strict=True):
            assert found.dtype == torch.float32
            assert relative(found, expected) < 1e-5
        again = prepared(images)
        assert all(torch.equal(*pair) for pair in zip(again, prepared(images), strict=True))
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_resnets_have_no_norm_activation_or_sum_left():
    prepared = prepare_for_inference(lively(replace(NANO, backbone="resnet26", depth=1)))
    body = prepared.backbone.body
    assert not any(isinstance(module, nn.BatchNorm2d | nn.ReLU | nn.Conv2d) for module in body.modules())
    assert {node.op for node in body.graph.nodes} == {"placeholder", "call_module", "output"}
    assert not any(isinstance(module, nn.Linear | nn.Conv2d | nn.GELU) for module in prepared.modules())
    # The shortcut of a stage's first block is free, and so are those within; a stage's result is read by the pyramid.
    in_place = [module.in_place for module in body.modules() if isinstance(module, OneDNNConv)]
    assert sum(in_place) == 8


def test_bfloat16_is_close():
    network = lively(NANO)
    prepared = prepare_for_inference(network, torch.bfloat16)
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        found, expected = prepared(images), network(images)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = network(images)
    for ours, reference, other in zip(found, expected, autocast, strict=True):
        error = (ours.float() - reference).square().mean().sqrt()
        assert error < 1.5 * (other.float() - reference).square().mean().sqrt()


@pytest.mark.parametrize("bias", [True, False])
def test_layers_equal_pytorch(bias):
    torch.manual_seed(0)
    linear, conv = nn.Linear(24, 40, bias=bias), nn.Conv2d(8, 16, 3, 2, 1, bias=bias)
    x, image = torch.randn(2, 7, 24), torch.randn(2, 8, 11, 13).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(OneDNNLinear(linear, torch.float32)(x), linear(x))
        gelu = OneDNNLinear(linear, torch.float32, gelu=True)(x)
        torch.testing.assert_close(gelu, nn.functional.gelu(linear(x)))
        expected = conv(image)
        other = torch.randn_like(expected)
        leaky = OneDNNConv(conv, torch.float32, "leaky_relu", 0.1)(image)
        torch.testing.assert_close(leaky, nn.functional.leaky_relu(expected, 0.1))
        summed = OneDNNConv(conv, torch.float32, "relu")(image, other)
        torch.testing.assert_close(summed, (expected + other).relu())
        over = OneDNNConv(conv, torch.float32, in_place=True)(image, other)
        assert over.data_ptr() == other.data_ptr()


def test_product_with_and_without_gradients():
    torch.manual_seed(0)
    x, y = torch.randn(5, 32, requires_grad=True), torch.randn(70, 32)
    with torch.no_grad():
        torch.testing.assert_close(product(x, y), x @ y.T)
        torch.testing.assert_close(product(x, y.T.contiguous().T), x @ y.T)
    product(x, y).sum().backward()
    torch.testing.assert_close(x.grad, y.sum(0).expand(5, -1))


def test_without_onednn_batch_norms_are_folded_and_the_type_is_taken(monkeypatch):
    network = lively(NANO)
    images = torch.randn(1, 3, 64, 96)
    monkeypatch.setattr(sys.modules["sotr.network.prepare"], "has_onednn", lambda device: False)
    prepared, half = prepare_for_inference(network), prepare_for_inference(network, torch.bfloat16)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    with torch.inference_mode():
        for found, low, expected in zip(prepared(images), half(images), network(images), strict=True):
            assert relative(found, expected) < 1e-5
            assert low.dtype == torch.bfloat16
