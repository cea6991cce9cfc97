import math
from dataclasses import replace

import pytest
import torch

from sotr.building import build_network
from sotr.config import SOTRConfig, SOTRError
from sotr.network import SOTR, DensePredictions
from sotr.positioned import SHORTEST, START_LOGIT, START_RADIUS

CONFIG = replace(
    SOTRConfig.preset("sotr-nano", 2), grids=(32, 24, 16, 12, 8), image_size=128, max_image_size=256, position_waves=6
)


def predicted(network: SOTR, height: int, width: int) -> tuple[DensePredictions, torch.Tensor]:
    """What the network says of noise, and each cell's mask logits (K, h, w)."""
    with torch.no_grad():
        predictions = network.eval()(torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0)))
    features_Ehw = predictions.mask_features_BEhw[0]
    return predictions, torch.einsum("kd,dhw->khw", predictions.kernels_BKD[0], features_Ehw)


def cells() -> list[tuple[int, int, int, int]]:
    """Level, its grid, row and column of each cell, in order."""
    return [(level, n, row, column) for level, n in enumerate(CONFIG.grids) for row in range(n) for column in range(n)]


@pytest.mark.parametrize(("height", "width", "stride"), [(256, 256, 4), (192, 320, 4), (128, 128, 1)])
def test_every_mask_starts_as_a_disc_around_its_cell(height: int, width: int, stride: int) -> None:
    torch.manual_seed(0)
    network = build_network(replace(CONFIG, mask_feature_stride=stride))
    torch.nn.init.zeros_(network.kernel_head.weight)
    _, logits_Khw = predicted(network, height, width)
    h, w = logits_Khw.shape[1:]
    y, x = torch.meshgrid(stride * (torch.arange(h) + 0.5), stride * (torch.arange(w) + 0.5), indexing="ij")
    for logits_hw, (_, grid, row, column) in list(zip(logits_Khw, cells(), strict=True))[::7]:
        pixels = torch.hypot(x - (column + 0.5) / grid * width, y - (row + 0.5) / grid * height)
        distance = pixels / (CONFIG.image_size / grid)  # in cells of a square image of the configuration's size
        assert (logits_hw[distance < 0.8 * START_RADIUS] > 0).all()
        assert (logits_hw[distance > 1.6 * START_RADIUS] < 0).all()
        assert logits_hw.max() <= START_LOGIT + 1e-4


def test_a_mask_is_the_sum_of_waves_around_its_cell() -> None:
    torch.manual_seed(0)
    network = build_network(CONFIG)
    for parameter in (*network.kernel_head.parameters(), network.heights_LF):
        torch.nn.init.normal_(parameter, std=0.3)
    said = []
    network.kernel_head.register_forward_pre_hook(lambda _, inputs: said.append(inputs[0]))
    predictions, logits_Khw = predicted(network, 128, 160)
    linear = torch.nn.functional.linear(said[0], network.kernel_head.weight, network.kernel_head.bias)[0].double()
    features = predictions.mask_features_BEhw[0].double()
    h, w = logits_Khw.shape[1:]
    y, x = 4 * (torch.arange(h).double() + 0.5), 4 * (torch.arange(w).double() + 0.5)
    for index, (level, grid, row, column) in list(enumerate(cells()))[::97]:
        e, waves = CONFIG.mask_channels, CONFIG.position_waves
        starts = network.heights_LF[level].double()
        p, q, r, s = linear[index, e : e + 4 * waves].split(waves)
        f = torch.tensor([math.pi / (SHORTEST * 2**k) for k in range(waves)]).double()[:, None]
        dx, dy = x - (column + 0.5) / grid * 160, y - (row + 0.5) / grid * 128
        of_x = ((p + starts)[:, None] * (f * dx).cos() + q[:, None] * (f * dx).sin()).sum(0)
        of_y = ((r + starts)[:, None] * (f * dy).cos() + s[:, None] * (f * dy).sin()).sum(0)
        expected = torch.einsum("e,ehw->hw", linear[index, :e], features[:e]) + of_x + of_y[:, None]
        expected = expected + linear[index, -1] + START_LOGIT - 2 * starts.sum()
        torch.testing.assert_close(logits_Khw[index].double(), expected, atol=1e-3, rtol=1e-3)


def test_without_waves_the_network_is_the_papers() -> None:
    torch.manual_seed(0)
    plain = SOTR(replace(CONFIG, position_waves=0))
    assert not [name for name in plain.state_dict() if "heights" in name or "positions" in name]
    assert plain.kernel_head.out_features == CONFIG.mask_channels == predicted(plain, 128, 128)[0].kernels_BKD.shape[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"position_waves": -1},
        {"position_waves": 11},
        {"kernel_size": 3},
        {"dynamic_kernels": False},
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(SOTRError, match="position_waves"):
        replace(CONFIG, **changes)


def test_the_papers_class_does_not_take_waves() -> None:
    with pytest.raises(SOTRError, match=r"position_waves 6; sotr\.build_network"):
        SOTR(CONFIG)
