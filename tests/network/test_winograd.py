import pytest
import torch
from torch import nn

from sotr.network import winograd
from sotr.network.winograd import WinogradConv, transforms

close = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def always(monkeypatch):
    """However few tiles there are."""
    monkeypatch.setattr(winograd, "TILES_PER_THREAD", 0)


def convolution(before=8, after=12, bias=True):
    torch.manual_seed(0)
    return nn.Conv2d(before, after, 3, padding=1, bias=bias).requires_grad_(False)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_transforms_make_a_convolution_of_products():
    to_results, to_kernel, to_inputs = transforms()
    kernel, inputs = torch.randn(3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    expected = nn.functional.conv1d(inputs[None, None], kernel[None, None])[0, 0]
    torch.testing.assert_close(to_results @ ((to_kernel @ kernel) * (to_inputs @ inputs)), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
@pytest.mark.parametrize("shape", [(1, 16, 20), (3, 25, 34), (2, 1, 1), (2, 3, 50), (1, 41, 2)])
def test_equals_pytorch(always, monkeypatch, shape, rows_at_once, bias):
    batch, height, width = shape
    monkeypatch.setattr(winograd, "BYTES_AT_ONCE", 4 * 36 * 12 * rows_at_once * -(-width // 4))
    conv, x = convolution(bias=bias), torch.randn(batch, 8, height, width)
    expected = conv(x)
    with torch.inference_mode():
        found = WinogradConv(conv, "none", None)(x.to(memory_format=torch.channels_last))
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, **close)
        torch.testing.assert_close(WinogradConv(conv, "relu", None)(x), expected.relu(), **close)
        leaky = WinogradConv(conv, "leaky_relu", 0.1)(x)
        torch.testing.assert_close(leaky, nn.functional.leaky_relu(expected, 0.1), **close)


def test_several_maps_equal_each(always, monkeypatch):
    monkeypatch.setattr(winograd, "BYTES_AT_ONCE", 4 * 36 * 12 * 7)
    conv = convolution()
    maps = [torch.randn(shape) for shape in ((1, 8, 13, 9), (2, 8, 4, 4), (1, 8, 40, 40), (1, 8, 1, 1))]
    before = [x.clone() for x in maps]
    with torch.inference_mode():
        for found, x, same in zip(WinogradConv(conv, "none", None).together(maps), maps, before, strict=True):
            torch.testing.assert_close(found, conv(x), **close)
            assert torch.equal(x, same)


def test_few_tiles_are_left_to_onednn():
    conv, x = WinogradConv(convolution(), "none", None), torch.randn(1, 8, 8, 8)
    few = torch.get_num_threads() * winograd.TILES_PER_THREAD // 5
    many = torch.randn(few + 99, 8, 8, 8)
    with torch.inference_mode():
        assert torch.equal(conv(x), conv.direct(x))
        assert not torch.equal(conv(many), conv.direct(many))


def test_errors_are_those_of_rounding():
    conv, x = convolution(256, 256), torch.randn(1, 256, 40, 40)
    expected = nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    with torch.inference_mode():
        assert relative(WinogradConv(conv, "none", None)(x), expected) < 2e-6


def test_values_that_are_no_numbers_stay_so(always):
    conv, x = convolution(), torch.randn(1, 8, 40, 40)
    x[0, 3, 20, 20] = torch.nan
    with torch.inference_mode():
        found = WinogradConv(conv, "none", None)(x)
    assert found[..., 19:22, 19:22].isnan().all()
    torch.testing.assert_close(found[..., :15, :15], conv(x)[..., :15, :15], **close)
