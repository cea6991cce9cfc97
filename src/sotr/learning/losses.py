"""The training signal: focal loss on the classes, Dice loss on the masks (sections 3.1 and 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import sigmoid_focal_loss

from sotr.config import MASK_STRIDE
from sotr.errors import SOTRError
from sotr.learning.assignment import Assignment
from sotr.learning.targets import Targets
from sotr.network import DensePredictions, mask_logits

MASKS_AT_ONCE = 256
"""Masks whose pixels are held for the backward pass at the same time; more are recomputed there, chunk by chunk."""


@dataclass(frozen=True)
class LossOptions:
    """Weights and shapes of the losses."""

    mask_weight: float = 3.0
    """Factor of the mask loss."""
    focal_alpha: float = 0.25
    """Weight of the positive class in the focal loss."""
    focal_gamma: float = 2.0
    """Focusing exponent of the focal loss."""
    mask_stride: int = 4
    """Pixels per side of a mask cell on which masks are compared: 4 is the features' own, 2 and 1 are finer."""

    def __post_init__(self) -> None:
        if self.mask_stride not in (1, 2, 4):
            raise SOTRError(f"mask_stride is {self.mask_stride}; choose 4, 2 or 1")


def sotr_losses(
    predictions: DensePredictions, targets: Sequence[Targets], assignment: Assignment, options: LossOptions
) -> dict[str, Tensor]:
    """The two weighted losses; their sum is what training minimises.

    Both are finite and connected to every output of the network even if no picture has an object. No value is read
    back from the device.

    Args:
        predictions: of a batch of B pictures.
        targets: the B pictures' objects, masks at stride `options.mask_stride`.
        assignment: of `targets`, on the device of the predictions.

    Returns:
        `loss_class`: focal loss, summed and divided by the number of positive cells + 1.
        `loss_mask`: `options.mask_weight` times the mean Dice loss of the positive cells.
    """
    masks = sum(assignment.counts)
    dice_P = _dice_of_cells(predictions, targets, assignment, options.mask_stride)
    loss_mask = dice_P.sum() * (options.mask_weight / max(masks, 1))
    if masks == 0:  # nothing to learn for masks, yet every parameter must get a gradient, of zero
        loss_mask = loss_mask + 0.0 * (predictions.kernels_BKD.sum() + predictions.mask_features_BEhw.sum()).float()
    focal = focal_loss_sum(predictions.class_logits_BKM, assignment.labels_BK, options)
    return {
        "loss_class": focal / (assignment.positives + 1),
        "loss_mask": loss_mask,
    }


def focal_loss_sum(class_logits_BKM: Tensor, labels_BK: Tensor, options: LossOptions) -> Tensor:
    """Focal loss (Lin et al. 2017) summed over cells and classes; label M is background."""
    num_classes = class_logits_BKM.shape[-1]
    one_hot = F.one_hot(labels_BK, num_classes + 1)[..., :num_classes].float()
    return sigmoid_focal_loss(
        class_logits_BKM.float(), one_hot, alpha=options.focal_alpha, gamma=options.focal_gamma, reduction="sum"
    )


def dice_losses(logits_PL: Tensor, masks_IL: Tensor, objects_P: Tensor, squares_I: Tensor) -> Tensor:
    """Dice loss with squared terms (Milletari et al. 2016) of each of P masks against its object's.

    Args:
        logits_PL: float32 mask logits, L pixels each.
        masks_IL: float32 coverage in 0..1 of the I objects.
        objects_P: the object that each mask should be.
        squares_I: sum of the squared coverage of each object.

    Returns:
        (P,) losses in 0..1.
    """
    probability_PL = logits_PL.sigmoid()
    # All overlaps in one product: picking each cell's own target first would copy a mask per cell.
    overlap_P = (probability_PL @ masks_IL.T).gather(1, objects_P[:, None])[:, 0]
    return 1 - 2 * overlap_P / (probability_PL.square().sum(1) + squares_I[objects_P]).clamp(min=1e-6)


def _dice_of_cells(
    predictions: DensePredictions, targets: Sequence[Targets], assignment: Assignment, mask_stride: int
) -> Tensor:
    """(P,) Dice losses of the positive cells."""
    scale = MASK_STRIDE // mask_stride
    losses = [predictions.kernels_BKD.new_zeros(0, dtype=torch.float32)]
    cells = assignment.cells_P.split(assignment.counts)
    objects = assignment.objects_P.split(assignment.counts)
    for picture, target in enumerate(targets):
        if not len(cells[picture]):
            continue
        kernels_PD = predictions.kernels_BKD[picture, cells[picture]]
        features_Ehw = predictions.mask_features_BEhw[picture]
        masks_IL = target.masks_Ihw.flatten(1).float() / 255
        squares_I = masks_IL.square().sum(1)
        kernel_chunks = kernels_PD.split(MASKS_AT_ONCE)
        for kernels, index in zip(kernel_chunks, objects[picture].split(MASKS_AT_ONCE), strict=True):
            arguments = (kernels, features_Ehw, masks_IL, index, squares_I, scale)
            if len(kernel_chunks) > 1 and torch.is_grad_enabled():
                losses.append(checkpoint(_dice_of_kernels, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                losses.append(_dice_of_kernels(*arguments))
    return torch.cat(losses)


def _dice_of_kernels(
    kernels_PD: Tensor, features_Ehw: Tensor, masks_IL: Tensor, objects_P: Tensor, squares_I: Tensor, scale: int
) -> Tensor:
    logits_Phw = mask_logits(kernels_PD, features_Ehw).float()
    if scale > 1:
        logits_Phw = F.interpolate(logits_Phw[None], scale_factor=scale, mode="bilinear", align_corners=False)[0]
    with torch.autocast(logits_Phw.device.type, enabled=False):  # Dice sums thousands of pixels: float32
        return dice_losses(logits_Phw.flatten(1), masks_IL, objects_P, squares_I)
