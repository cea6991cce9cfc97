"""The CNN of Figure 2: a timm backbone's C2..C5 and the feature pyramid P2..P6."""

from collections import OrderedDict
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from sotr.config import FPN_STRIDES, SOTRError
from sotr.network.deformable import make_deformable

STRIDES = FPN_STRIDES[:4]
"""Of C2..C5."""

TRIAL = (96, 160)
"""Height and width of the image that shows which maps a model gives: no two strides give maps of one size."""


class Backbone(nn.Module):
    """Feature maps C2..C5 of any timm model that has `features_only`, takes any size and has strides 4, 8, 16 and 32.

    Weights are random; nothing is downloaded.

    Args:
        name: timm's name of the model.
        deformable_stages: stages, 2 to 5, of a ResNet whose 3x3 convolutions are made deformable.

    Raises:
        SOTRError: timm does not know the name, or the model lacks one of these strides, wants images of one size, or is
            no ResNet where it has to be.
    """

    def __init__(self, name: str, deformable_stages: tuple[int, ...] = ()) -> None:
        super().__init__()
        try:
            self.body = _create(name)
            maps = _trial(self.body)
        except (
            AssertionError,
            AttributeError,
            IndexError,
            KeyError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            reason = next((line for line in str(error).splitlines() if line), type(error).__name__)
            raise SOTRError(
                f"backbone {name!r} cannot be built with timm's features_only for images of any size: {reason}"
            ) from None
        wanted = [(TRIAL[0] // stride, TRIAL[1] // stride) for stride in STRIDES]
        if missing := [stride for stride, size in zip(STRIDES, wanted, strict=True) if size not in maps.sizes]:
            raise SOTRError(
                f"backbone {name!r} has feature maps of {maps.sizes} for an image of {TRIAL}, none at the strides "
                f"{missing}; choose one with strides 4, 8, 16 and 32"
            )
        # A stride may occur twice; the deeper map of that stride is the stage's output.
        self.places = tuple(max(i for i, size in enumerate(maps.sizes) if size == of_stride) for of_stride in wanted)
        self.channels, self.channels_first = [maps.channels[place] for place in self.places], maps.channels_first
        make_deformable(self.body, name, deformable_stages)

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """C2..C5: maps of (B, channels[i], H / 4..32, W / 4..32)."""
        found = self.body(images_B3HW)
        maps = [found[place] for place in self.places]
        return maps if self.channels_first else [each_BHWC.permute(0, 3, 1, 2) for each_BHWC in maps]


class _Maps(NamedTuple):
    """What a model gives for an image of `TRIAL`'s size."""

    sizes: list[tuple[int, int]]
    channels: list[int]
    channels_first: bool


def _trial(body: Any) -> _Maps:
    """Run a model once, for its own list of strides may err."""
    channels_first = str(getattr(body, "output_fmt", "NCHW")).endswith("NCHW") or body.output_fmt is None
    training, device = body.training, next(body.parameters()).device
    with torch.no_grad():
        found = body.eval()(torch.zeros(1, 3, *TRIAL, device=device))
    body.train(training)
    sizes = [tuple(each.shape[2:] if channels_first else each.shape[1:3]) for each in found]
    return _Maps(sizes, [each.shape[1 if channels_first else -1] for each in found], channels_first)


def _create(name: str) -> Any:
    """The model, with random weights, that takes images of any size."""
    try:
        return timm.create_model(name, features_only=True, pretrained=False, strict_img_size=False)
    except TypeError:  # most models take any size and know no such setting
        return timm.create_model(name, features_only=True, pretrained=False)


class FPN(nn.Module):
    """Feature pyramid: lateral 1x1 and output 3x3 convolutions, nearest top-down path; P6 is P5 subsampled by 2."""

    def __init__(self, in_channels: list[int], width: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(in_channels, width, extra_blocks=LastLevelMaxPool())

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """P2..P6 of C channels each, from C2..C5."""
        named = OrderedDict((str(level), feature) for level, feature in enumerate(features))
        return list(self.pyramid(named).values())
