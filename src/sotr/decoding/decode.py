"""From dense predictions to objects."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sotr.config import MASK_STRIDE, SOTRConfig
from sotr.decode_options import DecodeOptions
from sotr.decoding.matrix_nms import intersections, mask_nms, matrix_nms, overlaps
from sotr.decoding.resize import to_picture
from sotr.instances import Instances, encoded
from sotr.network import DensePredictions, mask_logits
from sotr.network.onednn import product
from sotr.rle import Ints, boxes_of_counts, encode_counts, joined_counts, mask_counts

UPSAMPLED_PIXELS = 16_000_000
"""Mask pixels that are upsampled at the same time; bounds memory whatever the number of objects."""

CACHED_PIXELS = 1_000_000
"""The same on a CPU, where what stays in its cache takes half the time."""

LEVEL_STRIDES = (8, 8, 16, 32, 32)
"""Strides of the levels as the released code counts them, P2 halved and P6 enlarged."""

CANDIDATES_AT_ONCE = 512
"""Candidates whose masks are made at the same time."""

LOGITS_AT_ONCE = 1_000_000
"""Mask logits that are held at the same time on a CPU, about what its cache holds."""


class _Objects(NamedTuple):
    """Objects of one picture, best first, their masks still to be made."""

    scores_I: Tensor
    labels_I: Tensor
    kernels_ID: Tensor


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
        features_Ehw = predictions.mask_features_BEhw[picture].float()
        objects = _select(
            scores_BKM[picture], predictions.kernels_BKD[picture].float(), features_Ehw, strides_K, options
        )
        rles, boxes_I4 = _rles(objects.kernels_ID, features_Ehw, image_size, original_size, options)
        # A mask of the features' resolution may hold no pixel of a smaller original.
        [empty] = encode_counts(np.array([original_size[0] * original_size[1]]), np.array([0, 1]))
        filled = [i for i, rle in enumerate(rles) if rle["counts"] != empty]
        instances = Instances.from_encoded(
            objects.scores_I.cpu().numpy()[filled],
            objects.labels_I.cpu().numpy()[filled],
            [rles[i] for i in filled],
            boxes_I4[filled],
            tuple(class_names),
            tuple(category_ids),
            original_size,
        )
        results.append(instances)
    return results


def points_nms(scores_BKM: Tensor, grids: Sequence[int]) -> Tensor:
    """Zero the scores of cells that are not the best of the 2 x 2 block that ends at them, per class and level."""
    levels = []
    for level_BKM, grid in zip(scores_BKM.split([grid * grid for grid in grids], 1), grids, strict=True):
        level_BNNM = level_BKM.unflatten(1, (grid, grid))
        # Rows, then columns: a tenth of the time of a pooling layer, which would want the classes first.
        above = torch.maximum(level_BNNM[:, 1:], level_BNNM[:, :-1])
        best = torch.cat([level_BNNM[:, :1], above], 1)
        best = torch.cat([best[:, :, :1], torch.maximum(best[:, :, 1:], best[:, :, :-1])], 2)
        levels.append((level_BNNM * (level_BNNM == best)).flatten(1, 2))
    return torch.cat(levels, 1)


def counts_at_once(device: torch.device) -> bool:
    """Whether candidates are counted before their masks are made, which saves masks where waiting for a number is free.

    Elsewhere those that fail take part with a score of 0, which suppresses nothing and is dropped at the end.
    """
    return device.type == "cpu"


def _select(
    scores_KM: Tensor, kernels_KD: Tensor, features_Ehw: Tensor, strides_K: Tensor, options: DecodeOptions
) -> _Objects:
    num_classes = scores_KM.shape[1]
    # Top-k has a fixed size; those that pass the threshold come first.
    scores_I, index_I = scores_KM.flatten().topk(min(options.max_candidates, scores_KM.numel()))
    passing_I = scores_I > options.cell_threshold
    if counts_at_once(scores_I.device):
        count = int(passing_I.sum())
        scores_I, index_I = scores_I[:count], index_I[:count]
    else:
        scores_I = torch.where(passing_I, scores_I, scores_I.new_zeros(()))
    candidates = len(scores_I)
    cells_I, labels_I = index_I // num_classes, index_I % num_classes
    if not candidates:
        return _Objects(scores_I, labels_I, kernels_KD[cells_I])

    # A cell may be a candidate of several classes; its mask is made once.
    cells_U, cell_of_I = cells_I, torch.arange(candidates, device=cells_I.device)
    if counts_at_once(scores_I.device):
        cells_U, cell_of_I = cells_I.unique(return_inverse=True)
    both_II, probabilities, areas = torch.empty(0), [], []
    for chunk in cells_U.split(CANDIDATES_AT_ONCE):
        probability, both_II = _measure(kernels_KD[chunk], features_Ehw, options.threshold_logit)
        probabilities.append(probability)
        areas.append(both_II.diagonal().clone())  # a view would hold the overlaps of every chunk
    probability_I, area_I = torch.cat(probabilities)[cell_of_I], torch.cat(areas)[cell_of_I]
    # The mean probability inside the mask, how sure it is of itself; 0 if it is empty.
    certainty_I = probability_I / area_I.clamp(min=1)
    least_I: float | Tensor = 0.0
    if options.min_area_strides:
        least_I = options.min_area_strides * strides_K[cells_I]
    # What is dropped keeps its place, the last, so that nothing has to be counted before the end.
    scores_I = torch.where(area_I > least_I, scores_I * certainty_I, scores_I.new_zeros(()))

    scores_I, order = scores_I.sort(descending=True, stable=True)
    scores_I, order = scores_I[: options.max_nms], order[: options.max_nms]
    labels_I, kernels_ID = labels_I[order], kernels_KD[cells_I[order]]
    if len(areas) == 1:
        cell_of_I = cell_of_I[order]
        iou_II = overlaps(both_II)[cell_of_I][:, cell_of_I]
    else:  # only now it is known whose overlaps are needed
        iou_II = overlaps(_measure(kernels_ID, features_Ehw, options.threshold_logit)[1])
    if options.nms == "mask":
        scores_I = mask_nms(iou_II, labels_I, scores_I, options.nms_threshold)
    else:
        scores_I = matrix_nms(iou_II, labels_I, scores_I, options.nms_sigma, options.nms)

    scores_I, best = scores_I.sort(descending=True, stable=True)
    kept = best[scores_I > options.score_threshold][: options.max_objects]
    return _Objects(scores_I[: len(kept)], labels_I[kept], kernels_ID[kept])


def _measure(kernels_ID: Tensor, features_Ehw: Tensor, threshold_logit: float) -> tuple[Tensor, Tensor]:
    """The sum of probabilities inside each mask (I,), and the pixels that every pair has in common (I, I), a mask with
    itself its area. Masks are made a band of rows at a time, and no more of them than that is ever there."""
    probability_I = kernels_ID.new_zeros(len(kernels_ID))
    both_II = kernels_ID.new_zeros(len(kernels_ID), len(kernels_ID))
    bands = _bands(kernels_ID, features_Ehw)
    room = kernels_ID.new_empty(len(kernels_ID) * bands[0][1] * features_Ehw.shape[2]) if len(bands) > 1 else None
    for top, bottom in bands:
        logits_IL = _logits(kernels_ID, features_Ehw[:, top:bottom], room).flatten(1)
        # Outside the probability becomes exactly 0, which says at once where that is.
        inside_IL = F.threshold(logits_IL, threshold_logit, -torch.inf, inplace=True).sigmoid_()
        probability_I += inside_IL.sum(1)
        both_II += intersections(inside_IL.bool())
    return probability_I, both_II


def _bands(kernels_ID: Tensor, features_Ehw: Tensor) -> list[tuple[int, int]]:
    """The rows [top, bottom) of the features of which logits are made at a time: all but on a CPU."""
    channels, h, w = features_Ehw.shape
    rows = h
    if features_Ehw.device.type == "cpu" and kernels_ID.shape[1] == channels:  # larger kernels see neighbouring rows
        rows = max(1, LOGITS_AT_ONCE // max(1, w * len(kernels_ID)))
    return [(top, min(top + rows, h)) for top in range(0, h, rows)]


def _logits(kernels_ID: Tensor, features_Ehw: Tensor, room: Tensor | None = None) -> Tensor:
    """The same as `mask_logits`, by the quickest product there is, which may write over `room`."""
    channels, h, w = features_Ehw.shape
    if kernels_ID.shape[1] != channels or features_Ehw.stride(0) != 1:
        return mask_logits(kernels_ID, features_Ehw)
    return product(kernels_ID, features_Ehw.permute(1, 2, 0).flatten(0, 1), room).unflatten(1, (h, w))


def _rles(
    kernels_ID: Tensor,
    features_Ehw: Tensor,
    image_size: tuple[int, int],
    original_size: tuple[int, int],
    options: DecodeOptions,
) -> tuple[list[dict[str, Any]], Ints]:
    """Make masks, resize them to the original picture, threshold and compress them; and their boxes (I, 4), xyxy."""
    if not len(kernels_ID):
        return [], np.zeros((0, 4), np.int64)
    h, w = features_Ehw.shape[1:]
    padded = (h * MASK_STRIDE, w * MASK_STRIDE)
    at_once = UPSAMPLED_PIXELS
    if features_Ehw.device.type == "cpu":
        at_once = CACHED_PIXELS
    in_logits = options.upsample == "logits"
    level = options.threshold_logit if in_logits else options.mask_threshold
    pieces, rows = [], []
    for kernels in kernels_ID.split(UPSAMPLED_PIXELS // (h * w) + 1):
        for maps_Ihw in _logits(kernels, features_Ehw).split(max(1, at_once // (original_size[0] * original_size[1]))):
            maps_Ihw = maps_Ihw if in_logits else maps_Ihw.sigmoid()
            masks_IWH = to_picture(maps_Ihw, padded, image_size, original_size).gt_(level).bool()
            dense_IWH = masks_IWH.cpu().numpy()
            pieces.append(mask_counts(dense_IWH))
            rows.append(dense_IWH.any(1))
    counts = joined_counts(pieces)
    return encoded(*counts, original_size), boxes_of_counts(*counts, np.concatenate(rows), original_size[1])
