"""PyTorch's graph of a network as the bytes of an ONNX file."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from onnxscript import FLOAT, opset20
from onnxscript.optimizer import fold_constants
from torch import nn

from sotr.config import INPUT_DIVISOR
from sotr.decode_options import DecodeOptions
from sotr.errors import SOTRError, first_line
from sotr.export.description import INPUT, METADATA_KEY, OBJECT_OUTPUTS, RAW_OUTPUTS, ExportDescription
from sotr.export.graph import SegmentationGraph
from sotr.network import SOTR

OPSET = 20
"""Version of ONNX's operators; the first in which resampling and deformable convolution are what PyTorch's are."""


def trace(network: SOTR, options: DecodeOptions | None, description: ExportDescription) -> bytes:
    """The ONNX file of a network, in eval mode, with the decoding that `options` describe, or of its dense predictions.

    Raises:
        SOTRError: PyTorch cannot turn this network into such a graph.
    """
    graph: nn.Module = network if options is None else SegmentationGraph(network, options).eval()
    device = next(network.parameters()).device
    batch, rows, columns = (torch.export.Dim(name, min=1) for name in ("batch", "rows", "columns"))
    shapes = ({0: batch, 2: INPUT_DIVISOR * rows, 3: INPUT_DIVISOR * columns},)
    # Of a size that no dimension of the graph has otherwise, lest it be taken for a constant.
    images_B3HW = torch.zeros(2, 3, 3 * INPUT_DIVISOR, 5 * INPUT_DIVISOR, device=device)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(
                graph, (images_B3HW,), dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(RAW_OUTPUTS if options is None else OBJECT_OUTPUTS),
                custom_translation_table={torch.ops.torchvision.deform_conv2d.default: _deform_conv2d},
                verbose=False,
                optimize=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
        what = f"{description.name} ({network.config.backbone})"
        raise SOTRError(f"PyTorch cannot export {what}: {first_line(error)}") from error
    assert exported is not None
    _simplify(exported.model)
    exported.model.metadata_props[METADATA_KEY] = description.to_json()
    _forget_sources(exported.model)
    return bytes(exported.model_proto.SerializeToString())


def _simplify(model: Any) -> None:
    """Fold constants and remove what is there twice or for nothing.

    These are the steps of the exporter's own optimizer without its rewriting of patterns. That walks over the whole
    graph for every node, minutes for twelve layers, and ONNX Runtime does the same when it loads the file.
    """
    ir.passes.Sequential(
        common.InlinePass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
    )(model)
    fold_constants(model)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own future from users, who can do nothing about them."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _forget_sources(model: Any) -> None:
    """Take out the exporter's notes on where in which file of this machine each node comes from."""
    for graph in model.graphs():
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()


def _deform_conv2d(
    x: FLOAT,
    weight: FLOAT,
    offset: FLOAT,
    mask: FLOAT,
    bias: FLOAT | None,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
) -> FLOAT:
    """torchvision's operator in ONNX, whose order of offsets is the same."""
    return opset20.DeformConv(
        x,
        weight,
        offset,
        bias,
        mask,
        strides=[stride_h, stride_w],
        pads=[pad_h, pad_w, pad_h, pad_w],
        dilations=[dilation_h, dilation_w],
        group=groups,
        offset_group=offset_groups,
        kernel_shape=[3, 3],
    )
