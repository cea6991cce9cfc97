import json

import pytest

from sotr.config import PRESETS, SOTRConfig
from sotr.errors import SOTRError


def test_paper_baseline_has_the_papers_numbers():
    config = SOTRConfig.preset("sotr-r50")
    assert config.grids == (40, 36, 24, 16, 12)
    assert config.num_cells == 3872
    assert (config.depth, config.width, config.kernel_parameters) == (12, 256, 256)


def test_real_time_preset_is_the_papers():
    config = SOTRConfig.preset("sotr-rt-r50")
    assert (config.depth, config.image_size) == (2, 736)


@pytest.mark.parametrize("name", PRESETS)
def test_dict_round_trip_through_json(name):
    config = SOTRConfig.preset(name, num_classes=7)
    assert SOTRConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_preset_lists_the_names():
    with pytest.raises(SOTRError, match="sotr-nano") as caught:
        SOTRConfig.preset("sotr-r5")
    assert "sotr-r101" in str(caught.value)


def test_unknown_setting_is_named():
    with pytest.raises(SOTRError, match="unknown setting widht"):
        SOTRConfig.from_dict({"widht": 64})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 100}, "not divisible by heads"),
        ({"mask_channels": 100}, "multiple of 32"),
        ({"mask_stage_channels": 48}, "multiple of 32"),
        ({"grids": [40, 36, 24]}, "each of P2..P6"),
        ({"scale_ranges": [[1, 96]]}, "each of P2..P6"),
        ({"scale_ranges": [[9, 1]] * 5}, "low must not exceed high"),
        ({"center_fraction": 0}, "center_fraction"),
        ({"depth": 0}, "depth is 0"),
        ({"depth": 2.5}, "depth is 2.5"),
        ({"width": "wide"}, "width is 'wide'"),
        ({"grids": 40}, "grids is 40"),
        ({"image_size": 2000}, "max_image_size"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio is inf"),
        ({"depth": float("inf")}, "depth is inf"),
        ({"num_classes": True}, "num_classes is True"),
        ({"mask_feature_stride": 2}, "mask_feature_stride is 2; choose 4 or 1"),
        ({"mask_stage_channels": 32, "image_size": 32, "max_image_size": 32}, "one channel per group"),
    ],
)
def test_contradictory_settings_fail_with_the_remedy(values, message):
    with pytest.raises(SOTRError, match=message):
        SOTRConfig.from_dict(values)
