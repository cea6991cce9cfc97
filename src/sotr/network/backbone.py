"""The CNN of Figure 2: a timm backbone's C2..C5 and the feature pyramid P2..P6."""

from collections import OrderedDict
from typing import cast

import timm
import torch
from timm.models import FeatureInfo
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from sotr.config import FPN_STRIDES, SOTRError
from sotr.network.deformable import make_deformable

_BACKBONE_STRIDES = FPN_STRIDES[:4]


class Backbone(nn.Module):
    """Feature maps C2..C5 of any timm model that has `features_only` and maps at strides 4, 8, 16 and 32.

    Weights are random; nothing is downloaded.

    Args:
        name: timm's name of the model.
        deformable_stages: stages, 2 to 5, of a ResNet whose 3x3 convolutions are made deformable.

    Raises:
        SOTRError: if timm does not know the name, or the model lacks one of these strides or is no ResNet where it has
            to be.
    """

    def __init__(self, name: str, deformable_stages: tuple[int, ...] = ()) -> None:
        super().__init__()
        try:
            # A first look on the meta device costs no memory and tells which feature maps to ask for.
            with torch.device("meta"):
                strides = _feature_info(timm.create_model(name, features_only=True, pretrained=False)).reduction()
        except (RuntimeError, AttributeError, ValueError, TypeError) as error:
            raise SOTRError(f"backbone {name!r} cannot be built with timm's features_only: {error}") from None
        if missing := set(_BACKBONE_STRIDES) - set(strides):
            raise SOTRError(
                f"backbone {name!r} has feature maps at strides {strides}, none at {sorted(missing)}; "
                "choose one with strides 4, 8, 16 and 32"
            )
        # A stride may occur twice; the deeper map of that stride is the stage's output.
        indices = tuple(max(i for i, s in enumerate(strides) if s == stride) for stride in _BACKBONE_STRIDES)
        self.body = timm.create_model(name, features_only=True, pretrained=False, out_indices=indices)
        make_deformable(self.body, name, deformable_stages)
        self.channels: list[int] = _feature_info(self.body).channels()

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """C2..C5: maps of (B, channels[i], H / 4..32, W / 4..32)."""
        return list(self.body(images_B3HW))


def _feature_info(model: nn.Module) -> FeatureInfo:
    return cast(FeatureInfo, model.feature_info)


class FPN(nn.Module):
    """Feature pyramid: lateral 1x1 and output 3x3 convolutions, nearest top-down path; P6 is P5 subsampled by 2."""

    def __init__(self, in_channels: list[int], width: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(in_channels, width, extra_blocks=LastLevelMaxPool())

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """P2..P6 of C channels each, from C2..C5."""
        named = OrderedDict((str(level), feature) for level, feature in enumerate(features))
        return list(self.pyramid(named).values())
