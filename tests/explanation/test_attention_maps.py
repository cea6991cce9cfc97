"""Weights that are computed anew against what the attention modules make of their input."""

from dataclasses import replace

import pytest
import torch

from sotr.config import SOTRConfig
from sotr.explanation.attention_maps import attention_of_cell, recorded_inputs
from sotr.network import SOTR
from sotr.network.attention import FullAttention
from tests.training.conftest import CONFIG

SMALL = SOTRConfig.from_dict({**CONFIG, "heads": 1})


def network_that_averages(config: SOTRConfig) -> SOTR:
    """Its attention modules hand on a weighted mean of the very cells they see: value and output are the identity."""
    torch.manual_seed(0)
    network = SOTR(config).eval()
    for module in network.transformer.modules():
        if isinstance(module, FullAttention):
            with torch.no_grad():
                module.to_qkv.weight[: 2 * config.width] *= 8  # far from uniform
                module.to_qkv.weight[2 * config.width :] = torch.eye(config.width)
                module.to_out.weight.copy_(torch.eye(config.width))
                module.to_out.bias.zero_()
                if module.to_qkv.bias is not None:
                    module.to_qkv.bias.zero_()
    return network


@pytest.mark.parametrize("transformer", ["original", "pure_twin", "hybrid_twin"])
@pytest.mark.parametrize(("level", "row", "column"), [(0, 3, 10), (4, 1, 0)])
def test_weights_explain_the_output_of_the_attention(transformer: str, level: int, row: int, column: int) -> None:
    network = network_that_averages(replace(SMALL, transformer=transformer))
    layer = network.transformer.layers[0]
    calls = []
    layer.attention.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    with torch.no_grad(), recorded_inputs(network) as inputs:
        network(torch.randn(1, 3, 64, 96))
    weights = attention_of_cell(layer, inputs, level, row, column)
    grid = SMALL.grids[level]
    assert weights.shape == (grid, grid)
    assert weights.max() > 2 / grid**2
    given, made = calls[level]
    expected = torch.einsum("rc,rcw->w", weights, given[0])
    torch.testing.assert_close(expected, made[0, row, column], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width_duplication", ["exact", "none"])
def test_released_layers_look_along_their_row_and_column(width_duplication: str) -> None:
    config = replace(SMALL, variant="released", backbone="resnet26", mlp_ratio=4.0, width_duplication=width_duplication)
    network = network_that_averages(config)
    with torch.no_grad(), recorded_inputs(network) as inputs:
        network(torch.randn(1, 3, 64, 64))
    weights = attention_of_cell(network.transformer.layers[0], inputs, 1, 2, 5)
    seen = torch.zeros_like(weights)
    seen[2] = seen[:, 5] = 1
    assert torch.equal(weights > 0, seen > 0)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


def test_the_network_is_left_as_it_was() -> None:
    network = SOTR(SMALL).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = network(images)
        with recorded_inputs(network) as inputs:
            during = network(images)
        after = network(images)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(before, during, after, strict=True))
    assert {len(calls) for calls in inputs.values()} == {6}  # five levels, and P5 for the masks
