"""From dense predictions to objects."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sotr.acceleration.cuda.compress import compress, to_host
from sotr.config import MASK_STRIDE, SOTRConfig
from sotr.decoding.matrix_nms import in_bytes, intersections, mask_nms, matrix_nms, overlaps
from sotr.decoding.options import DecodeOptions
from sotr.masks.compress import compress_on_host
from sotr.masks.resize import to_picture
from sotr.masks.run_lengths import Ints, encode_counts
from sotr.network import DensePredictions, mask_logits
from sotr.results.instances import Instances

UPSAMPLED_PIXELS = 64_000_000
"""Mask pixels that are upsampled at the same time on a GPU; bounds memory whatever the number of objects."""

HELD_PIXELS = 16_000_000
"""Mask pixels of the features' resolution that are held at the same time."""

LEVEL_STRIDES = (8, 8, 16, 32, 32)
"""Strides of the levels as the released code counts them, P2 halved and P6 enlarged."""

CANDIDATES_AT_ONCE = 512
"""Candidates whose masks are made at the same time."""

LOGITS_AT_ONCE = 1_000_000
"""Mask logits that are held at the same time on a CPU, about what its cache holds."""

BANDS_AT_ONCE = 8
"""Bands whose masks are kept to be multiplied at once, where that takes them as bytes; logits are of one band."""


class Found(NamedTuple):
    """Objects of one picture, best first, their masks still to be made; a score of 0 is none."""

    scores_I: Tensor
    labels_I: Tensor
    kernels_ID: Tensor
    features_Ehw: Tensor


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
    found = find(predictions, options, config)
    return finish(found, image_sizes, original_sizes, options, class_names=class_names, category_ids=category_ids)


@torch.no_grad()
def find(predictions: DensePredictions, options: DecodeOptions, config: SOTRConfig) -> list[Found]:
    """The first half of `decode`: what may be an object in each picture. Neither `score_threshold` nor `max_objects`
    counts yet, and nothing waits for a GPU or has sizes that depend on what is there."""
    scores_BKM = predictions.class_logits_BKM.float().sigmoid()
    if options.points_nms:
        scores_BKM = points_nms(scores_BKM, config.grids)
    strides_K = torch.cat(
        [scores_BKM.new_full((grid * grid,), stride) for grid, stride in zip(config.grids, LEVEL_STRIDES, strict=True)]
    )
    return [_select(*of_picture, strides_K, options) for of_picture in zip(scores_BKM, *predictions[1:], strict=True)]


def unpacked(found: Sequence[Found]) -> list[Tensor]:
    """The tensors of all pictures one after the other, as what is recorded returns them."""
    return [tensor for each in found for tensor in each]


def packed(tensors: Sequence[Tensor]) -> list[Found]:
    """What `unpacked` was given."""
    fields = len(Found._fields)
    return [Found(*tensors[first : first + fields]) for first in range(0, len(tensors), fields)]


@torch.no_grad()
def finish(
    found: Sequence[Found],
    image_sizes: Sequence[tuple[int, int]],
    original_sizes: Sequence[tuple[int, int]],
    options: DecodeOptions,
    *,
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> list[Instances]:
    """The second half of `decode`, with its arguments: masks of the objects that are kept, at the pictures' sizes."""
    results = []
    read = to_host(*(each.scores_I for each in found), *(each.labels_I for each in found))
    sizes = zip(image_sizes, original_sizes, strict=True)
    for each, (image_size, original_size), scores_I, labels_I in zip(
        found, sizes, read[: len(found)], read[len(found) :], strict=True
    ):
        count = min(int((scores_I > options.score_threshold).sum()), options.max_objects)
        rles, boxes_I4 = _rles(each.kernels_ID[:count], each.features_Ehw, image_size, original_size, options)
        # A mask of the features' resolution may hold no pixel of a smaller original.
        [empty] = encode_counts(np.array([original_size[0] * original_size[1]]), np.array([0, 1]))
        filled = [i for i, rle in enumerate(rles) if rle["counts"] != empty]
        instances = Instances.from_encoded(
            scores_I[:count].numpy()[filled],
            labels_I[:count].numpy()[filled],
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


def best_scores(scores_KM: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best scores, falling, and their places among all K M; fewer if there are fewer.

    No more cells than scores are asked for can hold them, those whose best class is best: few are sorted.
    """
    cells_J = scores_KM.amax(1).topk(min(count, len(scores_KM)), sorted=False).indices
    scores_JM = scores_KM.index_select(0, cells_J)
    scores_I, index_I = scores_JM.flatten().topk(min(count, scores_JM.numel()))
    num_classes = scores_KM.shape[1]
    return scores_I, cells_J[index_I // num_classes] * num_classes + index_I % num_classes


def on_host(device: torch.device) -> bool:
    """Whether the host reads numbers and masks for nothing. Then candidates are counted before their masks are made,
    which saves masks, and NumPy compresses those.

    Elsewhere candidates that fail take part with a score of 0, which suppresses nothing and is dropped at the end, and
    masks are compressed where they are.
    """
    return device.type != "cuda"


def _select(
    scores_KM: Tensor, kernels_KD: Tensor, features_Ehw: Tensor, strides_K: Tensor, options: DecodeOptions
) -> Found:
    num_classes = scores_KM.shape[1]
    # Only CUDA has products of 16 bits with results of 32.
    if not (features_Ehw.is_cuda and features_Ehw.dtype in (torch.float16, torch.bfloat16)):
        kernels_KD, features_Ehw = kernels_KD.float(), features_Ehw.float()
    # Top-k has a fixed size; those that pass the threshold come first.
    scores_I, index_I = best_scores(scores_KM, options.max_candidates)
    passing_I = scores_I > options.cell_threshold
    if on_host(scores_I.device):
        count = int(passing_I.sum())
        scores_I, index_I = scores_I[:count], index_I[:count]
    else:
        scores_I = torch.where(passing_I, scores_I, scores_I.new_zeros(()))
    candidates = len(scores_I)
    cells_I, labels_I = index_I // num_classes, index_I % num_classes
    if not candidates:
        return Found(scores_I, labels_I, kernels_KD[cells_I], features_Ehw)

    # A cell may be a candidate of several classes; its mask is made once.
    cells_U, cell_of_I = cells_I, torch.arange(candidates, device=cells_I.device)
    if on_host(scores_I.device):
        cells_U, cell_of_I = cells_I.unique(return_inverse=True)
    both_II, probabilities, areas = scores_I.new_empty(0), [], []
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
        iou_II = overlaps(both_II).index_select(0, cell_of_I).index_select(1, cell_of_I)
    else:  # only now it is known whose overlaps are needed
        iou_II = overlaps(_measure(kernels_ID, features_Ehw, options.threshold_logit)[1])
    if options.nms == "mask":
        scores_I = mask_nms(iou_II, labels_I, scores_I, options.nms_threshold)
    else:
        scores_I = matrix_nms(iou_II, labels_I, scores_I, options.nms_sigma, options.nms)

    scores_I, best = scores_I.sort(descending=True, stable=True)
    return Found(scores_I, labels_I[best], kernels_ID[best], features_Ehw)


def _measure(kernels_ID: Tensor, features_Ehw: Tensor, threshold_logit: float) -> tuple[Tensor, Tensor]:
    """The sum of probabilities inside each mask (I,), and the pixels that every pair has in common (I, I), a mask with
    itself its area. Logits are made a band of rows at a time, and no more of them than that is ever there."""
    count = len(kernels_ID)
    probability_I = kernels_ID.new_zeros(count, dtype=torch.float32)
    both_II = kernels_ID.new_zeros(count, count, dtype=torch.float32)
    w, bands = features_Ehw.shape[2], _bands(kernels_ID, features_Ehw)
    room = kernels_ID.new_empty(count * bands[0][1] * w) if len(bands) > 1 else None
    at_once = BANDS_AT_ONCE if in_bytes(features_Ehw.device) else 1
    room_for_masks = kernels_ID.new_empty(count * bands[:at_once][-1][1] * w, dtype=torch.bool)
    for together in [bands[i : i + at_once] for i in range(0, len(bands), at_once)]:
        (first, _), (_, last) = together[0], together[-1]
        masks_Ihw = room_for_masks[: count * (last - first) * w].view(count, last - first, w)
        for top, bottom in together:
            logits_Ihw = _logits(kernels_ID, features_Ehw[:, top:bottom], room)
            # Outside the probability becomes exactly 0, which says at once where that is.
            inside_Ihw = F.threshold(logits_Ihw, threshold_logit, -torch.inf, inplace=True).sigmoid_()
            probability_I += inside_Ihw.sum((1, 2))
            masks_Ihw[:, top - first : bottom - first] = inside_Ihw
        both_II += intersections(masks_Ihw.flatten(1))
    return probability_I, both_II


def _bands(kernels_ID: Tensor, features_Ehw: Tensor) -> list[tuple[int, int]]:
    """The rows [top, bottom) of the features of which logits are made at a time: all but on a CPU."""
    channels, h, w = features_Ehw.shape
    rows = h
    if features_Ehw.device.type == "cpu" and kernels_ID.shape[1] == channels:  # larger kernels see neighbouring rows
        rows = max(1, LOGITS_AT_ONCE // max(1, w * len(kernels_ID)))
    return [(top, min(top + rows, h)) for top in range(0, h, rows)]


def _logits(kernels_ID: Tensor, features_Ehw: Tensor, room: Tensor | None = None) -> Tensor:
    """The same as `mask_logits` in float32, by the quickest product there is, which may write over `room`."""
    channels, h, w = features_Ehw.shape
    if features_Ehw.dtype != torch.float32:
        if kernels_ID.shape[1] != channels:
            return mask_logits(kernels_ID.float(), features_Ehw.float())
        return torch.mm(kernels_ID, features_Ehw.flatten(1), out_dtype=torch.float32).unflatten(1, (h, w))
    if kernels_ID.shape[1] != channels or features_Ehw.stride(0) != 1:
        return mask_logits(kernels_ID, features_Ehw)
    out = None if room is None else room[: len(kernels_ID) * h * w].view(len(kernels_ID), h * w)
    return torch.mm(kernels_ID, features_Ehw.flatten(1), out=out).unflatten(1, (h, w))


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
    sizes = (h * MASK_STRIDE, w * MASK_STRIDE), image_size, original_size
    in_logits = options.upsample == "logits"
    level = options.threshold_logit if in_logits else options.mask_threshold
    pieces = []
    for kernels in kernels_ID.split(HELD_PIXELS // (h * w) + 1):
        maps_Ihw = _logits(kernels, features_Ehw)
        maps_Ihw = maps_Ihw if in_logits else maps_Ihw.sigmoid_()
        if on_host(features_Ehw.device):
            pieces.append(compress_on_host(maps_Ihw.cpu(), level, *sizes))
        else:
            parts = maps_Ihw.split(max(1, UPSAMPLED_PIXELS // (original_size[0] * original_size[1])))
            pieces += [compress(to_picture(part_Ihw, *sizes) > level) for part_Ihw in parts]
    rles = [{"size": list(original_size), "counts": text} for piece in pieces for text in piece.texts]
    return rles, np.concatenate([piece.boxes_I4 for piece in pieces])
