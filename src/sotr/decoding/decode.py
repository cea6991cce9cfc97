"""From dense predictions to objects."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sotr.config import MASK_STRIDE, SOTRConfig
from sotr.decode_options import DecodeOptions
from sotr.decoding.matrix_nms import mask_nms, matrix_nms
from sotr.instances import Instances, encode_masks
from sotr.network import DensePredictions, mask_logits

UPSAMPLED_PIXELS = 16_000_000
"""Mask pixels that are upsampled at the same time; bounds memory whatever the number of objects."""


LEVEL_STRIDES = (8, 8, 16, 32, 32)
"""Strides of the levels as the released code counts them, P2 halved and P6 enlarged."""

CANDIDATES_AT_ONCE = 512
"""Candidates whose masks are held at the same time."""


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
    grid_areas = torch.tensor([grid * grid for grid in config.grids])
    strides_K = torch.tensor(LEVEL_STRIDES).repeat_interleave(grid_areas).to(scores_BKM.device)
    results = []
    for picture, (image_size, original_size) in enumerate(zip(image_sizes, original_sizes, strict=True)):
        objects = _select(
            scores_BKM[picture],
            predictions.kernels_BKD[picture].float(),
            predictions.mask_features_BEhw[picture].float(),
            strides_K,
            options,
        )
        rles = _rles(objects.mask_logits_Ihw, image_size, original_size, options)
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


def _select(
    scores_KM: Tensor, kernels_KD: Tensor, features_Ehw: Tensor, strides_K: Tensor, options: DecodeOptions
) -> _Objects:
    num_classes = scores_KM.shape[1]
    # Top-k has a fixed size; only then are the survivors of the threshold counted.
    scores_I, index_I = scores_KM.flatten().topk(min(options.max_candidates, scores_KM.numel()))
    candidates = scores_I > options.cell_threshold
    scores_I, index_I = scores_I[candidates], index_I[candidates]

    certainties, areas = [scores_I.new_zeros(0)], [scores_I.new_zeros(0)]
    for chunk in index_I.split(CANDIDATES_AT_ONCE):
        certainty, area = _certainty(mask_logits(kernels_KD[chunk // num_classes], features_Ehw), options)
        certainties.append(certainty)
        areas.append(area)
    scores_I = scores_I * torch.cat(certainties)
    least_I: float | Tensor = 0.0
    if options.min_area_strides:
        least_I = options.min_area_strides * strides_K[index_I // num_classes]
    real = torch.cat(areas) > least_I
    scores_I, index_I = scores_I[real], index_I[real]

    # The masks of those that enter NMS are made anew, so that no more than these are ever held together.
    scores_I, order = scores_I.sort(descending=True, stable=True)
    scores_I, index_I = scores_I[: options.max_nms], index_I[order[: options.max_nms]]
    labels_I = index_I % num_classes
    logits_Ihw = mask_logits(kernels_KD[index_I // num_classes], features_Ehw)
    masks_IL = logits_Ihw.flatten(1) > options.threshold_logit
    if options.nms == "mask":
        scores_I = mask_nms(masks_IL, labels_I, scores_I, options.nms_threshold)
    else:
        scores_I = matrix_nms(masks_IL, labels_I, scores_I, options.nms_sigma, options.nms)

    scores_I, best = scores_I.sort(descending=True, stable=True)
    kept = best[scores_I > options.score_threshold][: options.max_objects]
    return _Objects(scores_I[: len(kept)], labels_I[kept], logits_Ihw[kept])


def _certainty(logits_Ihw: Tensor, options: DecodeOptions) -> tuple[Tensor, Tensor]:
    """Mean probability inside each mask, how sure it is of itself (0 if it is empty), and its area in pixels."""
    masks_IL = logits_Ihw.flatten(1) > options.threshold_logit
    area_I = masks_IL.sum(1).float()
    return (logits_Ihw.flatten(1).sigmoid() * masks_IL).sum(1) / area_I.clamp(min=1), area_I


def _rles(
    logits_Ihw: Tensor, image_size: tuple[int, int], original_size: tuple[int, int], options: DecodeOptions
) -> list[dict[str, Any] | None]:
    """Resize masks to the original picture, threshold and compress them; None where no pixel is left."""
    if not len(logits_Ihw):
        return []
    h, w = logits_Ihw.shape[1:]
    padded = (h * MASK_STRIDE, w * MASK_STRIDE)
    largest = max(padded[0] * padded[1], original_size[0] * original_size[1])
    rles: list[dict[str, Any] | None] = []
    for chunk in logits_Ihw.split(max(1, UPSAMPLED_PIXELS // largest)):
        maps, level = chunk[None], options.threshold_logit
        if options.upsample == "probabilities":
            maps, level = maps.sigmoid(), options.mask_threshold
        maps = F.interpolate(maps, size=padded, mode="bilinear", align_corners=False)
        maps = maps[..., : image_size[0], : image_size[1]]
        if tuple(maps.shape[-2:]) != tuple(original_size):
            maps = F.interpolate(maps, size=original_size, mode="bilinear", align_corners=False)
        masks_IHW = maps[0] > level
        filled = masks_IHW.flatten(1).any(1)
        encoded = iter(encode_masks(masks_IHW[filled].cpu().numpy()))
        rles += [next(encoded) if any_pixel else None for any_pixel in filled.tolist()]
    return rles
