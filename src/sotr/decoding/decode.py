"""From dense predictions to objects (section 3.2 and Matrix NMS), in bounded memory."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sotr.config import MASK_STRIDE, SOTRConfig
from sotr.decode_options import DecodeOptions
from sotr.decoding.matrix_nms import intersections, mask_nms, matrix_nms, overlaps
from sotr.masks.compress import Compress, Compressed, compress_on_host
from sotr.masks.run_lengths import encode_counts
from sotr.network import DensePredictions, mask_logits
from sotr.results.instances import Instances

LEVEL_STRIDES = (8, 8, 16, 32, 32)
"""Strides of the levels as the released code counts them, P2 halved and P6 enlarged."""

CANDIDATES_AT_ONCE = 512
"""Candidates whose masks are made at the same time."""

LOGITS_AT_ONCE = 1_000_000
"""Mask logits that are held at the same time, about what a CPU's cache holds."""

HELD_LOGITS = 16_000_000
"""Mask logits of kept objects that are held at the same time."""


class Found(NamedTuple):
    """Objects of one image, best first, whose masks are still to be made."""

    scores_I: Tensor
    labels_I: Tensor
    kernels_ID: Tensor
    features_Ehw: Tensor
    stride: int
    """Pixels of the network's input per pixel of the features."""


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
    compress: Compress = compress_on_host,
) -> list[Instances]:
    """The objects of each image of a batch.

    Args:
        predictions: of B images.
        image_sizes: (h, w) of each image as it entered the network, without padding.
        original_sizes: (h, w) of each image's file, the size of the masks that are returned.
        options: thresholds and limits.
        config: the architecture that made the predictions.
        class_names: of the M classes.
        category_ids: of the M classes, as their data set numbers them.
        compress: turns mask logits into compressed masks; a device may have a quicker one.
    """
    found = find(predictions, options, config)
    return finish(
        found,
        image_sizes,
        original_sizes,
        options,
        class_names=class_names,
        category_ids=category_ids,
        compress=compress,
    )


@torch.no_grad()
def find(predictions: DensePredictions, options: DecodeOptions, config: SOTRConfig) -> list[Found]:
    """The first half of `decode`: the objects of each image, without their masks."""
    scores_BKM = predictions.class_logits_BKM.float().sigmoid()
    if options.points_nms:
        scores_BKM = points_nms(scores_BKM, config.grids)
    strides = [stride for stride, grid in zip(LEVEL_STRIDES, config.grids, strict=True) for _ in range(grid * grid)]
    strides_K = torch.tensor(strides, device=scores_BKM.device)
    kernels_BKD, features_BEhw = predictions.kernels_BKD.float(), predictions.mask_features_BEhw.float()
    return [
        _select(scores_KM, kernels_KD, features_Ehw, strides_K, options, config.mask_feature_stride)
        for scores_KM, kernels_KD, features_Ehw in zip(scores_BKM, kernels_BKD, features_BEhw, strict=True)
    ]


def _select(
    scores_KM: Tensor,
    kernels_KD: Tensor,
    features_Ehw: Tensor,
    strides_K: Tensor,
    options: DecodeOptions,
    feature_stride: int,
) -> Found:
    """The objects of one image: candidates by class score, their certainty, NMS, the best."""
    num_classes = scores_KM.shape[1]
    scores_I, index_I = scores_KM.flatten().topk(min(options.max_candidates, scores_KM.numel()))
    passing = int((scores_I > options.cell_threshold).sum())
    scores_I, index_I = scores_I[:passing], index_I[:passing]
    if not passing:
        return Found(scores_I, index_I, kernels_KD[:0], features_Ehw, feature_stride)
    cells_I, labels_I = index_I // num_classes, index_I % num_classes

    # A cell may be a candidate of several classes; its mask is made once.
    cells_U, of_cell_I = cells_I.unique(return_inverse=True)
    chunks = [measure(kernels_KD[cells], features_Ehw, options) for cells in cells_U.split(CANDIDATES_AT_ONCE)]
    certainty_U = torch.cat([chunk.certainty_P for chunk in chunks])
    area_U = torch.cat([chunk.intersections_PP.diagonal() for chunk in chunks]) * (feature_stride / MASK_STRIDE) ** 2
    scores_I = scores_I * certainty_U[of_cell_I]
    scores_I = scores_I * (area_U[of_cell_I] > options.min_area_strides * strides_K[cells_I])

    order_I = scores_I.argsort(descending=True, stable=True)[: options.max_nms]
    order_I = order_I[scores_I[order_I] > 0]
    scores_I, labels_I, kernels_ID = scores_I[order_I], labels_I[order_I], kernels_KD[cells_I[order_I]]
    if len(chunks) == 1:
        of_cell_I = of_cell_I[order_I]
        iou_II = overlaps(chunks[0].intersections_PP)[of_cell_I][:, of_cell_I]
    else:  # only now it is known which overlaps are needed
        iou_II = overlaps(measure(kernels_ID, features_Ehw, options).intersections_PP)
    if options.nms == "mask":
        scores_I = mask_nms(iou_II, labels_I, scores_I, options.nms_threshold)
    else:
        scores_I = matrix_nms(iou_II, labels_I, scores_I, options.nms_sigma, options.nms)

    best_I = scores_I.argsort(descending=True, stable=True)[: options.max_objects]
    best_I = best_I[scores_I[best_I] > options.score_threshold]
    return Found(scores_I[best_I], labels_I[best_I], kernels_ID[best_I], features_Ehw, feature_stride)


def points_nms(scores_BKM: Tensor, grids: Sequence[int]) -> Tensor:
    """Zero the scores of cells that are not the best of the 2 x 2 block that ends at them, per class and level."""
    levels = []
    for level_BKM, grid in zip(scores_BKM.split([grid * grid for grid in grids], 1), grids, strict=True):
        level_BNNM = level_BKM.unflatten(1, (grid, grid))
        # Rows, then columns: a pooling layer would want the classes first and take ten times as long.
        above = torch.maximum(level_BNNM[:, 1:], level_BNNM[:, :-1])
        best = torch.cat([level_BNNM[:, :1], above], 1)
        best = torch.cat([best[:, :, :1], torch.maximum(best[:, :, 1:], best[:, :, :-1])], 2)
        levels.append((level_BNNM * (level_BNNM == best)).flatten(1, 2))
    return torch.cat(levels, 1)


class Measured(NamedTuple):
    """What the masks of P cells are like, at the mask features' resolution."""

    certainty_P: Tensor
    """Mean probability inside each mask; 0 if it is empty."""
    intersections_PP: Tensor
    """Pixels that every pair of masks has in common; a mask with itself its area."""


def measure(kernels_PD: Tensor, features_Ehw: Tensor, options: DecodeOptions) -> Measured:
    """Make the masks of P cells, a band of rows at a time, and measure them."""
    count, (channels, h, w) = len(kernels_PD), features_Ehw.shape
    probability_P = kernels_PD.new_zeros(count)
    intersections_PP = kernels_PD.new_zeros(count, count)
    # Kernels of 3 x 3 see neighboring rows, so their logits are made at once.
    rows = h if kernels_PD.shape[1] > channels else max(1, LOGITS_AT_ONCE // max(1, w * count))
    for band_Ehw in features_Ehw.split(rows, 1):
        logits_PL = mask_logits(kernels_PD, band_Ehw).flatten(1)
        masks_PL = logits_PL > options.threshold_logit
        probability_P += (logits_PL.sigmoid() * masks_PL).sum(1)
        intersections_PP += intersections(masks_PL)
    return Measured(probability_P / intersections_PP.diagonal().clamp(min=1), intersections_PP)


@torch.no_grad()
def finish(
    found: Sequence[Found],
    image_sizes: Sequence[tuple[int, int]],
    original_sizes: Sequence[tuple[int, int]],
    options: DecodeOptions,
    *,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    compress: Compress = compress_on_host,
) -> list[Instances]:
    """The second half of `decode`, with its arguments: masks of the objects, at the images' original sizes."""
    results = []
    for each, image_size, original_size in zip(found, image_sizes, original_sizes, strict=True):
        masks = _compressed(each, image_size, original_size, options, compress)
        # A mask of the features' resolution may hold no pixel of a smaller original.
        [empty] = encode_counts(np.array([original_size[0] * original_size[1]]), np.array([0, 1]))
        filled = [i for i, text in enumerate(masks.texts) if text != empty]
        instances = Instances.from_encoded(
            each.scores_I.cpu().numpy()[filled],
            each.labels_I.cpu().numpy()[filled],
            [{"size": list(original_size), "counts": masks.texts[i]} for i in filled],
            masks.boxes_I4[filled],
            tuple(class_names),
            tuple(category_ids),
            original_size,
        )
        results.append(instances)
    return results


def _compressed(
    found: Found,
    image_size: tuple[int, int],
    original_size: tuple[int, int],
    options: DecodeOptions,
    compress: Compress,
) -> Compressed:
    """Make the masks of an image's objects, resize them to the original image, threshold and compress them."""
    h, w = found.features_Ehw.shape[1:]
    sizes = (h * found.stride, w * found.stride), image_size, original_size
    in_logits = options.upsample == "logits"
    level = options.threshold_logit if in_logits else options.mask_threshold
    pieces = [Compressed([], np.zeros((0, 4), np.int64))]
    if len(found.kernels_ID):
        for kernels_ID in found.kernels_ID.split(HELD_LOGITS // (h * w) + 1):
            maps_Ihw = mask_logits(kernels_ID, found.features_Ehw)
            pieces.append(compress(maps_Ihw if in_logits else maps_Ihw.sigmoid_(), level, *sizes))
    texts = [text for piece in pieces for text in piece.texts]
    return Compressed(texts, np.concatenate([piece.boxes_I4 for piece in pieces]))
