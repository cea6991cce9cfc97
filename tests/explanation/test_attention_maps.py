"""Weights that are computed anew against what the attention modules make of their input."""

from dataclasses import replace

import pytest
import torch

from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.explanation.attention_maps import attention_inputs, attention_of_cell
from sotr.network import SOTR
from sotr.network.attention import FullAttention
from tests.training.conftest import CONFIG

SMALL = SOTRConfig.from_dict({**CONFIG, "heads": 1})


def network_that_averages(config: SOTRConfig) -> SOTR:
    """Its attention modules hand on a weighted mean of the very cells they see: value and output are the identity."""
    torch.manual_seed(0)
    network = build_network(config).eval()
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
    network = network_that_averages(replace(SMALL, transformer=transformer, depth=2))
    inputs = attention_inputs(network, torch.randn(1, 3, 64, 96), level)
    grid = SMALL.grids[level]
    assert [x.shape for x in inputs] == [(1, grid, grid, SMALL.width)] * 2
    for layer, x in zip(network.transformer.layers, inputs, strict=True):
        weights = attention_of_cell(layer, x, row, column).total
        assert weights.shape == (grid, grid)
        assert weights.max() > 1.5 / grid**2
        with torch.no_grad():
            made = layer.attention(x)[0, row, column]
        torch.testing.assert_close(torch.einsum("rc,rcw->w", weights, x[0]), made, rtol=1e-4, atol=1e-5)


def test_inputs_are_those_of_the_network() -> None:
    """The first layer's attention gets the patches with their position, normalized."""
    torch.manual_seed(0)
    network = SOTR(SMALL).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = network(images)
        (found,) = attention_inputs(network, images, 1)
        p3 = network.fpn(network.backbone(images))[1]
        grid = SMALL.grids[1]
        patches = torch.nn.functional.interpolate(p3, size=(grid, grid), mode="bilinear")
        transformer = network.transformer
        expected = transformer.layers[0].attention_norm(transformer.position(patches.permute(0, 2, 3, 1)))
        after = network(images)
    torch.testing.assert_close(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("width_duplication", ["exact", "none"])
def test_released_layers_look_along_their_row_and_column(width_duplication: str) -> None:
    config = replace(SMALL, variant="released", backbone="resnet26", mlp_ratio=4.0, width_duplication=width_duplication)
    network = network_that_averages(config)
    (x,) = attention_inputs(network, torch.randn(1, 3, 64, 64), 1)
    weights = attention_of_cell(network.transformer.layers[0], x, 2, 5).total
    seen = torch.zeros_like(weights)
    seen[2] = seen[:, 5] = 1
    assert torch.equal(weights > 0, seen > 0)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("transformer", ["original", "hybrid_twin"])
def test_heads_apart_explain_what_each_head_makes(transformer: str) -> None:
    """Each head's weights times the values that the head sees are the module's output before it is mixed."""
    config = replace(SMALL, transformer=transformer, heads=4)
    network = network_that_averages(config)
    (x,) = attention_inputs(network, torch.randn(1, 3, 64, 96), 1)
    found = attention_of_cell(network.transformer.layers[0], x, 3, 2)
    heads_x = x[0].unflatten(-1, (4, -1))  # (rows, columns, heads, C / heads); values are the identity
    with torch.no_grad():
        made = network.transformer.layers[0].attention(x)[0, 3, 2].unflatten(-1, (4, -1))
    if found.full is not None:
        assert found.row is None
        seen = torch.einsum("hrc,rchw->hw", found.full, heads_x)
    else:
        assert found.row is not None
        assert found.column is not None
        gathered = torch.einsum("hcr,rchw->chw", found.column, heads_x)
        seen = torch.einsum("hc,chw->hw", found.row, gathered)
    torch.testing.assert_close(seen, made, rtol=1e-4, atol=1e-5)
    assert float((found.full if found.full is not None else found.row).std(0).max()) > 0.01  # the heads differ
