"""Suppression of masks that show the same object: Matrix NMS (Wang et al. 2020, SOLOv2), which the paper names, and
plain mask NMS for comparison."""

from functools import cache
from typing import Literal

import torch
from torch import Tensor


def matrix_nms(
    iou_II: Tensor,
    labels_I: Tensor,
    scores_I: Tensor,
    sigma: float = 2.0,
    kernel: Literal["gaussian", "linear"] = "gaussian",
) -> Tensor:
    """Lower the score of each mask by its overlap with better masks of its class, all at once.

    The decay of mask j is the least, over better masks i of its class, of f(iou_ij) / f(c_i), where c_i is the largest
    overlap of i with a mask better than itself: a mask that is itself suppressed suppresses less. Nothing branches on
    data, and dimensions may lead those that are named, so that it exports for batches too.

    Args:
        iou_II: overlaps of every pair of masks, sorted by falling score: see `mask_iou`.
        labels_I: class of each mask.
        scores_I: falling scores.
        sigma: sharpness of the Gaussian kernel.
        kernel: f is exp(-sigma iou^2) ("gaussian") or 1 - iou ("linear").

    Returns:
        (I,) decayed scores, in the order of the input.
    """
    if scores_I.shape[0] == 0:
        return scores_I
    # Row i, column j: i is better than j and of its class.
    better_II = (labels_I[..., :, None] == labels_I[..., None, :]).triu(diagonal=1)
    iou_II = iou_II * better_II
    compensation_I1 = iou_II.amax(-2)[..., None]
    if kernel == "gaussian":
        decay_II = torch.exp(-sigma * (iou_II.square() - compensation_I1.square()))
    else:
        decay_II = (1 - iou_II) / (1 - compensation_I1).clamp(min=1e-6)
    decay_II = torch.where(better_II, decay_II, decay_II.new_ones(()))
    return scores_I * decay_II.amin(-2).clamp(max=1)


def mask_nms(iou_II: Tensor, labels_I: Tensor, scores_I: Tensor, threshold: float = 0.5) -> Tensor:
    """Zero the score of each mask that overlaps a better mask of its class, itself kept, by more than `threshold`.

    Arguments and result are those of `matrix_nms`.
    """
    same_II = (labels_I[:, None] == labels_I[None]).triu(diagonal=1)
    suppresses_II = (iou_II > threshold) & same_II
    kept_I = torch.ones_like(scores_I, dtype=torch.bool)
    for i in range(len(scores_I)):  # each decision needs those before it
        kept_I &= ~(suppresses_II[i] & kept_I[i])
    return scores_I * kept_I


def mask_iou(masks_IL: Tensor) -> Tensor:
    """(I, I) intersection over union of every pair of bool masks, in one matrix product; 0 where both are empty."""
    return overlaps(intersections(masks_IL))


def overlaps(intersection_II: Tensor) -> Tensor:
    """(I, I) intersection over union, given what `intersections` counted."""
    area_I = intersection_II.diagonal(dim1=-2, dim2=-1)
    return intersection_II / (area_I[..., :, None] + area_I[..., None, :] - intersection_II).clamp(min=1)


def intersections(masks_IL: Tensor) -> Tensor:
    """(I, I) pixels, as float32, that every pair of masks has in common, on the diagonal their areas; exact below 2^24
    pixels."""
    # Bytes of 0 and 1 with sums of 32 bits are as exact as floats, a quarter of the memory and several times as quick
    # where the processor has instructions for them; an exporter knows floats only.
    if in_bytes(masks_IL.device) and masks_IL.ndim == 2 and len(masks_IL):
        bytes_IL = masks_IL.view(torch.int8)
        return torch._int_mm(bytes_IL, bytes_IL.T).float()
    # The same holds of 16 bits and sums of 32 on CUDA.
    if masks_IL.is_cuda and masks_IL.ndim == 2 and not torch.compiler.is_compiling():
        masks = masks_IL.half()
        return torch.mm(masks, masks.T, out_dtype=torch.float32)
    masks = masks_IL.float()
    return masks @ masks.mT


def in_bytes(device: torch.device) -> bool:
    """Whether `intersections` multiplies masks of a device as the bytes that they are."""
    return device.type == "cpu" and not torch.compiler.is_compiling() and _has_byte_products()


@cache
def _has_byte_products() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.cpu.get_capabilities().get("avx512_vnni"))
