"""oneDNN's products and convolutions with their activation in the same pass, for inference on CPUs.

PyTorch gives float32 matrix products on CPUs to MKL, which on other makers' processors does without AVX-512; oneDNN
does not. These are the operators that PyTorch's own compiler emits. They know no gradients.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def has_onednn(device: torch.device) -> bool:
    """Whether this module's operators are there for tensors of a device."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available()


@cache
def has_quick_mkl() -> bool:
    """Whether float32 products go to an MKL that uses all that the processor can do: it does so on Intel's."""
    intel = str(torch.cpu.get_capabilities().get("cpu_name", "")).startswith("Intel")
    return intel and torch.backends.mkl.is_available()


def product(x_PE: Tensor, y_LE: Tensor, room: Tensor | None = None) -> Tensor:
    """x y^T, equal to PyTorch's to rounding, by the quickest library there is, as long as nobody asks for gradients.

    Args:
        x_PE: P rows.
        y_LE: L rows.
        room: P L numbers or more that the result may be written over; memory that was used before takes less time.
    """
    if torch.is_grad_enabled() or not x_PE.numel():
        return F.linear(x_PE, y_LE)
    if not has_onednn(x_PE.device) or (has_quick_mkl() and x_PE.dtype == torch.float32):
        out = None if room is None else room[: len(x_PE) * len(y_LE)].view(len(x_PE), len(y_LE))
        return torch.mm(x_PE, y_LE.T, out=out)
    return torch.ops.mkldnn._linear_pointwise(x_PE.contiguous(), y_LE.contiguous(), None, "none", [], "")


class OneDNNLinear(nn.Module):
    """A linear layer for inference, its weight laid out as oneDNN wants it, with an activation in the same pass.

    Args:
        linear: the layer.
        dtype: of the weight, the products and the result; inputs are cast to it.
        gelu: apply GELU to the result.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, gelu: bool = False) -> None:
        super().__init__()
        self.dtype = dtype
        self.activation = "gelu" if gelu else "none"
        weight = linear.weight.detach().to(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())  # opaque, hence no buffer
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        x = x.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "none")


class OneDNNConv(nn.Module):
    """A convolution through oneDNN; arguments as those of `fast_conv`."""

    def __init__(
        self, conv: nn.Conv2d, dtype: torch.dtype, activation: str, slope: float | None, in_place: bool
    ) -> None:
        super().__init__()
        self.dtype, self.activation, self.in_place = dtype, activation, in_place
        self.scalars = [] if slope is None else [slope]
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """activation(conv(x) + add)."""
        x = x.to(self.dtype)
        if add is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.geometry, self.activation, self.scalars, ""
            )
        activation = None if self.activation == "none" else self.activation
        fused = (self.weight, self.bias, *self.geometry, "add", 1.0, activation, self.scalars, "")
        if self.in_place:
            return torch.ops.mkldnn._convolution_pointwise_.binary(add, x, *fused)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, add.to(self.dtype), *fused)


class OneDNNPointwiseConv(nn.Module):
    """A 1x1 convolution as a matrix product on the channels of each cell; arguments as those of `fast_conv`."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, activation: str, slope: float | None) -> None:
        super().__init__()
        self.dtype, self.activation, self.stride = dtype, activation, conv.stride
        self.scalars = [] if slope is None else [slope]
        weight = conv.weight.detach().flatten(1).to(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)

    def forward(self, x_BCHW: Tensor, add: Tensor | None = None) -> Tensor:
        """activation(conv(x) + add)."""
        rows, columns = self.stride
        x_BHWC = x_BCHW[..., ::rows, ::columns].permute(0, 2, 3, 1).to(self.dtype).contiguous()
        if add is None:
            y_BHWC = torch.ops.mkldnn._linear_pointwise(
                x_BHWC, self.weight, self.bias, self.activation, self.scalars, ""
            )
            return y_BHWC.permute(0, 3, 1, 2)
        add_BHWC = add.permute(0, 2, 3, 1).to(self.dtype).contiguous()
        y_BHWC = torch.ops.mkldnn._linear_pointwise.binary(x_BHWC, add_BHWC, self.weight, self.bias, "add")
        if self.activation != "none":
            F.leaky_relu_(y_BHWC, self.scalars[0] if self.scalars else 0.0)
        return y_BHWC.permute(0, 3, 1, 2)
