"""Packed maps against one map at a time, in exact arithmetic; `pytest -m gpu` does the same on a GPU."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sotr.acceleration.cuda import quick
from sotr.acceleration.cuda.packed_transformer import PackedTransformer
from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.network.attention import RowAttention
from sotr.network.transformer import HybridTwinLayer, Transformer

CONFIG = replace(SOTRConfig.preset("sotr-nano"), width=32, heads=4, depth=3)
SHAPES = [(6, 6), (5, 5), (1, 1), (3, 7), (6, 6)]


def transformer_of(kind):
    torch.manual_seed(0)
    transformer = Transformer(replace(CONFIG, transformer=kind))
    for parameter in transformer.parameters():  # the convolution branches start at zero
        nn.init.normal_(parameter, std=0.2)
    return transformer


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["pure_twin", "hybrid_twin"])
def test_packed_maps_equal_one_map_at_a_time(kind, batch):
    transformer = transformer_of(kind).double()
    maps = [torch.randn(batch, CONFIG.width, *shape, dtype=torch.float64) for shape in SHAPES]
    for found, expected in zip(PackedTransformer(transformer)(maps), transformer(maps), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


class Changed(HybridTwinLayer):
    """A layer that may compute anything."""


class OwnAttention(RowAttention):
    """Attention that may compute anything."""


@torch.no_grad()
def test_an_activation_of_ones_own_is_kept():
    transformer = transformer_of("hybrid_twin").double()
    for layer in transformer.layers:
        layer.mlp[1] = nn.ReLU()
    maps = [torch.randn(1, CONFIG.width, 4, 5, dtype=torch.float64)] * 2
    for found, expected in zip(PackedTransformer(transformer)(maps), transformer(maps), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_only_the_papers_own_layers_are_packed():
    changed = transformer_of("hybrid_twin")
    changed.layers[1] = Changed(CONFIG.width, CONFIG.heads, CONFIG.mlp_ratio)
    attention = transformer_of("hybrid_twin")
    attention.layers[0].attention.row = OwnAttention(CONFIG.width, CONFIG.heads)
    original = transformer_of("original")
    for transformer, name in ((changed, "Changed"), (attention, "HybridTwinLayer"), (original, "OriginalLayer")):
        with pytest.raises(TypeError, match=name):
            PackedTransformer(transformer)


@pytest.mark.parametrize("kind", ["original", "pure_twin"])
def test_a_network_whose_layers_do_not_pack_takes_one_map_at_a_time(kind):
    network = build_network(replace(CONFIG, transformer=kind, mask_channels=32, mask_stage_channels=32, depth=1)).eval()
    images = torch.randn(1, 3, 64, 64)
    found = quick.forward(network, torch.float32)(images)  # a first call is not recorded
    with torch.no_grad():
        for one, other in zip(found, network(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["pure_twin", "hybrid_twin"])
def test_packed_maps_equal_one_map_at_a_time_on_a_gpu(kind, dtype):
    transformer = transformer_of(kind).cuda()
    maps = [torch.randn(2, CONFIG.width, *shape, device="cuda") for shape in SHAPES]
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        pairs = zip(PackedTransformer(transformer)(maps), transformer(maps), strict=True)
    for found, expected in pairs:
        error = (found.float() - expected.float()).norm() / expected.float().norm()
        assert error < (1e-3 if dtype == torch.float32 else 5e-2)
