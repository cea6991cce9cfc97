"""The CNN of Figure 2: a timm backbone's C2..C5 and the feature pyramid P2..P6."""

from collections import OrderedDict
from functools import lru_cache
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
"""Height and width of the image that shows which maps a model gives."""


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
        maps = _maps_of(name)
        self.places, self.channels, self.channels_first = maps.places, list(maps.channels), maps.channels_first
        self.body = timm.create_model(name, features_only=True, pretrained=False, **maps.settings)
        make_deformable(self.body, name, deformable_stages)

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """C2..C5: maps of (B, channels[i], H / 4..32, W / 4..32)."""
        found = self.body(images_B3HW)
        maps = [found[place] for place in self.places]
        return maps if self.channels_first else [each_BHWC.permute(0, 3, 1, 2) for each_BHWC in maps]


class _Maps(NamedTuple):
    """Which of a model's maps are C2..C5."""

    places: tuple[int, ...]
    channels: tuple[int, ...]
    channels_first: bool
    settings: dict[str, Any]


@lru_cache(maxsize=64)
def _maps_of(name: str) -> _Maps:
    """What a trial on the meta device, which costs no memory, shows of a model: its own list of strides may err."""
    try:
        with torch.device("meta"), torch.no_grad():
            body, settings = _create(name)
            channels_first = str(getattr(body, "output_fmt", "NCHW")).endswith("NCHW") or body.output_fmt is None
            found = body.eval()(torch.zeros(2, 3, *TRIAL))
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
    sizes = [tuple(each.shape[2:] if channels_first else each.shape[1:3]) for each in found]
    wanted = [(TRIAL[0] // stride, TRIAL[1] // stride) for stride in STRIDES]
    if missing := [stride for stride, size in zip(STRIDES, wanted, strict=True) if size not in sizes]:
        raise SOTRError(
            f"backbone {name!r} has feature maps of {sizes} for an image of {TRIAL}, none at the strides {missing}; "
            "choose one with strides 4, 8, 16 and 32"
        )
    # A stride may occur twice; the deeper map of that stride is the stage's output.
    places = tuple(max(i for i, size in enumerate(sizes) if size == of_stride) for of_stride in wanted)
    return _Maps(places, tuple(found[i].shape[1 if channels_first else -1] for i in places), channels_first, settings)


def _create(name: str) -> tuple[Any, dict[str, Any]]:
    """The model, and the settings that it needs to take images of any size."""
    try:
        settings: dict[str, Any] = {"strict_img_size": False}
        return timm.create_model(name, features_only=True, pretrained=False, **settings), settings
    except TypeError:  # most models take any size and know no such setting
        return timm.create_model(name, features_only=True, pretrained=False), {}


class FPN(nn.Module):
    """Feature pyramid: lateral 1x1 and output 3x3 convolutions, nearest top-down path; P6 is P5 subsampled by 2."""

    def __init__(self, in_channels: list[int], width: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(in_channels, width, extra_blocks=LastLevelMaxPool())

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """P2..P6 of C channels each, from C2..C5."""
        named = OrderedDict((str(level), feature) for level, feature in enumerate(features))
        return list(self.pyramid(named).values())
