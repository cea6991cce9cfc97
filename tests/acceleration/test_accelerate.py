"""Quick ways are taken only after they gave what plain PyTorch gives."""

import copy
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sotr.acceleration import accelerate as module
from sotr.acceleration.accelerate import accelerate, plain_steps
from sotr.acceleration.cpu import engine as engine_module
from sotr.acceleration.plain import evaluating, predict_plainly
from sotr.acceleration.proof import difference, proven, small_input
from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.decode_options import DecodeOptions
from sotr.model.predictor import ENGINE_AFTER
from sotr.model.segmenter import Segmenter
from sotr.network.transformer import HybridTwinLayer

CPU = torch.device("cpu")
TINY = replace(
    SOTRConfig.preset("sotr-nano", num_classes=3),
    backbone="test_resnet",
    depth=1,
    width=32,
    grids=(8, 6, 4, 3, 2),
    mask_stage_channels=32,
    mask_channels=32,
    position_waves=0,
    image_size=64,
    max_image_size=96,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOTR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def trained(config=TINY):
    """A network none of whose branches is zero."""
    torch.manual_seed(0)
    network = build_network(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize(
    "settings",
    [
        {"transformer": "hybrid_twin"},
        {"position_waves": 4},
        {"transformer": "pure_twin", "kernel_size": 3},
        {"transformer": "original", "mask_transformer_levels": (4, 5)},
        {"transformer": "none", "mask_transformer_levels": (), "dynamic_kernels": False},
        {"variant": "released", "backbone": "resnet26", "depth": 1, "width_duplication": "wrapped", "mlp_ratio": 4.0},
    ],
)
def test_the_engine_predicts_what_the_network_does(settings):
    pytest.importorskip("openvino")
    network = trained(replace(TINY, **settings))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no way gave way
        steps = accelerate(network, CPU, torch.float32)
    assert isinstance(steps.forward, engine_module.Engine)
    with torch.no_grad():
        for size in ((2, 3, 96, 160), (1, 3, 256, 64)):  # P5 of 8 x 2 has a grid's size along one axis
            images = torch.randn(size)
            for found, expected in zip(steps.forward(images), network(images), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


class ReLULayer(HybridTwinLayer):
    """A researcher's own layer: another activation, and the convolution beside attention."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.mlp[1] = nn.ReLU()

    def forward(self, x_BNNC):
        normed = self.attention_norm(x_BNNC)
        x_BNNC = x_BNNC + self.attention(normed) + self.convolution(normed)
        return x_BNNC + self.mlp(self.mlp_norm(x_BNNC))


def test_layers_of_ones_own_are_computed_as_they_are_written():
    pytest.importorskip("openvino")
    network = trained()
    own = ReLULayer(TINY.width, TINY.heads, TINY.mlp_ratio).eval()
    own.load_state_dict(network.transformer.layers[0].state_dict())
    changed = copy.deepcopy(network)
    changed.transformer.layers[0] = own
    plain = [partial(predict_plainly, each) for each in (network, changed)]
    assert difference(plain[1], plain[0], CPU) > 1e-2
    assert difference(accelerate(changed, CPU, torch.float32).forward, plain[1], CPU) < 1e-4


def test_the_cache_does_not_outlive_a_layer_whose_code_changed(cache):
    """The same weights, names and settings, but another forward: the kept graph fails the proof."""
    pytest.importorskip("openvino")
    network = trained()
    accelerate(network, CPU, torch.float32)
    [folder] = (cache / "engines").iterdir()
    network.transformer.layers[0].mlp.forward = lambda x: 0 * x
    with pytest.warns(RuntimeWarning, match="plain PyTorch instead of OpenVINO: its predictions differ"):
        steps = accelerate(network, CPU, torch.float32)
    images = small_input(CPU)
    assert torch.equal(steps.forward(images).kernels_BKD, predict_plainly(network, images).kernels_BKD)
    assert [each.name for each in (cache / "engines").iterdir()] == [folder.name]


def test_kept_graphs_are_few_and_reused(cache, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(engine_module, "KEPT", 1)
    network = trained()
    accelerate(network, CPU, torch.float32)
    [first] = (cache / "engines").iterdir()
    made = (first / "model.xml").stat().st_mtime_ns
    accelerate(network, CPU, torch.bfloat16)
    assert (first / "model.xml").stat().st_mtime_ns == made
    with torch.no_grad():
        network.class_head.bias += 1
    accelerate(network, CPU, torch.float32)
    [second] = (cache / "engines").iterdir()
    assert second != first


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(cache):
    pytest.importorskip("openvino")
    cache.write_text("a file where the folder would be")
    network = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = accelerate(network, CPU, torch.float32)
    assert isinstance(steps.forward, engine_module.Engine)


def wrong(images):
    predictions = predict_plainly(trained(), images)
    return predictions._replace(kernels_BKD=1.01 * predictions.kernels_BKD)


def failing(images):
    raise RuntimeError("no kernel image is available\nfor execution on the device")


def not_a_number(images):
    predictions = predict_plainly(trained(), images)
    return predictions._replace(mask_features_BEhw=predictions.mask_features_BEhw * float("nan"))


@pytest.mark.parametrize(
    ("quick", "reason"),
    [(wrong, "differ by 0.01"), (failing, "it failed: no kernel image is available$"), (not_a_number, "differ by inf")],
)
def test_a_wrong_or_failing_way_gives_way_with_one_line(quick, reason):
    plain = partial(predict_plainly, trained())
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        assert not proven(quick, plain, CPU, torch.float32, "a quick way")
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


@pytest.mark.parametrize("quick", [wrong, failing])
def test_a_model_goes_on_with_plain_pytorch_and_warns_once(monkeypatch, quick):
    """Whatever a device's quick way is: here the CPU's is replaced."""

    def engine(network, dtype, keep):
        plain = plain_steps(network, dtype).forward
        return quick if proven(quick, plain, CPU, dtype, "a quick way") else None

    monkeypatch.setattr(module, "engine", engine)
    segmenter = Segmenter(trained(), "abc", (1, 2, 3), DecodeOptions(cell_threshold=0.0))
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    expected = segmenter.predict(image, score=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = segmenter.predict([image] * (ENGINE_AFTER + 2), score=0.0)
    assert len([each for each in caught if each.category is RuntimeWarning]) == 1
    assert len(expected) > 0
    assert all(each.rles == expected.rles for each in found)


def test_proof_in_bfloat16_allows_its_rounding_only():
    network = trained()
    plain = partial(predict_plainly, network, dtype=torch.bfloat16)
    assert proven(partial(predict_plainly, network), plain, CPU, torch.bfloat16, "float32")
    with pytest.warns(RuntimeWarning, match="differ by"):
        assert not proven(
            lambda images: predict_plainly(network, 2 * images), plain, CPU, torch.bfloat16, "another image"
        )


def test_plain_prediction_is_in_eval_mode_whatever_surrounds_it():
    network = trained()
    images = small_input(CPU)
    expected = predict_plainly(network, images)
    network.train()
    network.backbone.eval()
    modes = [each.training for each in network.modules()]
    with torch.autocast("cpu", torch.bfloat16):
        found = predict_plainly(network, images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [each.training for each in network.modules()] == modes
    with pytest.raises(ZeroDivisionError), evaluating(network):
        raise ZeroDivisionError
    assert [each.training for each in network.modules()] == modes


def test_deformable_convolutions_stay_with_pytorch():
    network = build_network(replace(TINY, backbone="resnet26", deformable_stages=(4,)))
    assert not engine_module.can_run(network)
