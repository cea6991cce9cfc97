"""SOTR: Figure 2 of the paper, from left to right."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sotr.config import INPUT_DIVISOR, SOTRConfig
from sotr.network.backbone import FPN, Backbone
from sotr.network.heads import ClassHead, KernelHead
from sotr.network.mask_features import MaskFeatures
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
        self.backbone = Backbone(config.backbone)
        self.fpn = FPN(self.backbone.channels, config.width)
        self.transformer = Transformer(
            config.width, config.depth, config.heads, config.mlp_ratio, table_size=max(config.grids)
        )
        self.class_head = ClassHead(config.width, config.num_classes)
        self.kernel_head = KernelHead(config.width, config.kernel_parameters)
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

        p2, p3, p4, p5, p6 = self.fpn(self.backbone(images_B3HW))

        class_logits, kernels = [], []
        for feature, grid in zip((p2, p3, p4, p5, p6), self.config.grids, strict=True):
            patches_BCNN = F.interpolate(feature, size=(grid, grid), mode="bilinear", align_corners=False)
            cells_BKC = self.transformer(patches_BCNN).flatten(2).transpose(1, 2)
            class_logits.append(self.class_head(cells_BKC))
            kernels.append(self.kernel_head(cells_BKC))

        mask_features_BEhw = self.mask_features([p2, p3, p4, self.transformer(p5)])
        return DensePredictions(torch.cat(class_logits, 1), torch.cat(kernels, 1), mask_features_BEhw)
