import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from sotr.config import SOTRConfig
from sotr.network import SOTR
from sotr.network.attention import short_attention
from sotr.network.fast_conv import fast_conv
from sotr.network.in_step import TransformerInStep
from sotr.network.large_maps import LARGE, GroupNormInPlace
from sotr.network.onednn import OneDNNConv, OneDNNLinear, OneDNNPointwiseConv, product
from sotr.network.prepare import prepare_for_inference
from sotr.network.winograd import MKL, ONEDNN, WinogradConv

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


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("backbone", ["resnet26", "resnetv2_50d_gn"])
def test_predicts_the_same_where_every_map_is_large(monkeypatch, backbone, traced):
    """Backbones' own group norms may have an activation in them, and a reader beside them."""
    monkeypatch.setattr("sotr.network.large_maps.LARGE", 0)
    if not traced:
        monkeypatch.setattr(sys.modules["sotr.network.prepare"], "_traced", lambda body: None)
    network = lively(replace(NANO, backbone=backbone, depth=1))
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        for found, expected in zip(prepare_for_inference(network)(images), network(images), strict=True):
            assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"transformer": "pure_twin", "mask_transformer_levels": ()},
        {"variant": "released", "mlp_ratio": 4.0},
    ],
)
@pytest.mark.parametrize("library", [MKL, ONEDNN], ids=["mkl", "onednn"])
def test_predicts_the_same_with_every_3x3_convolution_as_winograd_has_it(monkeypatch, changes, batch, library):
    library = replace(library, channels_from=0, tiles_per_thread=0)
    monkeypatch.setattr("sotr.network.fast_conv.quickest_library", lambda: library)
    network = lively(replace(NANO, **changes))
    prepared = prepare_for_inference(network)
    convs = [module for module in prepared.modules() if isinstance(module, WinogradConv)]
    assert len(convs) > 8
    assert isinstance(prepared.transformer, TransformerInStep) == (not changes)
    images = torch.randn(batch, 3, 64, 96)
    with torch.inference_mode():
        for found, expected in zip(prepared(images), network(images), strict=True):
            assert relative(found, expected) < 1e-5


def test_resnets_have_no_norm_activation_or_sum_left():
    prepared = prepare_for_inference(lively(replace(NANO, backbone="resnet26", depth=1)))
    body = prepared.backbone.body
    assert not any(isinstance(module, nn.BatchNorm2d | nn.ReLU | nn.Conv2d) for module in body.modules())
    assert {node.op for node in body.graph.nodes} == {"placeholder", "call_module", "output"}
    assert not any(isinstance(module, nn.Linear | nn.Conv2d | nn.GELU) for module in prepared.modules())
    # The shortcut of a stage's first block is free, and so are those within; a stage's result is read by the pyramid.
    # In the last stage products with many weights do better than convolutions that add.
    assert [name for name, module in body.named_modules() if getattr(module, "in_place", False)] == [
        *(f"layer{stage}.{block}.conv3" for stage in (1, 2, 3) for block in (0, 1))
    ]
    assert isinstance(body.get_submodule("layer4.1.conv3"), OneDNNPointwiseConv)


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
def test_linear_layers_equal_pytorch(bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 40, bias=bias), torch.randn(2, 7, 24)
    with torch.inference_mode():
        torch.testing.assert_close(OneDNNLinear(linear, torch.float32)(x), linear(x))
        gelu = OneDNNLinear(linear, torch.float32, gelu=True)(x)
        torch.testing.assert_close(gelu, nn.functional.gelu(linear(x)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "adds", "kind"),
    [
        ((8, 16, 3, 2, 1), True, OneDNNConv),
        ((8, 16, 1, 1, 0), True, OneDNNConv),
        ((8, 16, 1, 1, 0), False, OneDNNPointwiseConv),
        ((8, 16, 1, 2, 0), False, OneDNNPointwiseConv),
        ((8, 16, 1, 1, 1), False, OneDNNConv),
        ((1024, 1024, 1, 1, 0), True, OneDNNPointwiseConv),
        ((256, 256, 3, 1, 1), False, WinogradConv),
        ((256, 256, 3, 1, 1), True, OneDNNConv),
        ((256, 256, 3, 1, 0), False, OneDNNConv),
        ((256, 256, 3, 2, 1), False, OneDNNConv),
        ((64, 64, 3, 1, 1), False, OneDNNConv),
    ],
)
def test_convolutions_equal_pytorch(shape, adds, kind, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(*shape, bias=bias)
    image = torch.randn(2, shape[0], 11, 13).to(memory_format=torch.channels_last)
    close = {"rtol": 1e-4, "atol": 1e-4} if shape[0] > 8 else {}
    with torch.inference_mode():
        expected = conv(image)
        leaky = fast_conv(conv, torch.float32, "leaky_relu", 0.1, adds=adds)
        assert type(leaky) is kind
        torch.testing.assert_close(leaky(image), nn.functional.leaky_relu(expected, 0.1), **close)
        relu = fast_conv(conv, torch.float32, "relu", adds=adds)
        torch.testing.assert_close(relu(image.contiguous()), expected.relu(), **close)
        for activation, after in (("none", lambda x: x), ("relu", torch.relu)) if kind is not WinogradConv else ():
            other = torch.randn_like(expected)
            summed = after(expected + other)
            over = fast_conv(conv, torch.float32, activation, adds=adds, in_place=True)
            torch.testing.assert_close(
                fast_conv(conv, torch.float32, activation, adds=adds)(image, other), summed, **close
            )
            found = over(image, other)
            torch.testing.assert_close(found, summed, **close)
            assert (found.data_ptr() == other.data_ptr()) == (kind is OneDNNConv)


@pytest.mark.parametrize("length", [1, 7, 40, 41])
def test_short_attention_equals_the_fused_one(length):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 5, 2, length, 8)
    expected = nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(short_attention(query, key, value), expected)


@pytest.mark.parametrize("height", [3, 1030])
def test_norms_of_large_maps_equal_pytorch_in_their_memory(height):
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 64).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    x = torch.linspace(-5, 9, height)[:, None] + torch.rand(2, 64, height, 70)
    x = x.to(memory_format=torch.channels_last)
    expected = norm(x)
    found = GroupNormInPlace(norm)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found.data_ptr() == x.data_ptr()) == (x.numel() * 4 >= LARGE)


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


@torch.inference_mode()
def test_bfloat16_goes_through_deformable_convolutions():
    network = lively(replace(NANO, backbone="resnet26", depth=1, deformable_stages=(4,)))
    images = torch.randn(1, 3, 64, 96)
    for found, expected in zip(prepare_for_inference(network, torch.bfloat16)(images), network(images), strict=True):
        assert relative(found.float(), expected) < 0.1


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("transformer", ["hybrid_twin", "pure_twin", "original"])
def test_a_gpu_predicts_the_same(dtype, tolerance, transformer):
    network = lively(replace(NANO, transformer=transformer))
    images = torch.randn(2, 3, 96, 160)
    expected = network(images)
    on_gpu = network.cuda()
    for one in (on_gpu, prepare_for_inference(on_gpu, dtype)):
        for found, same in zip(one(images.cuda()), expected, strict=True):
            assert relative(found.float().cpu(), same) < tolerance
