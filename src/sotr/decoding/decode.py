"""From dense predictions to objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sotr.config import SOTRConfig
from sotr.decoding.matrix_nms import matrix_nms
from sotr.errors import SOTRError
from sotr.instances import Instances, encode_masks
from sotr.network import DensePredictions, mask_logits

UPSAMPLED_PIXELS = 16_000_000
"""Mask pixels that are upsampled at the same time; bounds memory whatever the number of objects."""


@dataclass(frozen=True)
class DecodeOptions:
    """Thresholds and limits of decoding."""

    cell_threshold: float = 0.1
    """Class score, in 0..1, above which a cell is a candidate."""
    points_nms: bool = True
    """Keep a cell only if no better one is among the 2 x 2 cells up and left of it, per class and level."""
    max_candidates: int = 500
    """Candidates, best first, whose masks are made at all."""
    mask_threshold: float = 0.5
    """Probability, in 0..1, above which a pixel belongs to the object."""
    nms_sigma: float = 2.0
    """Sharpness of Matrix NMS's Gaussian decay."""
    score_threshold: float = 0.05
    """Final score, in 0..1, below which an object is dropped."""
    max_objects: int = 100
    """Objects, best first, that are returned."""

    def __post_init__(self) -> None:
        for name in ("cell_threshold", "score_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise SOTRError(f"{name} is {getattr(self, name)}; it must lie in 0..1")
        if not 0 < self.mask_threshold < 1:
            raise SOTRError(f"mask_threshold is {self.mask_threshold}; it must lie between 0 and 1")
        if self.max_candidates < 1 or self.max_objects < 1:
            raise SOTRError("max_candidates and max_objects must be at least 1")


class _Objects(NamedTuple):
    """Objects of one picture, best first, their masks still at the features' resolution."""

    scores_I: Tensor
    labels_I: Tensor
    mask_logits_Ihw: Tensor


@torch.no_grad()
def decode(
    predictions: DensePredictions,
    image_sizes: Sequence[tuple[int, int]],
    original_sizes: Sequence[tuple[int, int]],
    options: DecodeOptions,
    *,
    config: SOTRConfig,
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> list[Instances]:
    """The objects of each picture of a batch.

    Args:
        predictions: of B pictures.
        image_sizes: (h, w) of each picture as it entered the network, without padding.
        original_sizes: (h, w) of each picture's file, the size of the masks that are returned.
        options: thresholds and limits.
        config: the architecture that made the predictions.
        class_names: of the M classes.
        category_ids: of the M classes, as their data set numbers them.
    """
    scores_BKM = predictions.class_logits_BKM.float().sigmoid()
    if options.points_nms:
        scores_BKM = points_nms(scores_BKM, config.grids)
    results = []
    for picture, (image_size, original_size) in enumerate(zip(image_sizes, original_sizes, strict=True)):
        objects = _select(
            scores_BKM[picture],
            predictions.kernels_BKD[picture].float(),
            predictions.mask_features_BEhw[picture].float(),
            options,
        )
        rles = _rles(objects.mask_logits_Ihw, image_size, original_size, options.mask_threshold)
        # A mask of the features' resolution may hold no pixel of a smaller original.
        kept = [i for i, rle in enumerate(rles) if rle is not None]
        results.append(
            Instances.from_rles(
                objects.scores_I.cpu().numpy()[kept],
                objects.labels_I.cpu().numpy()[kept],
                [rle for rle in rles if rle is not None],
                tuple(class_names),
                tuple(category_ids),
                original_size,
            )
        )
    return results


def points_nms(scores_BKM: Tensor, grids: Sequence[int]) -> Tensor:
    """Zero the scores of cells that are not the best of the 2 x 2 block that ends at them, per class and level."""
    levels = []
    for level_BKM, grid in zip(scores_BKM.split([grid * grid for grid in grids], 1), grids, strict=True):
        level_BMNN = level_BKM.transpose(1, 2).unflatten(2, (grid, grid))
        best = F.max_pool2d(level_BMNN, 2, stride=1, padding=1)[..., :-1, :-1]
        levels.append((level_BMNN * (level_BMNN == best)).flatten(2).transpose(1, 2))
    return torch.cat(levels, 1)


def _select(scores_KM: Tensor, kernels_KD: Tensor, features_Ehw: Tensor, options: DecodeOptions) -> _Objects:
    num_classes = scores_KM.shape[1]
    # Top-k has a fixed size; only then are the survivors of the threshold counted.
    scores_I, index_I = scores_KM.flatten().topk(min(options.max_candidates, scores_KM.numel()))
    candidates = scores_I > options.cell_threshold
    scores_I, index_I = scores_I[candidates], index_I[candidates]
    labels_I = index_I % num_classes

    logits_Ihw = mask_logits(kernels_KD[index_I // num_classes], features_Ehw)
    probabilities_IL = logits_Ihw.sigmoid().flatten(1)
    masks_IL = probabilities_IL > options.mask_threshold
    area_I = masks_IL.sum(1)
    # Mean probability inside the mask: how sure the mask is of itself (zero for an empty mask).
    certainty_I = (probabilities_IL * masks_IL).sum(1) / area_I.clamp(min=1)
    scores_I, order = (scores_I * certainty_I).sort(descending=True, stable=True)
    scores_I = matrix_nms(masks_IL[order], labels_I[order], scores_I, options.nms_sigma)

    scores_I, best = scores_I.topk(min(options.max_objects, len(scores_I)))
    order = order[best]
    kept = (scores_I > options.score_threshold) & (area_I[order] > 0)
    order = order[kept]
    return _Objects(scores_I[kept], labels_I[order], logits_Ihw[order])


def _rles(
    logits_Ihw: Tensor, image_size: tuple[int, int], original_size: tuple[int, int], threshold: float
) -> list[dict[str, Any] | None]:
    """Upsample mask logits to the original picture, threshold and compress them; None where no pixel is left."""
    if not len(logits_Ihw):
        return []
    h, w = logits_Ihw.shape[1:]
    padded = (h * 4, w * 4)
    largest = max(padded[0] * padded[1], original_size[0] * original_size[1])
    rles: list[dict[str, Any] | None] = []
    # The logit of the threshold: comparing there saves a sigmoid over every pixel.
    level = float(np.log(threshold / (1 - threshold)))
    for chunk in logits_Ihw.split(max(1, UPSAMPLED_PIXELS // largest)):
        full = F.interpolate(chunk[None], size=padded, mode="bilinear", align_corners=False)
        full = full[..., : image_size[0], : image_size[1]]
        if tuple(full.shape[-2:]) != tuple(original_size):
            full = F.interpolate(full, size=original_size, mode="bilinear", align_corners=False)
        masks_IHW = full[0] > level
        filled = masks_IHW.flatten(1).any(1)
        encoded = iter(encode_masks(masks_IHW[filled].cpu().numpy()))
        rles += [next(encoded) if any_pixel else None for any_pixel in filled.tolist()]
    return rles
