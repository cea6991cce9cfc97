"""What a network is made of: parameters and multiply-accumulates of each component."""

import json as jsonlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from torchvision import ops as _registers_deform_conv2d  # noqa: F401

from sotr.building import build_network
from sotr.config import INPUT_DIVISOR, PRESETS, SOTRConfig
from sotr.data.sizes import padded_side, resized_size
from sotr.errors import SOTRError

TYPICAL_PICTURE = (480, 640)
"""Height and width of most COCO images; the default input is what preprocessing makes of it."""


@dataclass(frozen=True)
class Component:
    """Cost of one submodule: `parameters` and `macs`, multiply-accumulates of a forward pass at batch 1."""

    parameters: int
    macs: int


def _deformable_flops(x: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    """Of a deformable convolution: what an ordinary one of its kernel takes; moving the samples is not counted."""
    return 2 * out_shape.numel() * weight[1:].numel()


_FLOPS: dict[Any, Any] = {torch.ops.torchvision.deform_conv2d: _deformable_flops}
"""Of operators that PyTorch's counter does not know."""


def count_components(config: SOTRConfig, height: int, width: int) -> dict[str, Component]:
    """Parameters and multiply-accumulates of each component of the network and, under "total", of all.

    One multiplication with its addition is 1 MAC. Counted are convolutions, matrix products and attention; norms,
    activations and resampling are not. Nothing is computed: the network runs on PyTorch's meta device.

    Args:
        height, width: of the input, in pixels, multiples of 32.

    Raises:
        SOTRError: `height` or `width` is not a positive multiple of 32.
    """
    if min(height, width) < 1 or height % INPUT_DIVISOR or width % INPUT_DIVISOR:
        raise SOTRError(f"the input is {height} x {width}; height and width must be multiples of {INPUT_DIVISOR}")
    with torch.device("meta"):
        # The counter's hooks stumble over parameters that are handed on as they are, as static kernels are.
        network = build_network(config).eval().requires_grad_(False)
        images_B3HW = torch.zeros(1, 3, height, width)
    counter = FlopCounterMode(display=False, custom_mapping=_FLOPS)
    with torch.no_grad(), counter:
        network(images_B3HW)
    flops = {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
    components = {
        name: Component(
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            # The counter takes a multiplication and its addition for two operations.
            macs=flops.get(f"{type(network).__name__}.{name}", 0) // 2,
        )
        for name, module in network.named_children()
    }
    components["total"] = Component(
        parameters=sum(parameter.numel() for parameter in network.parameters()), macs=counter.get_total_flops() // 2
    )
    return components


def info(
    model: str = "nuclei",
    height: int | None = None,
    width: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Show what a model is made of: parameters and multiply-accumulates per component, classes, input size.

    One multiplication with its addition counts as 1 MAC; norms, activations and resampling are not counted.

    Args:
        model: an architecture (sotr-r50, sotr-r101, sotr-r101-dcn, sotr-rt-r50, sotr-nano) or a YAML file that
            describes one, a bundled model, a model or run folder, or a hub id.
        height: height of the network's input in pixels, a multiple of 32; by default that of a 480 x 640 image
            after preprocessing.
        width: width of the network's input in pixels, a multiple of 32; default likewise.
        json: print one JSON object instead of tables.

    Returns:
        "model", "height", "width", "components" (name -> parameters and macs, with "total"), "class_names" (None for
        a bare architecture) and "architecture" (all settings).

    Raises:
        SOTRError: there is no such model, or the size is not a multiple of 32.
    """
    class_names: list[str] | None = None
    if model in PRESETS:
        config = SOTRConfig.preset(model)
    elif Path(model).suffix in (".yaml", ".yml", ".json"):
        from sotr.model.files import read_architecture

        config = read_architecture(Path(model))
    else:
        from sotr.model.segmenter import load

        try:
            segmenter = load(model)
        except SOTRError as error:
            raise SOTRError(f"{error}; or name an architecture: {', '.join(PRESETS)}") from None
        config, class_names = segmenter.config, list(segmenter.class_names)
    default_height, default_width = _default_input(config)
    height = default_height if height is None else height
    width = default_width if width is None else width
    components = count_components(config, height, width)
    report: dict[str, Any] = {
        "model": model,
        "height": height,
        "width": width,
        "components": {name: asdict(component) for name, component in components.items()},
        "class_names": class_names,
        "architecture": config.to_dict(),
    }
    if json:
        print(jsonlib.dumps(report))  # noqa: T201
    else:
        _show(report, components)
    return report


def _default_input(config: SOTRConfig) -> tuple[int, int]:
    """Input size that preprocessing and padding make of the typical image."""
    resized = resized_size(*TYPICAL_PICTURE, config.image_size, config.max_image_size)
    height, width = map(padded_side, resized)
    return height, width


def _show(report: dict[str, Any], components: dict[str, Component]) -> None:
    """The report as tables on standard output."""
    console = Console(highlight=False)
    architecture = report["architecture"]
    table = Table(
        title=f"{escape(report['model'])}, input {report['height']} x {report['width']}", title_justify="left"
    )
    table.add_column("component")
    table.add_column("parameters", justify="right")
    table.add_column("GMAC", justify="right")
    for name, component in components.items():
        if name == "total":
            table.add_section()
        table.add_row(name, f"{component.parameters:,}", f"{component.macs / 1e9:.3f}")
    console.print(table)
    console.print("1 MAC is one multiplication with its addition; norms, activations and resampling are not counted")
    console.print(
        f"backbone {architecture['backbone']}, width {architecture['width']}, depth {architecture['depth']}, "
        f"heads {architecture['heads']}, grids {architecture['grids']}, shortest edge {architecture['image_size']} px "
        f"(longest at most {architecture['max_image_size']})"
    )
    names = report["class_names"]
    if names is None:
        console.print(f"an architecture without weights; counted with {architecture['num_classes']} classes")
    else:
        console.print(f"{len(names)} class{'' if len(names) == 1 else 'es'}: {', '.join(escape(n) for n in names)}")
