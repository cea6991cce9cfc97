"""Parameters and multiply-accumulates, against formulas written down by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.errors import SOTRError
from sotr.info import count_components, info

SMALL = SOTRConfig(
    num_classes=3,
    backbone="resnet10t",
    width=64,
    depth=2,
    heads=4,
    mlp_ratio=2.0,
    grids=(12, 10, 8, 6, 4),
    mask_stage_channels=32,
    mask_channels=64,
    image_size=96,
    max_image_size=160,
)


def test_macs_of_transformer_and_heads_follow_the_formulas() -> None:
    height, width = 96, 160
    counted = count_components(SMALL, height, width)
    C, hidden, K = SMALL.width, int(SMALL.width * SMALL.mlp_ratio), SMALL.num_cells
    macs = 0
    for rows, columns in [(n, n) for n in SMALL.grids] + [(height // 32, width // 32)]:
        cells = rows * columns
        projections = 2 * 4 * C * C * cells
        attention = 2 * C * cells * rows + 2 * C * cells * columns
        convolutions = 2 * 9 * C * C * cells
        mlp = 2 * C * hidden * cells
        macs += SMALL.depth * (projections + attention + convolutions + mlp)
    assert counted["transformer"].macs == macs
    assert counted["class_head"].macs == K * C * SMALL.num_classes
    assert counted["kernel_head"].macs == K * C * SMALL.mask_channels
    assert counted["class_head"].parameters == (C + 1) * SMALL.num_classes


@pytest.mark.parametrize("dynamic_kernels", [True, False])
def test_components_sum_up_to_the_network(dynamic_kernels: bool) -> None:
    config = replace(SMALL, dynamic_kernels=dynamic_kernels)
    counted = count_components(config, 96, 96)
    total = counted.pop("total")
    assert list(counted) == ["backbone", "fpn", "transformer", "class_head", "kernel_head", "mask_features"]
    assert total.macs == sum(component.macs for component in counted.values())
    assert total.parameters == sum(component.parameters for component in counted.values())
    assert total.parameters == sum(parameter.numel() for parameter in build_network(config).parameters())


def test_counting_uses_no_memory_and_no_random_numbers() -> None:
    state = torch.get_rng_state()
    count_components(SOTRConfig.preset("sotr-nano"), 384, 384)
    assert torch.equal(torch.get_rng_state(), state)


def test_info_of_an_architecture_as_json_and_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    report = info("sotr-nano", height=64, width=96, json=True)
    assert json.loads(capsys.readouterr().out) == report
    assert (report["height"], report["width"], report["class_names"]) == (64, 96, None)
    assert report["architecture"]["backbone"] == SOTRConfig.preset("sotr-nano").backbone
    info("sotr-nano", height=64, width=96)
    text = capsys.readouterr().out
    assert f"{report['components']['total']['parameters']:,}" in text
    assert "transformer" in text
    assert "1 MAC is one multiplication with its addition" in text


def test_default_input_is_a_typical_picture_after_preprocessing() -> None:
    report = info("sotr-rt-r50", json=True)
    # 480 x 640, shortest edge to 736: 736 x 981, padded to multiples of 32.
    assert (report["height"], report["width"]) == (736, 992)


@pytest.mark.parametrize(("height", "width"), [(100, 96), (96, 0), (-32, 96)])
def test_sizes_that_do_not_fit(height: int, width: int) -> None:
    with pytest.raises(SOTRError, match="multiples of 32"):
        info("sotr-nano", height=height, width=width)


def test_info_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("backbone: resnet10t\nwidth: 64\nheads: 4\ndepth: 1\nnum_classes: 3\n")
    report = info(str(file), height=64, width=64)
    assert (report["architecture"]["width"], report["architecture"]["num_classes"]) == (64, 3)
    assert "without weights; counted with 3 classes" in capsys.readouterr().out
    file.write_text("widht: 64\n")
    with pytest.raises(SOTRError, match=r"mine\.yaml: .*widht"):
        info(str(file))
    with pytest.raises(SOTRError, match=r"none\.yaml cannot be read"):
        info(str(tmp_path / "none.yaml"))


def test_an_unknown_name_lists_the_architectures() -> None:
    with pytest.raises(SOTRError, match="name an architecture: sotr-r50, sotr-r101, sotr-r101-dcn, sotr-rt-r50"):
        info("sotr-r52")
