"""The way from the authors' checkpoints to ours: which of our tensors each of theirs becomes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sotr.config import SOTRConfig
from sotr.errors import SOTRError
from sotr.released.network import ReleasedSOTR

# ImageNet's deviation of red, green and blue, by which our preprocessing divides and the authors' does not.
_STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)

_BLOCKS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}


def released_to_ours(state: Mapping[str, Tensor]) -> tuple[SOTRConfig, dict[str, Tensor]]:
    """The configuration, with exact width duplication, and our state dict of a released checkpoint's tensors.

    The first convolution is folded so that it takes RGB images with ImageNet's mean and deviation, as every network
    here does; the authors' takes BGR in 0..255 minus the same mean.

    Raises:
        SOTRError: the tensors are not those of SOTR_R50, SOTR_R101 or SOTR_R101_DCN; lists those that are missing,
            unexpected or of another shape.
    """
    config = _detect(state)
    with torch.device("meta"):
        ours = ReleasedSOTR(config).state_dict()
    converted: dict[str, Tensor] = {}
    # Of the training around the network.
    unexpected = {name for name in state if not name.endswith(("pixel_mean", "pixel_std", "num_batches_tracked"))}
    missing, misshapen = [], []

    def take(theirs: str) -> Tensor | None:
        unexpected.discard(theirs)
        if theirs not in state:
            missing.append(theirs)
            return None
        return state[theirs].detach().float()

    for name, like in ours.items():
        if name.endswith("num_batches_tracked"):
            converted[name] = torch.zeros((), dtype=torch.int64)
            continue
        sources = _sources(name)
        parts = [take(source) for source in sources]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            continue
        value = found[0]
        if len(found) > 1:
            value = torch.cat(found) if value.ndim else torch.stack(found)
        if name == "backbone.body.conv1.weight":
            value = (value.flip(1).double() * (255 * _STD).view(1, 3, 1, 1)).float()
        if value.shape != like.shape:
            misshapen.append(f"{', '.join(sources)} has shape {tuple(value.shape)} instead of {tuple(like.shape)}")
        converted[name] = value
    problems = [f"{name} is missing" for name in missing] + [f"{name} is unexpected" for name in sorted(unexpected)]
    if problems := problems + misshapen:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise SOTRError(f"not a released SOTR checkpoint: {'; '.join(problems[:8])}{more}")
    return config, converted


def _detect(state: Mapping[str, Tensor]) -> SOTRConfig:
    def count(prefix: str) -> int:
        following = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
        return sum(number.isdigit() for number in following)

    blocks = tuple(count(f"backbone.bottom_up.res{stage}.") for stage in (2, 3, 4, 5))
    classes = state.get("cate_head.cate_pred.weight")
    if blocks not in _BLOCKS or classes is None:
        raise SOTRError(
            f"not a released SOTR checkpoint: its ResNet has {blocks} blocks, and a class head "
            f"{'is' if classes is not None else 'is not'} there; SOTR_R50, SOTR_R101 and SOTR_R101_DCN can be converted"
        )
    deformable = any("conv2_offset" in name for name in state)
    # The sizes that the authors' configurations test at.
    edges = (800, 1333) if _BLOCKS[blocks] == "resnet101" and not deformable else (1000, 2048)
    return SOTRConfig(
        num_classes=classes.shape[0],
        variant="released",
        backbone=_BLOCKS[blocks],
        deformable_stages=(3, 4, 5) if deformable else (),
        depth=count("cate_head.transformer.layers.blocks.") // 2,
        image_size=edges[0],
        max_image_size=edges[1],
    )


def _sources(name: str) -> list[str]:
    """The released tensors that make up ours; several are concatenated, scalars stacked."""
    room, *rest = name.split(".")
    leaf = ".".join(rest)
    if room == "backbone":
        return [_backbone_source(rest[1:])]
    if room == "fpn":
        _, kind, level, _, leaf = rest
        return [f"backbone.fpn_{'lateral' if kind == 'inner_blocks' else 'output'}{int(level) + 2}.{leaf}"]
    if room == "transformer":
        return _transformer_sources(int(rest[1]), rest[2:])
    if room == "mask_features":
        if rest[0] == "output":
            return [f"mask_head.conv_pred.{rest[1]}.{rest[2]}"]
        _, level, stage, *leaf_parts = rest
        return [f"mask_head.convs_all_levels.{level}.conv{stage}.{'.'.join(leaf_parts)}"]
    return [f"cate_head.{ {'class_head': 'cate_pred', 'kernel_head': 'kernel_pred'}[room] }.{leaf}"]


def _backbone_source(path: list[str]) -> str:
    # conv1.weight, bn1.bias, layer3.0.conv2.offset.weight, layer3.0.bn2.bias, layer3.0.downsample.1.weight
    if path[0] in ("conv1", "bn1"):
        return f"backbone.bottom_up.stem.conv1.{'norm.' if path[0] == 'bn1' else ''}{path[1]}"
    stage, block, part, *rest = path
    if part == "downsample":
        part, rest = "shortcut", (["norm", *rest[1:]] if rest[0] == "1" else rest[1:])
    elif part.startswith("bn"):
        part, rest = f"conv{part[2:]}", ["norm", *rest]
    elif rest[0] == "offset":
        part, rest = f"{part}_offset", rest[1:]
    return ".".join([f"backbone.bottom_up.res{int(stage.removeprefix('layer')) + 1}", block, part, *rest])


def _transformer_sources(layer: int, path: list[str]) -> list[str]:
    blocks = "cate_head.transformer.layers.blocks"
    attention, convolution = f"{blocks}.{2 * layer}", f"{blocks}.{2 * layer + 1}"
    if path == ["gains"]:
        return [f"{attention}.{i}.fn.g" for i in (0, 1)] + [f"{convolution}.{i}.g" for i in (0, 1)]
    if path[0] in ("column", "row"):
        branch = f"{attention}.{('column', 'row').index(path[0])}.fn.fn"
        if path[1] == "to_qkv":
            return [f"{branch}.to_q.weight", f"{branch}.to_kv.weight"]
        return [f"{branch}.to_out.{path[2]}"]
    branch = f"{convolution}.{('convolution1', 'convolution2').index(path[0])}.fn"
    return [f"{branch}.{ {'conv1': 0, 'conv2': 2}[path[1]] }.{path[2]}"]
