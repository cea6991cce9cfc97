"""The mask loss on a sample of points instead of all pixels, most of them where it matters: near the outlines."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sotr.learning.dice import CELLS_AT_ONCE, dice_losses

NEAR_OUTLINE, INSIDE = 0.5, 0.25
"""Shares of an object's points that fall near its outline and on its own pixels; the rest falls anywhere."""

OBJECTS_AT_ONCE = 16
"""Objects whose chances are held for all pixels at the same time."""


def dice_sum_of_points(
    kernels_PD: Tensor, features_Dhw: Tensor, masks_Ihw: Tensor, objects_P: Tensor, scale: int, points: int
) -> Tensor:
    """An estimate of `dice_sum` from `points` pixels of each object; the arguments are the same.

    Each pixel counts by the inverse of its chance to be drawn, so that the sums in the loss have the right expectation.
    PyTorch's global random numbers of the device decide on the pixels.
    """
    pixels_In, weights_In = draw_points(masks_Ihw, points)
    masks_In = masks_Ihw.flatten(1).gather(1, pixels_In).float() / 255
    squares_I = (weights_In * masks_In.square()).sum(1)
    height, width = masks_Ihw.shape[1:]
    # Pixel centers in the -1..1 of `grid_sample`, which reads there just what upsampling would put there.
    places_In2 = torch.stack([(pixels_In % width + 0.5) / width, (pixels_In // width + 0.5) / height], 2) * 2 - 1

    def compare(kernels: Tensor, features: Tensor, objects: Tensor) -> Tensor:
        logits_Phw = (kernels @ features.flatten(1)).unflatten(1, features.shape[1:])
        with torch.autocast(logits_Phw.device.type, enabled=False):  # Dice in float32
            logits_Pn = F.grid_sample(
                logits_Phw.float()[:, None],
                places_In2[objects][:, None],
                mode="bilinear",
                padding_mode="border",
                align_corners=False,
            )[:, 0, 0]
            return dice_losses(logits_Pn, masks_In, objects, squares_I, weights_In).sum()

    total = squares_I.new_zeros(())
    chunks = kernels_PD.split(CELLS_AT_ONCE)
    for kernels, objects in zip(chunks, objects_P.split(CELLS_AT_ONCE), strict=True):
        if len(chunks) > 1 and torch.is_grad_enabled():  # the maps of one chunk at a time
            total = total + checkpoint(
                compare, kernels, features_Dhw, objects, use_reentrant=False, preserve_rng_state=False
            )
        else:
            total = total + compare(kernels, features_Dhw, objects)
    return total


def draw_points(masks_Ihw: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """(I, n) pixels of each object, and how many pixels each of them stands for."""
    drawn = [_draw_of_some(masks_ihw, points) for masks_ihw in masks_Ihw.split(OBJECTS_AT_ONCE)]
    pixels, weights = zip(*drawn, strict=True)
    return torch.cat(pixels), torch.cat(weights)


def _draw_of_some(masks_Ihw: Tensor, points: int) -> tuple[Tensor, Tensor]:
    covered = masks_Ihw.float() / 255
    # Within two pixels of the outline: the mask's largest and smallest values around differ.
    near = F.max_pool2d(covered, 5, 1, 2) + F.max_pool2d(-covered, 5, 1, 2) > 0
    inside = covered > 0
    chance_IL = torch.full_like(covered, (1 - NEAR_OUTLINE - INSIDE) / covered[0].numel()).flatten(1)
    for region, share in ((near.flatten(1), NEAR_OUTLINE), (inside.flatten(1), INSIDE)):
        chance_IL += region * (share / region.sum(1, keepdim=True).clamp(min=1))
    chance_IL /= chance_IL.sum(1, keepdim=True)  # an object that fills the image has no outline in it
    # One point in each n-th of the probability: a stratified sample, which varies far less than free draws.
    steps_n = torch.arange(points, device=covered.device)
    wanted_In = (steps_n + torch.rand(len(covered), points, device=covered.device)) / points
    total_IL = chance_IL.double().cumsum(1)
    pixels_In = torch.searchsorted(total_IL, wanted_In.double() * total_IL[:, -1:]).clamp(max=total_IL.shape[1] - 1)
    return pixels_In, 1 / (chance_IL.gather(1, pixels_In) * points)
