from dataclasses import replace

import pytest
import torch
from torch import nn

from sotr.network import onednn
from sotr.network.winograd import MKL, ONEDNN, WinogradConv, quickest_library, transforms

close = {"rtol": 1e-4, "atol": 1e-4}
both_libraries = pytest.mark.parametrize("library", [MKL, ONEDNN], ids=["mkl", "onednn"])


def always(library, bytes_at_once=1 << 20):
    """However few tiles there are."""
    return replace(library, tiles_per_thread=0, bytes_at_once=bytes_at_once)


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


@both_libraries
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
@pytest.mark.parametrize("shape", [(1, 16, 20), (3, 25, 34), (2, 1, 1), (2, 3, 50), (1, 41, 2)])
def test_equals_pytorch(shape, rows_at_once, bias, library):
    batch, height, width = shape
    library = always(library, 4 * 36 * 12 * rows_at_once * -(-width // 4))
    conv, x = convolution(bias=bias), torch.randn(batch, 8, height, width)
    expected = conv(x)
    with torch.inference_mode():
        found = WinogradConv(conv, "none", None, library)(x.to(memory_format=torch.channels_last))
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, **close)
        torch.testing.assert_close(WinogradConv(conv, "relu", None, library)(x), expected.relu(), **close)
        leaky = WinogradConv(conv, "leaky_relu", 0.1, library)(x)
        torch.testing.assert_close(leaky, nn.functional.leaky_relu(expected, 0.1), **close)


@both_libraries
@pytest.mark.parametrize("tiles_at_once", [7, 60, 1000])
def test_several_maps_equal_each(library, tiles_at_once):
    conv = convolution()
    tiled = WinogradConv(conv, "none", None, always(library, 4 * 36 * 12 * tiles_at_once))
    maps = [torch.randn(shape) for shape in ((1, 8, 13, 9), (2, 8, 4, 4), (1, 8, 40, 40), (1, 8, 1, 1))]
    before = [x.clone() for x in maps]
    with torch.inference_mode():
        for found, x, same in zip(tiled.together(maps), maps, before, strict=True):
            torch.testing.assert_close(found, conv(x), **close)
            assert torch.equal(x, same)


@both_libraries
def test_few_tiles_are_left_to_onednn(library):
    conv, x = WinogradConv(convolution(), "none", None, library), torch.randn(1, 8, 8, 8)
    few = torch.get_num_threads() * library.tiles_per_thread // 5
    many = torch.randn(few + 99, 8, 8, 8)
    with torch.inference_mode():
        assert torch.equal(conv(x), conv.direct(x))
        assert not torch.equal(conv(many), conv.direct(many))


@both_libraries
def test_errors_are_those_of_rounding(library):
    conv, x = convolution(256, 256), torch.randn(1, 256, 40, 40)
    expected = nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    with torch.inference_mode():
        assert relative(WinogradConv(conv, "none", None, library)(x), expected) < 2e-6


@both_libraries
def test_values_that_are_no_numbers_stay_so(library):
    conv, x = convolution(), torch.randn(1, 8, 40, 40)
    x[0, 3, 20, 20] = torch.nan
    with torch.inference_mode():
        found = WinogradConv(conv, "none", None, always(library))(x)
    assert found[..., 19:22, 19:22].isnan().all()
    torch.testing.assert_close(found[..., :15, :15], conv(x)[..., :15, :15], **close)


@pytest.mark.parametrize(("name", "library"), [("Intel Xeon", MKL), ("AMD EPYC", ONEDNN), (None, ONEDNN)])
def test_mkl_multiplies_where_it_is_at_home(monkeypatch, name, library):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {} if name is None else {"cpu_name": name})
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    onednn.has_quick_mkl.cache_clear()
    try:
        assert quickest_library() == library
    finally:
        onednn.has_quick_mkl.cache_clear()


@both_libraries
@pytest.mark.parametrize("tiles_at_once", [4, 12, 1000])
def test_results_may_take_the_place_of_the_inputs(library, tiles_at_once):
    conv, x = convolution(12, 12), torch.randn(2, 12, 41, 13).to(memory_format=torch.channels_last)
    expected = conv(x)
    library = always(library, 4 * 36 * 12 * tiles_at_once)
    with torch.inference_mode():
        found = WinogradConv(conv, "none", None, library, over_input=True)(x)
        torch.testing.assert_close(found, expected, **close)
        assert found.data_ptr() == x.data_ptr()
        other = WinogradConv(convolution(), "none", None, library, over_input=True)  # more channels than before
        assert other(torch.randn(1, 8, 9, 9)).shape == (1, 12, 9, 9)
