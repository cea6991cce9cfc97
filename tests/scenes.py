"""Objects and their targets, made in the plainest way, for tests of several rooms."""

import numpy as np
import torch

from sotr.learning import Targets


def make_targets(masks_IHW: torch.Tensor, labels_I: torch.Tensor, mask_stride: int) -> Targets:
    """Targets of whole masks, object by object, in the plainest way."""
    boxes, centers, coverages = [], [], []
    for mask in masks_IHW:
        rows, columns = torch.nonzero(mask, as_tuple=True)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        centers.append([columns.float().mean() + 0.5, rows.float().mean() + 0.5])
        blocks = mask.float().unfold(0, mask_stride, mask_stride).unfold(1, mask_stride, mask_stride)
        coverages.append((blocks.mean((2, 3)) * 255).round().to(torch.uint8))
    height, width = masks_IHW.shape[1:]
    return Targets(
        labels_I,
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(centers, dtype=torch.float32).reshape(-1, 2),
        torch.stack(coverages)
        if coverages
        else torch.zeros(0, height // mask_stride, width // mask_stride, dtype=torch.uint8),
    )


def random_masks(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """(count, height, width) bool: ellipses of all sizes, none empty."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks = []
    for _ in range(count):
        u = torch.rand(4, generator=generator)
        center_y, center_x = u[0] * height, u[1] * width
        radius_y, radius_x = 1 + u[2] ** 2 * height / 2, 1 + u[3] ** 2 * width / 2
        mask = ((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2 <= 1
        mask[int(center_y), int(center_x)] = True
        masks.append(mask)
    return torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool)


def discs(height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    """An image of bright discs on dark ground, as nuclei look under fluorescence."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    light = np.full((height, width), 18.0)
    for _ in range(count):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(5, 9)
        inside = np.clip(radius - np.hypot(y - cy, x - cx) + 0.5, 0, 1)
        light = np.maximum(light, inside * rng.uniform(120, 230))
    noisy = light + rng.normal(0, 3, light.shape)
    return np.repeat(np.clip(noisy, 0, 255).astype(np.uint8)[..., None], 3, 2)
