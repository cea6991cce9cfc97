"""The network behind the checkpoints that the paper's authors released, and the way from their files to ours.

It departs from the paper's text: no position embedding, layer norm or MLP; column and row attention side by side
rather than in sequence, and two convolution branches side by side, each scaled by a learned gain; P2 and P6 resized
before they are cut into patches; and every map concatenated with itself along the width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sotr.config import SOTRConfig
from sotr.errors import SOTRError
from sotr.network.attention import ColumnAttention, RowAttention
from sotr.network.deformable import DeformableConv
from sotr.network.transformer import ConvolutionBlock


class WrappedConv(nn.Conv2d):
    """A 3x3 convolution that sees half the opposite column beyond the left and the right edge, and zeros above and
    below.

    Beside its own copy a map's outer column meets the copy's on one side of the seam and zeros at the other end; the
    mean of the two halves is what one linear convolution with this padding gives.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h, w)."""
        padded = torch.cat([x[..., -1:] / 2, x, x[..., :1] / 2], -1)
        return F.conv2d(padded, self.weight, self.bias, padding=(1, 0))


class ReleasedLayer(nn.Module):
    """x + g1 column attention(x) + g2 row attention(x), then x + g3 convolutions(x) + g4 convolutions(x)."""

    def __init__(self, width: int, heads: int, convolution: type[nn.Conv2d]) -> None:
        super().__init__()
        self.column = ColumnAttention(width, heads, qkv_bias=False)
        self.row = RowAttention(width, heads, qkv_bias=False)
        self.convolution1 = ConvolutionBlock(width, convolution)
        self.convolution2 = ConvolutionBlock(width, convolution)
        self.gains = nn.Parameter(torch.zeros(4))
        """Of column attention, row attention and the two convolutions; a new layer is the identity (ReZero)."""

    def forward(self, x_BNNC: Tensor) -> Tensor:
        """(B, rows, columns, C) -> the same shape."""
        column, row, convolution1, convolution2 = self.gains
        x_BNNC = x_BNNC + column * self.column(x_BNNC) + row * self.row(x_BNNC)
        return x_BNNC + convolution1 * self.convolution1(x_BNNC) + convolution2 * self.convolution2(x_BNNC)


class ReleasedTransformer(nn.Module):
    """The released layers over a map beside its own copy; the two halves of the result are averaged.

    The copy changes nothing for attention, but the convolutions see it across the seam. Other settings of
    `config.width_duplication` than "exact" take the map once, for half the work; "wrapped" pads the convolutions such
    that they see about the same at the edges.
    """

    def __init__(self, config: SOTRConfig) -> None:
        super().__init__()
        self.duplicate = config.width_duplication == "exact"
        convolution = WrappedConv if config.width_duplication == "wrapped" else nn.Conv2d
        self.layers = nn.ModuleList(ReleasedLayer(config.width, config.heads, convolution) for _ in range(config.depth))

    def forward(self, x_BCNN: Tensor) -> Tensor:
        """(B, C, rows, columns) -> the same shape."""
        x_BNNC = x_BCNN.permute(0, 2, 3, 1)
        if self.duplicate:
            x_BNNC = torch.cat([x_BNNC, x_BNNC], 2)
        for layer in self.layers:
            x_BNNC = layer(x_BNNC)
        if self.duplicate:
            columns = x_BCNN.shape[3]
            x_BNNC = (x_BNNC[:, :, :columns] + x_BNNC[:, :, columns:]) / 2
        return x_BNNC.permute(0, 3, 1, 2)


def resize_released(features: list[Tensor]) -> list[Tensor]:
    """P2..P6 as the released transformer gets them: P2 halved, P6 resized to P5's size."""
    p2, p3, p4, p5, p6 = features
    p2 = F.interpolate(p2, scale_factor=0.5, mode="bilinear", align_corners=False)
    p6 = F.interpolate(p6, size=p5.shape[-2:], mode="bilinear", align_corners=False)
    return [p2, p3, p4, p5, p6]


def stride_in_first_convolution(body: nn.Module) -> None:
    """Move the stride of a timm ResNet's bottlenecks from the 3x3 convolution to the 1x1 before it, in place."""
    for stage in ("layer2", "layer3", "layer4"):
        block = getattr(body, stage)[0]
        block.conv1.stride = (2, 2)
        if isinstance(block.conv2, DeformableConv):
            block.conv2.set_stride(1)
        else:
            block.conv2.stride = (1, 1)


# ImageNet's deviation of red, green and blue, by which our preprocessing divides and the authors' does not.
_STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)

_BLOCKS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}


def released_to_ours(state: Mapping[str, Tensor]) -> tuple[SOTRConfig, dict[str, Tensor]]:
    """The configuration, with exact width duplication, and our state dict of a released checkpoint's tensors.

    The first convolution is folded so that it takes RGB pictures with ImageNet's mean and deviation, as every network
    here does; the authors' takes BGR in 0..255 minus the same mean.

    Raises:
        SOTRError: the tensors are not those of SOTR_R50, SOTR_R101 or SOTR_R101_DCN; lists those that are missing,
            unexpected or of another shape.
    """
    config = _detect(state)
    with torch.device("meta"):
        from sotr.network.sotr import SOTR  # the network is made of this module's parts

        ours = SOTR(config).state_dict()
    converted: dict[str, Tensor] = {}
    unexpected = set(state)
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
