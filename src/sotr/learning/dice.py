"""The mask loss in one piece: dynamic convolution, upsampling and Dice, with their gradient, a few masks at a time.

Composed of PyTorch's functions, Dice of P cells at full resolution goes about ten times over P x H x W floats, forward
and backward, and keeps several of them. Here each mask is made, compared and differentiated while it is in the
processor's cache, and only the gradients of the kernels and the features are kept: their size does not depend on P. On
the way a mask stays in `scale` x `scale` phases of h x w pixels, so that upsampling needs no interleaving.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CELLS_AT_ONCE = 256
"""Cells whose mask logits, at the features' own size, are held at the same time."""
_CACHED = 2**17
"""Pixels worked on at the same time on a CPU: three such arrays of floats are about a core's cache."""
_UNCACHED = 2**25
"""The same elsewhere, where launching a kernel must be worth it."""
_LEAST = 1e-6
"""Dice divides by no less than this."""


def dice_losses(
    logits_PL: Tensor, masks_IL: Tensor, objects_P: Tensor, squares_I: Tensor, weights_IL: Tensor | None = None
) -> Tensor:
    """Dice loss with squared terms (Milletari et al. 2016) of each of P masks against its object's; the plain formula.

    Args:
        logits_PL: float32 mask logits, L pixels each.
        masks_IL: float32 coverage in 0..1 of the I objects.
        objects_P: the object that each mask should be.
        squares_I: sum of the squared coverage of each object.
        weights_IL: how many pixels each pixel stands for, where the L are a sample; None is one.

    Returns:
        (P,) losses in 0..1.
    """
    probability_PL = logits_PL.sigmoid()
    squares_PL = probability_PL.square()
    if weights_IL is not None:
        masks_IL, squares_PL = masks_IL * weights_IL, squares_PL * weights_IL[objects_P]
    # All overlaps in one product: picking each cell's own target first would copy a mask per cell.
    overlap_P = (probability_PL @ masks_IL.T).gather(1, objects_P[:, None])[:, 0]
    return 1 - 2 * overlap_P / (squares_PL.sum(1) + squares_I[objects_P]).clamp(min=_LEAST)


def dice_sum(kernels_PD: Tensor, features_Dhw: Tensor, masks_Ihw: Tensor, objects_P: Tensor, scale: int) -> Tensor:
    """Dice losses with squared terms (Milletari et al. 2016) of P cells' masks against their objects', summed.

    The same as `dice_losses` of the upsampled product of kernels and features, and as exact; differentiable once.

    Args:
        kernels_PD: the cells' kernels.
        features_Dhw: what they are multiplied with.
        masks_Ihw: uint8, the objects' coverage at `scale` times the features' size; 255 is all of a pixel.
        objects_P: the object that each cell's mask should be.
        scale: bilinear upsampling of the masks before they are compared.

    Returns:
        A scalar, of float32 unless the kernels are of float64.
    """
    return _DiceSum.apply(kernels_PD, features_Dhw, masks_Ihw, objects_P, scale, torch.is_grad_enabled())


class _DiceSum(torch.autograd.Function):
    """The loss is a plain sum, so its gradient can be made in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels_PD: Tensor,
        features_Dhw: Tensor,
        masks_Ihw: Tensor,
        objects_P: Tensor,
        scale: int,
        differentiate: bool,
    ) -> Tensor:
        device = kernels_PD.device.type
        # The product in the precision of the surroundings, as any other convolution; Dice in float32 or better.
        product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else kernels_PD.dtype
        exact = torch.float64 if product == torch.float64 else torch.float32
        # Not yet scaled by the loss's own gradient, these would vanish in float16.
        of_gradient = exact if product == torch.float16 else product
        with torch.autocast(device, enabled=False):
            kernels, features = kernels_PD.to(product), features_Dhw.to(product)
            flat_DL = features.flatten(1)
            phases_IssL = _phases(masks_Ihw, scale)
            squares_I = phases_IssL.to(exact).square_().sum((1, 2, 3)) / 255**2
            at_once = max(1, (_CACHED if device == "cpu" else _UNCACHED) // phases_IssL[0].numel())

            total = kernels.new_zeros((), dtype=exact)
            kernel_gradients = []
            feature_gradient_DL = torch.zeros_like(flat_DL, dtype=exact) if differentiate else None
            for chunk, objects in zip(kernels.split(CELLS_AT_ONCE), objects_P.split(CELLS_AT_ONCE), strict=True):
                logits_Phw = (chunk @ flat_DL).to(exact).unflatten(1, features.shape[1:])
                for some_phw, index in zip(logits_Phw.split(at_once), objects.split(at_once), strict=True):
                    targets_pssL = phases_IssL[index].to(exact)
                    total += _dice(some_phw, targets_pssL, squares_I[index], scale, differentiate)
                if feature_gradient_DL is not None:  # the logits are now their own gradient
                    gradient_PL = logits_Phw.flatten(1).to(of_gradient)
                    kernel_gradients.append(gradient_PL @ flat_DL.T.to(of_gradient))
                    feature_gradient_DL += chunk.T.to(of_gradient) @ gradient_PL
            if feature_gradient_DL is not None:
                ctx.save_for_backward(torch.cat(kernel_gradients), feature_gradient_DL.view(features_Dhw.shape))
                ctx.dtypes = kernels_PD.dtype, features_Dhw.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_kernels, of_features = ctx.saved_tensors
        kernels_dtype, features_dtype = ctx.dtypes
        return (of_kernels * gradient).to(kernels_dtype), (of_features * gradient).to(features_dtype), *[None] * 4


def _dice(logits_phw: Tensor, masks_pssL: Tensor, squares_p: Tensor, scale: int, differentiate: bool) -> Tensor:
    """The summed Dice losses; with `differentiate` the logits are replaced by their gradient, and the masks lost.

    With o = sum(p m) and d = sum(p^2) + sum(m^2) the loss is 1 - 2 o / d, and its derivative by p
    (4 o / d * p - 2 m) / d.
    """
    probability_pssL = _upsample(logits_phw, scale).sigmoid_()
    flat_p, flat_m = probability_pssL.flatten(1), masks_pssL.flatten(1)
    overlap_p = (flat_p[:, None] @ flat_m[:, :, None])[:, 0, 0] / 255
    denominator_p = (flat_p[:, None] @ flat_p[:, :, None])[:, 0, 0] + squares_p
    inverse_p = 1 / denominator_p.clamp(min=_LEAST)
    losses_p = 1 - 2 * overlap_p * inverse_p
    if differentiate:
        # Below the least the denominator is a constant.
        by_square_p = 4 * overlap_p * inverse_p.square() * (denominator_p > _LEAST)
        gradient_pL = flat_m.mul_((-2 / 255 * inverse_p)[:, None]).addcmul_(flat_p, by_square_p[:, None])
        gradient_pL.mul_(flat_p.addcmul_(flat_p, flat_p, value=-1))  # p (1 - p), the sigmoid's derivative
        logits_phw.copy_(_upsample_adjoint(gradient_pL.view_as(masks_pssL), logits_phw.shape[1:], scale))
    return losses_p.sum()


def _phases(masks_Ihw: Tensor, scale: int) -> Tensor:
    """(I, scale, scale, h * w): pixel (y, x) of phase (j, i) is pixel (scale y + j, scale x + i)."""
    height, width = masks_Ihw.shape[1] // scale, masks_Ihw.shape[2] // scale
    return masks_Ihw.view(-1, height, scale, width, scale).permute(0, 2, 4, 1, 3).contiguous().flatten(3)


def _weights(scale: int) -> list[tuple[int, float]]:
    """Of each phase the neighbor, -1 before or +1 after, from which bilinear upsampling takes, and its share."""
    offsets = [(phase + 0.5) / scale - 0.5 for phase in range(scale)]
    return [(-1 if offset < 0 else 1, abs(offset)) for offset in offsets]


def _upsample(values_phw: Tensor, scale: int) -> Tensor:
    """Bilinear upsampling without aligned corners, in phases: (p, scale, scale, h * w)."""
    if scale == 1:
        return values_phw.flatten(1)[:, None, None].clone()
    count, height, width = values_phw.shape
    padded = F.pad(values_phw, (1, 1, 1, 1), mode="replicate")
    middle = padded[:, :, 1:-1]
    result = values_phw.new_empty(count, scale, scale, height, width)
    for i, (beside, share) in enumerate(_weights(scale)):
        columns = torch.lerp(middle, padded[:, :, 1 + beside : 1 + beside + width], share)
        for j, (above, part) in enumerate(_weights(scale)):
            torch.lerp(columns[:, 1:-1], columns[:, 1 + above : 1 + above + height], part, out=result[:, j, i])
    return result.flatten(3)


def _upsample_adjoint(gradient_pssL: Tensor, size: torch.Size, scale: int) -> Tensor:
    """The gradient of what `_upsample` was given, (p, h, w), from that of its result."""
    if scale == 1:
        return gradient_pssL.view(-1, *size)
    count, (height, width) = len(gradient_pssL), size
    gradient = gradient_pssL.unflatten(3, (height, width))
    padded = gradient.new_zeros(count, height + 2, width + 2)
    for i, (beside, share) in enumerate(_weights(scale)):
        columns = gradient.new_zeros(count, height + 2, width)
        for j, (above, part) in enumerate(_weights(scale)):
            columns[:, 1:-1].add_(gradient[:, j, i], alpha=1 - part)
            columns[:, 1 + above : 1 + above + height].add_(gradient[:, j, i], alpha=part)
        padded[:, :, 1:-1].add_(columns, alpha=1 - share)
        padded[:, :, 1 + beside : 1 + beside + width].add_(columns, alpha=share)
    # The replicated border belongs to the pixels that it repeats.
    padded[:, 1] += padded[:, 0]
    padded[:, -2] += padded[:, -1]
    padded[:, :, 1] += padded[:, :, 0]
    padded[:, :, -2] += padded[:, :, -1]
    return padded[:, 1:-1, 1:-1]
