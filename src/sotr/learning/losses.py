"""The training signal: focal loss on the classes, Dice loss on the masks (sections 3.1 and 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from sotr.errors import SOTRError
from sotr.learning.assignment import Assignment
from sotr.learning.dice import dice_sum
from sotr.learning.points import dice_sum_of_points
from sotr.learning.targets import Targets
from sotr.network import DensePredictions, convolved_features


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
    points: int = 0
    """Points per object on which masks are compared, half of them near its outline; 0 compares all pixels."""

    def __post_init__(self) -> None:
        if self.mask_stride not in (1, 2, 4):
            raise SOTRError(f"mask_stride is {self.mask_stride}; choose 4, 2 or 1")
        if self.points < 0:
            raise SOTRError(f"points is {self.points}; give a number of points per object, or 0 for all pixels")


class Normalisers(NamedTuple):
    """What the summed losses are divided by, where that is not counted in their own batch alone: scalars."""

    class_cells: Tensor
    masks: Tensor


def sotr_losses(
    predictions: DensePredictions,
    targets: Sequence[Targets],
    assignment: Assignment,
    options: LossOptions,
    normalisers: Normalisers | None = None,
) -> dict[str, Tensor]:
    """The two weighted losses; their sum is what training minimizes.

    Both are finite and connected to every output of the network even if no image has an object. No value is read
    back from the device.

    Args:
        predictions: of a batch of B images.
        targets: the B images' objects, masks at stride `options.mask_stride`.
        assignment: of `targets`, on the device of the predictions.
        normalisers: instead of the batch's own positive cells + 1 and masks (at least 1).

    Returns:
        `loss_class`: focal loss, summed and divided by the number of positive cells + 1.
        `loss_mask`: `options.mask_weight` times the mean Dice loss of the positive cells.
    """
    masks = sum(assignment.counts)
    dice = _dice_of_cells(predictions, targets, assignment, options)
    loss_mask = dice * (options.mask_weight / (max(masks, 1) if normalisers is None else normalisers.masks))
    if masks == 0:  # nothing to learn for masks, yet every parameter must get a gradient, of zero
        loss_mask = loss_mask + 0.0 * (predictions.kernels_BKD.sum() + predictions.mask_features_BEhw.sum()).float()
    focal = focal_loss_sum(predictions.class_logits_BKM, assignment.labels_BK, options)
    return {
        "loss_class": focal / (assignment.positives + 1 if normalisers is None else normalisers.class_cells),
        "loss_mask": loss_mask,
    }


def focal_loss_sum(class_logits_BKM: Tensor, labels_BK: Tensor, options: LossOptions) -> Tensor:
    """Focal loss (Lin et al. 2017) summed over cells and classes; label M is background."""
    num_classes = class_logits_BKM.shape[-1]
    one_hot = F.one_hot(labels_BK, num_classes + 1)[..., :num_classes].float()
    return sigmoid_focal_loss(
        class_logits_BKM.float(), one_hot, alpha=options.focal_alpha, gamma=options.focal_gamma, reduction="sum"
    )


def _dice_of_cells(
    predictions: DensePredictions, targets: Sequence[Targets], assignment: Assignment, options: LossOptions
) -> Tensor:
    """The summed Dice losses of the positive cells."""
    total = predictions.kernels_BKD.new_zeros((), dtype=torch.float32)
    # Indexing images one by one would make, and add up, a gradient of the whole batch for each of them.
    kernels_KD, features_Ehw = predictions.kernels_BKD.unbind(), predictions.mask_features_BEhw.unbind()
    cells = assignment.cells_P.split(assignment.counts)
    objects = assignment.objects_P.split(assignment.counts)
    for picture, target in enumerate(targets):
        if not len(cells[picture]):
            continue
        kernels_PD = kernels_KD[picture][cells[picture]]
        features_Dhw = convolved_features(features_Ehw[picture], kernels_PD.shape[1])
        compare = dice_sum if options.points == 0 else partial(dice_sum_of_points, points=options.points)
        # How much finer the truth is than the features.
        scale = target.masks_Ihw.shape[-1] // features_Dhw.shape[-1]
        total = total + compare(kernels_PD, features_Dhw, target.masks_Ihw, objects[picture], scale)
    return total
