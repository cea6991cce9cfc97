"""SOTR: Figure 2 of the paper, from left to right."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sotr.config import INPUT_DIVISOR, SOTRConfig
from sotr.network.backbone import FPN, Backbone
from sotr.network.heads import ClassHead, KernelHead, StaticKernels
from sotr.network.in_step import TransformerInStep
from sotr.network.mask_features import MaskFeatures
from sotr.network.released import ReleasedTransformer, resize_released, stride_in_first_convolution
from sotr.network.transformer import Transformer


class DensePredictions(NamedTuple):
    """What the network says of every cell, before any decision.

    The K cells are the levels P2..P6 one after the other, each N x N and row-major.
    """

    class_logits_BKM: Tensor
    kernels_BKD: Tensor
    mask_features_BEhw: Tensor
    """h = H / 4, w = W / 4."""


class SOTR(nn.Module):
    """The network of *SOTR: Segmenting Objects with Transformers* (ICCV 2021).

    Args:
        config: the architecture. Weights are random; nothing is downloaded.
    """

    def __init__(self, config: SOTRConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone, config.deformable_stages)
        self.fpn = FPN(self.backbone.channels, config.width)
        self.released = config.variant == "released"
        if self.released:
            stride_in_first_convolution(self.backbone.body)
        self.transformer = _transformer(config)
        self.class_head = ClassHead(config.width, config.num_classes)
        self.kernel_head = (
            KernelHead(config.width, config.kernel_parameters)
            if config.dynamic_kernels
            else StaticKernels(config.num_cells, config.kernel_parameters)
        )
        self.mask_features = MaskFeatures(config.width, config.mask_stage_channels, config.mask_channels)

    def forward(self, images_B3HW: Tensor) -> DensePredictions:
        """RGB pictures, normalised as in `sotr.data.preprocess` -> raw predictions of every cell.

        Args:
            images_B3HW: float tensor; H and W are multiples of 32.

        Raises:
            ValueError: if H or W is not a multiple of 32.
        """
        height, width = images_B3HW.shape[-2:]
        if height % INPUT_DIVISOR or width % INPUT_DIVISOR:
            raise ValueError(f"pictures are {height} x {width}; pad height and width to multiples of {INPUT_DIVISOR}")

        features = self.fpn(self.backbone(images_B3HW))  # P2..P6

        levels = resize_released(features) if self.released else features
        patches = [
            F.interpolate(feature, size=(grid, grid), mode="bilinear", align_corners=False)
            for feature, grid in zip(levels, self.config.grids, strict=True)
        ]
        mask_levels = features[:4]  # P2..P5
        replaced = [level - 2 for level in self.config.mask_transformer_levels]
        transformed = self._transform(patches + [mask_levels[index] for index in replaced])

        cells_BKC = torch.cat([x_BCNN.flatten(2).transpose(1, 2) for x_BCNN in transformed[: len(patches)]], 1)
        for index, feature in zip(replaced, transformed[len(patches) :], strict=True):
            mask_levels[index] = feature
        return DensePredictions(
            self.class_head(cells_BKC), self.kernel_head(cells_BKC), self.mask_features(mask_levels)
        )

    def _transform(self, maps_BCNN: list[Tensor]) -> list[Tensor]:
        """The transformer's output for each map."""
        transformer = self.transformer
        if isinstance(transformer, Transformer):  # where launches cost, not copies
            together = maps_BCNN[0].is_cuda
        else:
            together = isinstance(transformer, TransformerInStep) and len(maps_BCNN[0]) == 1
        if together:
            return cast(Transformer | TransformerInStep, transformer).together(maps_BCNN)
        return [self.transformer(x_BCNN) for x_BCNN in maps_BCNN]


def _transformer(config: SOTRConfig) -> nn.Module:
    if config.variant == "released":
        return ReleasedTransformer(config)
    # Without transformer (Table 5) the heads read the resampled FPN features.
    return nn.Identity() if config.transformer == "none" else Transformer(config)
