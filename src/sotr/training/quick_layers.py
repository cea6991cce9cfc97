"""Layers that compute what the plain ones do in less time on CPUs; they stand in during a training step.

PyTorch's CPU kernels have a few slow corners that training meets at every step. Each replacement here avoids one:

- The gradient of a strided depthwise convolution takes ten times as long in bfloat16 as in float32.
- So does the gradient of group normalization in channels-last memory.
- Batch normalization with fixed statistics is a scale and a shift of each channel, which the convolution before it can
  apply at no cost.
- `F.scaled_dot_product_attention` guards its softmax against rows without any key. Rows and columns of a map have
  keys, and one batched product of short sequences needs no such guard.

The replacements are in place only within `QuickLayers.active`. Outside of it the network is what it was, for saving,
for validation and for copies.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sotr.network import SOTR
from sotr.network.attention import ColumnAttention, RowAttention

Forward = Callable[[Tensor], Tensor]

Methods = dict[nn.Module, tuple[str, Callable[..., Tensor]]]
"""Of each module the name of a method and what takes its place."""


class QuickLayers:
    """Replacements for the layers of one network on a CPU.

    Args:
        network: its weights are read at each step, so they may change in place.
        frozen_norms: its batch norms stay in evaluation mode, and their weights are not trained.
    """

    def __init__(self, network: SOTR, frozen_norms: bool) -> None:
        self._methods: Methods = {}
        for module in network.modules():
            if type(module) is nn.GroupNorm:
                self._methods[module] = "forward", _group_norm(module)
            elif type(module) is nn.Conv2d and _is_slow(module):
                self._methods[module] = "forward", _convolution(module)
            elif isinstance(module, RowAttention) and type(module) in (RowAttention, ColumnAttention):
                self._methods[module] = "attend", _attention(module.heads)
        if frozen_norms:
            self._methods |= _without_norms(network.backbone)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Put the replacements in place within the block."""
        with _replaced(self._methods):
            yield


@contextmanager
def _replaced(methods: Methods) -> Iterator[None]:
    for module, (name, method) in methods.items():
        setattr(module, name, method)
    try:
        yield
    finally:
        for module, (name, _) in methods.items():
            delattr(module, name)


@torch.no_grad()
def _without_norms(backbone: nn.Module) -> Methods:
    """Replacements that let convolutions apply the batch norms behind them.

    Which norm reads which convolution is found out with a small image, and so is whether the backbone computes the
    same with the replacements. If it does not, there are none.
    """
    made: list[tuple[nn.Conv2d, Tensor]] = []  # the outputs are kept, so that none takes another's place in memory
    methods: Methods = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not isinstance(module, _BatchNorm):
            made.append((module, output))  # type: ignore[arg-type]
            return
        for convolution, its_output in made:
            if inputs[0] is its_output and convolution.bias is None:
                methods[convolution] = "forward", _convolution(convolution, module)
                methods[module] = "forward", _activation(module)

    weight = next(backbone.parameters())
    image_13HW = torch.linspace(-9, 9, 3 * 64 * 64, device=weight.device, dtype=weight.dtype).sin().view(1, 3, 64, 64)
    parts = [module for module in backbone.modules() if type(module) is nn.Conv2d or isinstance(module, _BatchNorm)]
    handles = [module.register_forward_hook(note) for module in parts]
    try:
        plain = backbone(image_13HW)
    finally:
        for handle in handles:
            handle.remove()
    with _replaced(methods):
        quick = backbone(image_13HW)
    close = all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max())) for a, b in zip(plain, quick, strict=True)
    )
    return methods if close else {}


def _is_slow(convolution: nn.Conv2d) -> bool:
    return 1 < convolution.groups == convolution.in_channels and max(convolution.stride) > 1


def _convolution(convolution: nn.Conv2d, norm: _BatchNorm | None = None) -> Forward:
    """The convolution, in float32 where its gradient is slow otherwise, with a fixed norm's scale and shift in it."""

    def forward(x: Tensor) -> Tensor:
        weight, bias = convolution.weight, convolution.bias
        if norm is not None:
            weight, bias = folded(weight, norm)
        learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if not (learns and _is_slow(convolution)):
            return _convolve(convolution, x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            exact_bias = None if bias is None else _exact(bias)
            return _convolve(convolution, _exact(x), _exact(weight), exact_bias).to(x.dtype)

    return forward


def _convolve(settings: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution with other weights than its own."""
    padding, stride, dilation = settings.padding, settings.stride, settings.dilation
    return F.conv2d(x, weight, bias, stride, padding, dilation, settings.groups)


def folded(weight: Tensor, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """A convolution's weight and bias with a batch norm of fixed statistics behind it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _activation(norm: _BatchNorm) -> Forward:
    """What a norm does besides: those of timm hold the activation, too."""
    activation: nn.Module | None = getattr(norm, "act", None)
    # Not the module itself: set on another module, that would become a part of it.
    return (lambda x: x) if activation is None else activation.__call__


def _group_norm(norm: nn.GroupNorm) -> Forward:
    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(_exact(x), norm.num_groups, norm.weight, norm.bias, norm.eps).to(x.dtype)

    return forward


def _attention(heads: int) -> Callable[..., Tensor]:
    """Attention within each of S sequences of L cells, all heads in one batch: (S, L, 3 C) -> (S, L, C)."""

    def attend(qkv_SL3C: Tensor, _: object = None) -> Tensor:
        sequences, length, channels = qkv_SL3C.shape
        qkv = qkv_SL3C.reshape(sequences, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.reshape(3, sequences * heads, length, -1)
        scores = torch.baddbmm(query.new_zeros(1), query, key.transpose(1, 2), beta=0, alpha=query.shape[2] ** -0.5)
        mixed = torch.bmm(scores.softmax(-1), value).view(sequences, heads, length, -1)
        return mixed.transpose(1, 2).reshape(sequences, length, channels // 3)

    return attend
