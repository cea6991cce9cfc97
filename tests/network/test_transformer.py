from dataclasses import replace

import pytest
import torch

from sotr.config import TRANSFORMERS, SOTRConfig
from sotr.errors import SOTRError
from sotr.network.transformer import LAYERS, ConvolutionBlock, Transformer, add_layer

CONFIG = replace(SOTRConfig.preset("sotr-nano"), width=32, heads=4, depth=3)
SHAPES = [(6, 6), (5, 5), (1, 1), (3, 7), (6, 6)]


def plain_layer(layer, x_BNNC):
    """Figure 3, as the paper draws it."""
    x_BNNC = x_BNNC + layer.attention(layer.attention_norm(x_BNNC))
    if hasattr(layer, "convolution"):
        x_BNNC = x_BNNC + layer.convolution(x_BNNC)
    return x_BNNC + layer.mlp(layer.mlp_norm(x_BNNC))


def plain_transformer(transformer, x_BCNN):
    x_BNNC = transformer.position(x_BCNN.permute(0, 2, 3, 1))
    for layer in transformer.layers:
        x_BNNC = plain_layer(layer, x_BNNC)
    return transformer.norm(x_BNNC).permute(0, 3, 1, 2)


@pytest.fixture(params=LAYERS)
def transformer(request):
    torch.manual_seed(0)
    transformer = Transformer(replace(CONFIG, transformer=request.param)).double()
    for parameter in transformer.parameters():  # the convolution branches start at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return transformer


def maps(batch):
    torch.manual_seed(1)
    return [torch.randn(batch, CONFIG.width, *shape, dtype=torch.float64, requires_grad=True) for shape in SHAPES]


@pytest.mark.parametrize("batch", [1, 3])
def test_maps_equal_the_plain_formula_of_each(transformer, batch):
    together, alone, plain = maps(batch), maps(batch), maps(batch)
    outputs = {
        "together": transformer(together),
        "alone": [transformer([each])[0] for each in alone],
        "plain": [plain_transformer(transformer, each) for each in plain],
    }
    gradients = {}
    for name, found in outputs.items():
        transformer.zero_grad()
        sum((index + 1) * each.square().sum() for index, each in enumerate(found)).backward()
        gradients[name] = [parameter.grad.clone() for parameter in transformer.parameters()]
    gradients["together"] += [each.grad for each in together]
    gradients["alone"] += [each.grad for each in alone]
    gradients["plain"] += [each.grad for each in plain]
    for name in ("together", "alone"):
        for found, expected in zip(outputs[name] + gradients[name], outputs["plain"] + gradients["plain"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_layers_equal_the_plain_formula(transformer):
    x = torch.randn(2, 4, 5, CONFIG.width, dtype=torch.float64)
    for layer in transformer.layers:
        torch.testing.assert_close(layer(x), plain_layer(layer, x), rtol=1e-10, atol=1e-10)


def test_convolutions_keep_two_maps_for_the_gradient():
    block = ConvolutionBlock(8)
    x_BNNC = torch.randn(1, 6, 5, 8, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        block(x_BNNC)
    weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    assert len({tensor.untyped_storage().data_ptr() for tensor in saved} - weights) == 2


def test_a_layer_of_ones_own(monkeypatch):
    names, layers = list(TRANSFORMERS), dict(LAYERS)
    monkeypatch.setattr("sotr.config.TRANSFORMERS", names)
    monkeypatch.setattr("sotr.network.transformer.TRANSFORMERS", names)
    monkeypatch.setattr("sotr.network.transformer.LAYERS", layers)
    with pytest.raises(SOTRError, match=r"there is no transformer 'doubled'; .*add_layer"):
        replace(CONFIG, transformer="doubled")

    class Doubled(layers["original"]):
        def forward(self, x_BNNC):
            return 2 * x_BNNC

    add_layer("doubled", Doubled)
    module = Transformer(replace(CONFIG, transformer="doubled"))
    module.norm = torch.nn.Identity()
    x_BCNN = torch.randn(1, 32, 4, 4)
    placed = module.position(x_BCNN.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(module.encode(x_BCNN), 2**CONFIG.depth * placed)
    with pytest.raises(SOTRError, match="'pure_twin' is the paper's"):
        add_layer("pure_twin", Doubled)
