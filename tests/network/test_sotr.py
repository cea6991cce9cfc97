import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from sotr.building import build_network
from sotr.config import PRESETS, SOTRConfig
from sotr.errors import SOTRError
from sotr.network import SOTR
from sotr.network.dynamic_convolution import mask_logits
from sotr.network.mask_features import MaskFeatures

NANO = replace(SOTRConfig.preset("sotr-nano", num_classes=3), position_waves=0)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SOTR(NANO).eval()


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (2, 96, 64), (1, 64, 160)])
def test_shapes(network, batch, height, width):
    with torch.no_grad():
        predictions = network(torch.randn(batch, 3, height, width))
    assert predictions.class_logits_BKM.shape == (batch, NANO.num_cells, 3)
    assert predictions.kernels_BKD.shape == (batch, NANO.num_cells, NANO.kernel_parameters)
    assert predictions.mask_features_BEhw.shape == (batch, NANO.feature_channels, height // 4, width // 4)
    assert all(torch.isfinite(tensor).all() for tensor in predictions)


def test_size_that_is_no_multiple_of_32_is_refused(network):
    with pytest.raises(ValueError, match="multiples of 32"):
        network(torch.zeros(1, 3, 64, 70))


def test_eval_is_deterministic_and_independent_of_the_batch(network):
    torch.manual_seed(1)
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        together, again = network(images), network(images)
        alone = network(images[1:2])
    for whole, repeated, single in zip(together, again, alone, strict=True):
        assert torch.equal(whole, repeated)
        torch.testing.assert_close(whole[1:2], single, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    network = SOTR(NANO)
    predictions = network(torch.randn(2, 3, 64, 64))
    sum(tensor.square().mean() for tensor in predictions).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_levels_are_contiguous_and_row_major(network):
    """A cell's logits must come from its own level and place: computed here level by level, from the parts."""
    torch.manual_seed(2)
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        logits = network(image).class_logits_BKM[0]
        start = 0
        for feature, grid in zip(network.fpn(network.backbone(image)), NANO.grids, strict=True):
            patches = F.interpolate(feature, size=(grid, grid), mode="bilinear", align_corners=False)
            map_CNN = network.transformer([patches])[0][0]
            for row, column in [(0, 0), (0, grid - 1), (grid - 1, 1), (grid // 2, grid // 3)]:
                expected = network.class_head(map_CNN[:, row, column])
                torch.testing.assert_close(logits[start + row * grid + column], expected, rtol=1e-4, atol=1e-5)
            start += grid * grid
    assert start == NANO.num_cells


def test_fpn_levels(network):
    with torch.no_grad():
        features = network.fpn(network.backbone(torch.randn(1, 3, 128, 64)))
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (NANO.width, 128 // stride, 64 // stride) for stride in (4, 8, 16, 32, 64)
    ]
    assert torch.equal(features[4], features[3][:, :, ::2, ::2])


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "regnetx_002", "convnext_atto"])
def test_other_timm_backbones(backbone):
    network = SOTR(replace(NANO, backbone=backbone)).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 64, 64)).mask_features_BEhw.shape[-2:] == (16, 16)


@pytest.mark.parametrize(
    ("backbone", "message"), [("resnet5000", "resnet5000"), ("vit_tiny_patch16_224", "for images of any size")]
)
def test_unfit_backbone_is_named(backbone, message):
    with pytest.raises(SOTRError, match=message):
        SOTR(replace(NANO, backbone=backbone))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name):
    with torch.device("meta"):
        network = build_network(SOTRConfig.preset(name))
    assert sum(parameter.numel() for parameter in network.parameters()) > 1e6


def test_dynamic_convolution_commutes_with_bilinear_upsampling():
    """Why features may stay at H / 4: masks upsampled afterwards equal masks from upsampled features (Eq. 1)."""
    torch.manual_seed(0)
    features = torch.randn(1, 16, 10, 14, dtype=torch.float64)
    kernels = torch.randn(5, 16, 1, 1, dtype=torch.float64)

    def upsample(maps):
        return F.interpolate(maps, scale_factor=4, mode="bilinear", align_corners=False)

    torch.testing.assert_close(
        upsample(F.conv2d(features, kernels)), F.conv2d(upsample(features), kernels), rtol=1e-12, atol=1e-12
    )


def test_mask_features_use_every_level():
    torch.manual_seed(0)
    module = MaskFeatures(width=8, stage_channels=32, mask_channels=32)
    levels = [torch.randn(1, 8, 32 // 2**i, 64 // 2**i) for i in range(4)]
    base = module(levels)
    assert base.shape == (1, 32, 32, 64)
    assert (base >= 0).all()
    for i in range(4):
        changed = copy.copy(levels)
        changed[i] = changed[i] + torch.randn_like(changed[i])
        assert not torch.allclose(module(changed), base)


def test_network_exports_as_it_stands(network):
    """No Python branch depends on values: the traced graph gives the same results on other images."""
    exported = torch.export.export(network, (torch.randn(1, 3, 64, 96),))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(network(image), exported.module()(image), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_the_papers_order_convolves_features_of_full_size(kernel_size):
    """With mask_feature_stride 1 the same weights give masks of H x W, as Equation 1 has them."""
    config = replace(NANO, kernel_size=kernel_size)
    torch.manual_seed(0)
    quarter = SOTR(config).eval()
    full = SOTR(replace(config, mask_feature_stride=1)).eval()
    full.load_state_dict(quarter.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        (_, kernels_BKD, small_BEhw), (_, _, features_BEHW) = quarter(image), full(image)
    upsampled = F.interpolate(small_BEhw, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(features_BEHW, upsampled)

    kernels_PD = kernels_BKD[0, 40:44]
    weights = kernels_PD.view(4, -1, kernel_size, kernel_size)
    exact = F.conv2d(upsampled, weights, padding=kernel_size // 2)[0]
    torch.testing.assert_close(mask_logits(kernels_PD, features_BEHW[0]), exact, rtol=1e-4, atol=1e-5)
    late = F.interpolate(mask_logits(kernels_PD, small_BEhw[0])[None], scale_factor=4, mode="bilinear")[0]
    distance = float((late - exact).norm() / exact.norm())
    assert distance < 1e-5 if kernel_size == 1 else distance > 0.1
