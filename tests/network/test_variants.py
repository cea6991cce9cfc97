"""Every switch of the paper's tables, one at a time, on a small network."""

import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.errors import SOTRError
from sotr.learning import LossOptions, assign, sotr_losses
from sotr.network import SOTR
from sotr.network.attention import FullAttention, TwinAttention
from sotr.network.dynamic_convolution import mask_logits
from tests.scenes import make_targets

NANO = replace(
    SOTRConfig.preset("sotr-nano", num_classes=3),
    grids=(8, 6, 5, 4, 3),
    scale_ranges=((1, 16), (8, 32), (16, 64), (32, 96), (64, 2048)),
    position_waves=0,
)

VARIANTS = {
    "baseline": {},
    "original": {"transformer": "original"},
    "pure_twin": {"transformer": "pure_twin"},
    "no_transformer": {"transformer": "none", "mask_transformer_levels": ()},
    "depth_3": {"depth": 3},
    "mask_none": {"mask_transformer_levels": ()},
    "mask_p4_p5": {"mask_transformer_levels": (4, 5)},
    "static_kernels": {"dynamic_kernels": False},
    "static_without_transformer": {"dynamic_kernels": False, "transformer": "none", "mask_transformer_levels": ()},
    "kernel_3": {"kernel_size": 3},
    "position_waves": {"position_waves": 5},
    "deformable": {"deformable_stages": (3, 4, 5)},
    "convnext": {"backbone": "convnext_atto"},
    "mobilenetv3": {"backbone": "mobilenetv3_small_050"},
    "efficientnet_lite": {"backbone": "efficientnet_lite0"},
    "regnet": {"backbone": "regnetx_002"},
    "released": {"variant": "released", "backbone": "resnet26", "mlp_ratio": 4.0},
    "released_wrapped": {
        "variant": "released",
        "backbone": "resnet26",
        "mlp_ratio": 4.0,
        "width_duplication": "wrapped",
    },
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def config(request):
    return replace(NANO, **request.param)


def batch(config):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 96, generator=generator)
    masks = torch.zeros(3, 64, 96, dtype=torch.bool)
    masks[0, 5:25, 10:30] = True
    masks[1, 30:60, 40:90] = True
    masks[2, 20:30, 60:70] = True
    targets = [
        make_targets(masks, torch.tensor([0, 1, 2]), 4),
        make_targets(masks[:1], torch.tensor([2]), 4),
    ]
    return images, targets, assign(targets, config, (64, 96))


def test_shapes_and_round_trip(config, tmp_path):
    torch.manual_seed(0)
    network = build_network(config).eval()
    images = batch(config)[0]
    with torch.no_grad():
        predictions = network(images)
    assert predictions.class_logits_BKM.shape == (2, config.num_cells, 3)
    assert predictions.kernels_BKD.shape == (2, config.num_cells, config.kernel_parameters)
    assert predictions.mask_features_BEhw.shape == (2, config.feature_channels, 16, 24)

    assert SOTRConfig.from_dict(config.to_dict()) == config
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    again = build_network(SOTRConfig.from_dict(config.to_dict())).eval()
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        for first, second in zip(predictions, again(images), strict=True):
            assert torch.equal(first, second)


def test_a_gradient_step_lowers_the_loss_and_every_parameter_takes_part(config):
    torch.manual_seed(0)
    network = build_network(config).eval()  # fixed batch statistics, so that only the weights change the loss
    with torch.no_grad():  # branches that start at zero would hide the gradients of what lies behind them
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    images, targets, assignment = batch(config)

    def loss():
        return sum(sotr_losses(network(images), targets, assignment, LossOptions()).values())

    before = loss()
    before.backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    if config.variant == "paper" and config.transformer != "none":
        # Softmax is blind to what shifts all keys alike.
        idle = [name for name in idle if not name.endswith("to_qkv.bias")]
    assert idle == []
    norm = sum(p.grad.square().sum() for p in network.parameters()).sqrt()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 1e-3 / norm * parameter.grad
        after = loss()
    # First order: the loss falls by the step's length times the gradient's norm.
    torch.testing.assert_close(before - after, 1e-3 * norm, rtol=0.2, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (24, 24), (48, 48), (10, 30), (36, 7)])
def test_multiply_adds_of_attention_are_as_claimed(height, width):
    """Section 3.1: (H W)^2 for the original attention, H W^2 + W H^2 for twin attention; twice, for q k^T and a v."""
    channels = 16
    x = torch.zeros(1, height, width, channels, device="meta")

    def attention_only(module):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module.to("meta")(x)
        by_operation = counter.get_flop_counts()["Global"]
        # A fused operation, or batches of matrix products; projections are single ones.
        parts = (flops for operation, flops in by_operation.items() if re.search("attention|bmm", str(operation)))
        return sum(parts) // 2

    cells = height * width
    assert attention_only(FullAttention(channels, 2)) == 2 * channels * cells**2
    assert attention_only(TwinAttention(channels, 2)) == 2 * channels * cells * (height + width)


@pytest.mark.parametrize("size", [1, 3])
def test_dynamic_convolution_is_equation_1(size):
    """Z = F * K, written out tap by tap."""
    torch.manual_seed(0)
    features = torch.randn(4, 6, 7, dtype=torch.float64)
    kernels = torch.randn(5, 4 * size * size, dtype=torch.float64)
    found = mask_logits(kernels, features)
    padded = torch.nn.functional.pad(features, [size // 2] * 4)
    taps = kernels.view(5, 4, size, size)
    expected = torch.zeros(5, 6, 7, dtype=torch.float64)
    for row in range(6):
        for column in range(7):
            window = padded[:, row : row + size, column : column + size]
            expected[:, row, column] = (taps * window).sum((1, 2, 3))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer": "hybrid"}, "original, pure_twin, hybrid_twin, none"),
        ({"transformer": "none"}, "set mask_transformer_levels to"),
        ({"mask_transformer_levels": (4,)}, "choose"),
        ({"kernel_size": 5}, "choose 1 or 3"),
        ({"deformable_stages": (1,)}, "choose among 2, 3, 4 and 5"),
        ({"variant": "official"}, "paper, released"),
        ({"width_duplication": "half"}, "choose one of exact, wrapped, none"),
        ({"variant": "released", "transformer": "original"}, "use the paper variant"),
    ],
)
def test_contradictions_fail_at_construction(changes, message):
    with pytest.raises(SOTRError, match=message):
        replace(NANO, **changes)


def test_deformable_stages_need_a_resnet():
    with pytest.raises(SOTRError, match="no ResNet blocks"):
        SOTR(replace(NANO, backbone="mobilenetv3_small_050", deformable_stages=(3,)))


def test_new_deformable_convolution_weighs_each_sample_by_a_half():
    torch.manual_seed(0)
    plain = SOTR(NANO).eval()
    deformable = SOTR(replace(NANO, deformable_stages=(4,))).eval()
    deformable.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 128, 8, 8)
    block, other = plain.backbone.body.layer3[0].conv2, deformable.backbone.body.layer3[0].conv2
    x = torch.randn(1, block.in_channels, 8, 8)
    torch.testing.assert_close(other(x), block(x) / 2, rtol=1e-4, atol=1e-5)
