"""Objects and their targets, made in the plainest way, for tests of several rooms."""

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
