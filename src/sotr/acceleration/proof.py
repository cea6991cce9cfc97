"""The proof that a quick way computes what the plain one does: both on one small input, compared."""

import math
import warnings

import torch
from torch import Tensor

from sotr.acceleration.plain import Forward
from sotr.config import INPUT_DIVISOR
from sotr.errors import first_line

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference, relative to the plain output's norm, that rounding explains, by the type of products."""


def small_input(device: torch.device) -> Tensor:
    """One image of noise, (1, 3, 64, 96): the same for every proof."""
    generator = torch.Generator().manual_seed(0)
    size = (1, 3, 2 * INPUT_DIVISOR, 3 * INPUT_DIVISOR)
    return torch.randn(size, generator=generator, dtype=torch.float32, device="cpu").to(device)


@torch.no_grad()
def difference(quick: Forward, plain: Forward, device: torch.device) -> float:
    """The largest difference of an output from the plain one, relative to the norm of the latter; NaN counts as inf."""
    images_B3HW = small_input(device)
    pairs = zip(quick(images_B3HW), plain(images_B3HW), strict=True)
    found = [float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-6)) for a, b in pairs]
    return max(math.inf if math.isnan(each) else each for each in found)


def proven(quick: Forward, plain: Forward, device: torch.device, dtype: torch.dtype, name: str) -> bool:
    """Whether the quick way gives what the plain one gives; if not, or if it fails, one line of warning says so."""
    try:
        found = difference(quick, plain, device)
    except Exception as error:  # whatever a quick way does wrong, the plain one is still there
        give_way(name, f"it failed: {first_line(error)}")
        return False
    if found > TOLERANCES[dtype]:
        give_way(name, f"its predictions differ by {found:.1g} of their size")
        return False
    return True


def give_way(name: str, reason: str) -> None:
    """Warn that plain PyTorch goes on instead of the quick way `name`."""
    warnings.warn(f"predicts with plain PyTorch instead of {name}: {reason}", RuntimeWarning, stacklevel=3)
