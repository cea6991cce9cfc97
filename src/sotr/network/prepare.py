"""The same network, quicker: what inference may do to it that training may not."""

import copy
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeGuard, cast

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sotr.network.attention import RowAttention, short_attention
from sotr.network.deformable import DeformableConv
from sotr.network.fast_conv import fast_conv
from sotr.network.in_step import TransformerInStep
from sotr.network.inference_layers import ChannelsLastGroupNorm, FixedPosition
from sotr.network.large_maps import FusedFPN, GroupNormInPlace
from sotr.network.onednn import OneDNNConv, OneDNNLinear, OneDNNPointwiseConv, has_onednn
from sotr.network.sotr import SOTR
from sotr.network.transformer import MLP, ConvolutionBlock, Transformer
from sotr.network.winograd import WinogradConv


def prepare_for_inference(network: SOTR, dtype: torch.dtype = torch.float32) -> SOTR:
    """A copy of the network that predicts the same, to rounding, in less time.

    Batch norms are folded into the convolutions before them, and everything is laid out channels last. On CPUs with
    oneDNN, convolutions and linear layers go through it, their weights laid out once and for all, with ReLU, Leaky
    ReLU, GELU and residual sums in the same pass; sums and norms of large maps are written over them; 3x3 convolutions
    of many channels are Winograd's in float32, with weights five times as large. On CUDA group norms stay channels
    last. The copy can be neither trained, nor saved, nor exported; it does not follow later changes of the network.

    Args:
        network: stays as it is.
        dtype: of convolutions, matrix products and results. With oneDNN the transformer's sums and norms stay float32;
            elsewhere everything is of this type.
    """
    prepared = copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    device = next(prepared.parameters()).device
    body = _traced(prepared.backbone.body)
    if body is not None:
        fold_batch_norms(body)
        prepared.backbone.body = body
    if isinstance(prepared.transformer, Transformer):
        prepared.transformer.set_submodule("position", FixedPosition(prepared.transformer.position))
    if has_onednn(device):
        if body is not None:
            _fuse_residual_sums(body, dtype)
            _fuse_relus(body, dtype)
        prepared.set_submodule("fpn", FusedFPN(prepared.fpn, dtype))
        if dtype == torch.float32:
            _replace_norms(prepared.mask_features, GroupNormInPlace)
        _use_onednn(prepared, dtype)
        if isinstance(prepared.transformer, Transformer) and _all_winograd(prepared.transformer):
            prepared.set_submodule("transformer", TransformerInStep(prepared.transformer))
    elif device.type == "cuda":
        _replace_norms(prepared.mask_features, ChannelsLastGroupNorm)
    if not has_onednn(device) and dtype != torch.float32:
        prepared.to(dtype).register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    if body is not None:
        body.graph.lint()
        body.recompile()
        body.delete_all_unused_submodules()
    return prepared


def _all_winograd(transformer: Transformer) -> bool:
    blocks = [module for module in transformer.modules() if isinstance(module, ConvolutionBlock)]
    convs = [conv for block in blocks for conv in (block.conv1, block.conv2)]
    return bool(convs) and all(isinstance(conv, WinogradConv) for conv in convs)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, DeformableConv) or super().is_leaf_module(m, module_qualified_name)


def _traced(body: nn.Module) -> fx.GraphModule | None:
    """The backbone as a graph of its layers, without those that do nothing; None if it decides by what it sees."""
    try:
        traced = fx.GraphModule(body, _Tracer().trace(body))
    except Exception:  # a timm model may do anything in `forward`, and tracing it fails in as many ways
        return None
    calls = Counter(node.target for node in traced.graph.nodes if isinstance(_layer(traced, node), nn.Conv2d))
    if any(count > 1 for count in calls.values()):
        return None  # what follows one call of a shared layer does not follow the other
    for node in list(traced.graph.nodes):
        if isinstance(_layer(traced, node), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    return traced


def _layer(graph: fx.GraphModule, node: object) -> nn.Module | None:
    """The module that a node calls."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph.get_submodule(str(node.target))
    return None


def _follower(node: object) -> fx.Node | None:
    """The one node that reads this one's result."""
    return next(iter(node.users)) if isinstance(node, fx.Node) and len(node.users) == 1 else None


def fold_batch_norms(body: fx.GraphModule) -> None:
    """Fold each batch norm into the convolution whose result it alone reads, in place."""
    for node in list(body.graph.nodes):
        norm = _layer(body, node)
        if type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
            continue
        conv_node: Any = node.args[0]
        conv = _layer(body, conv_node)
        if not isinstance(conv, nn.Conv2d) or len(conv_node.users) > 1:
            continue
        body.set_submodule(conv_node.target, fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(conv_node)
        body.graph.erase_node(node)


def _fuse_residual_sums(body: fx.GraphModule, dtype: torch.dtype) -> None:
    """conv(x) + shortcut, and a ReLU behind it, in one pass, over the shortcut's memory if nobody reads that again."""
    ShapeProp(body).propagate(torch.zeros(1, 3, 64, 64))
    for node in list(body.graph.nodes):
        if node.op != "call_function" or node.target not in (operator.add, torch.add) or node.kwargs:
            continue
        for conv_node, shortcut in (node.args, node.args[::-1]):
            if _can_take_the_place(body, conv_node, node) and _same_shape(conv_node, shortcut):
                break
        else:
            continue
        order = {each: place for place, each in enumerate(body.graph.nodes)}
        fresh = isinstance(_layer(body, shortcut), nn.Conv2d | OneDNNConv | OneDNNPointwiseConv | WinogradConv)
        in_place = fresh and all(order[user] <= order[node] for user in shortcut.users)
        relu = _follower(node)
        relu = relu if isinstance(_layer(body, relu), nn.ReLU) else None
        conv: Any = _layer(body, conv_node)
        fused = fast_conv(conv, dtype, "none" if relu is None else "relu", adds=True, in_place=in_place)
        body.set_submodule(conv_node.target, fused)
        conv_node.args = (conv_node.args[0], shortcut)
        node.prepend(conv_node)
        for done in (node,) if relu is None else (relu, node):
            done.replace_all_uses_with(conv_node)
            body.graph.erase_node(done)


def _can_take_the_place(body: fx.GraphModule, conv_node: object, node: fx.Node) -> bool:
    """Whether a convolution may as well be computed at the place of the sum that alone reads it: nothing in between
    writes over what it reads."""
    if not isinstance(conv_node, fx.Node) or not _fits(_layer(body, conv_node)) or _follower(conv_node) is not node:
        return False
    between = conv_node.next
    while between is not node:
        if not _fits(_layer(body, between)):
            return False
        between = between.next
    return True


def _same_shape(node: fx.Node, other: object) -> bool:
    return isinstance(other, fx.Node) and node.meta["tensor_meta"].shape == other.meta["tensor_meta"].shape


def _fuse_relus(body: fx.GraphModule, dtype: torch.dtype) -> None:
    for node in list(body.graph.nodes):
        conv, relu = _layer(body, node), _follower(node)
        if _fits(conv) and relu is not None and isinstance(_layer(body, relu), nn.ReLU):
            body.set_submodule(node.target, fast_conv(conv, dtype, "relu"))
            relu.replace_all_uses_with(node)
            body.graph.erase_node(relu)


def _fits(conv: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    # Subclasses, such as those that pad as TensorFlow does, compute something else.
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _replace_norms(mask_features: nn.Module, by: Callable[[nn.GroupNorm], nn.Module]) -> None:
    """Of the mask branch, for only there is it known that nobody else reads what is normed."""
    for name, module in list(mask_features.named_modules()):
        if type(module) is nn.GroupNorm:
            mask_features.set_submodule(name, by(module))


def _use_onednn(network: nn.Module, dtype: torch.dtype) -> None:
    """Replace linear layers and convolutions, with the activation that is known to follow, and attention."""
    for module in list(network.modules()):
        if isinstance(module, RowAttention):
            module.product = short_attention
        elif isinstance(module, MLP):
            module[0] = OneDNNLinear(cast(nn.Linear, module[0]), dtype, gelu=True)
            module[1] = nn.Identity()
        elif isinstance(module, ConvolutionBlock):
            slope = module.activation.negative_slope
            module.set_submodule("conv1", fast_conv(module.conv1, dtype, "leaky_relu", slope))
            module.set_submodule("activation", nn.Identity())
    for name, module in list(network.named_modules()):
        if _fits(module):
            network.set_submodule(name, fast_conv(module, dtype))
        elif isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            network.set_submodule(name, OneDNNLinear(module, dtype))
