"""SOTR: Figure 2 of the paper, from left to right."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sotr.config import INPUT_DIVISOR, SOTRConfig, SOTRError
from sotr.network.backbone import FPN, Backbone
from sotr.network.heads import ClassHead, KernelHead, StaticKernels
from sotr.network.mask_features import MaskFeatures
from sotr.network.transformer import Transformer


class DensePredictions(NamedTuple):
    """What the network predicts for every cell, before any decision.

    The K cells are the levels P2..P6 one after the other, each N x N and row-major.
    """

    class_logits_BKM: Tensor
    kernels_BKD: Tensor
    mask_features_BEhw: Tensor
    """h = H / 4, w = W / 4, unless the configuration has another `mask_feature_stride`; E is its `feature_channels`."""


class SOTR(nn.Module):
    """The network of *SOTR: Segmenting Objects with Transformers* (ICCV 2021).

    Args:
        config: the architecture, of the paper's variant. Weights are random; nothing is downloaded.

    Raises:
        SOTRError: the configuration is of another variant, or its backbone cannot be built.
    """

    variant = "paper"
    """The `SOTRConfig.variant` that this class implements."""
    positioned = False
    """Whether its kernels read `SOTRConfig.position_waves`, which is not the paper's."""

    def __init__(self, config: SOTRConfig) -> None:
        super().__init__()
        if (config.variant, config.position_waves > 0) != (self.variant, self.positioned):
            raise SOTRError(
                f"{type(self).__name__} is not the network of variant {config.variant!r} with position_waves "
                f"{config.position_waves}; sotr.build_network(config) builds the right one"
            )
        self.config = config
        self.backbone = Backbone(config.backbone, config.deformable_stages)
        self.fpn = FPN(self.backbone.channels, config.width)
        self.transformer = self.make_transformer(config)
        self.class_head = ClassHead(config.width, config.num_classes)
        self.kernel_head = (
            KernelHead(config.width, config.kernel_parameters)
            if config.dynamic_kernels
            else StaticKernels(config.num_cells, config.kernel_parameters)
        )
        self.mask_features = MaskFeatures(
            config.width, config.mask_stage_channels, config.mask_channels, config.mask_feature_stride
        )

    def make_transformer(self, config: SOTRConfig) -> nn.Module:
        """The module of Figure 2 that turns maps into maps."""
        # Without transformer (Table 5) the heads read the resampled FPN features.
        return nn.Identity() if config.transformer == "none" else Transformer(config)

    def forward(self, images_B3HW: Tensor) -> DensePredictions:
        """RGB images, normalized as in `sotr.data.preprocess` -> raw predictions of every cell.

        Args:
            images_B3HW: float tensor; H and W are multiples of 32.

        Raises:
            ValueError: if H or W is not a multiple of 32.
        """
        height, width = images_B3HW.shape[-2:]
        if height % INPUT_DIVISOR or width % INPUT_DIVISOR:
            raise ValueError(f"images are {height} x {width}; pad height and width to multiples of {INPUT_DIVISOR}")

        features = self.fpn(self.backbone(images_B3HW))  # P2..P6
        mask_levels = features[:4]  # P2..P5
        replaced = [level - 2 for level in self.config.mask_transformer_levels]

        # The levels' patches, and the maps that the transformer replaces in the mask branch.
        maps = self.transformer([*self.patches(features), *(mask_levels[index] for index in replaced)])
        levels_BCNN = maps[: len(features)]
        for index, feature in zip(replaced, maps[len(features) :], strict=True):
            mask_levels[index] = feature

        cells_BKC = torch.cat([x_BCNN.flatten(2).transpose(1, 2) for x_BCNN in levels_BCNN], 1)
        return DensePredictions(
            self.class_head(cells_BKC), self.kernel_head(cells_BKC), self.mask_features(mask_levels)
        )

    def patches(self, features: list[Tensor]) -> list[Tensor]:
        """P2..P6, each resampled to its level's N x N patches."""
        return [
            F.interpolate(feature, size=(grid, grid), mode="bilinear", align_corners=False)
            for feature, grid in zip(features, self.config.grids, strict=True)
        ]
