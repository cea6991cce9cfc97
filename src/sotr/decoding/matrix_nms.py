"""Matrix NMS (Wang et al. 2020, SOLOv2), which the paper names for the final masks."""

import torch
from torch import Tensor


def matrix_nms(masks_IL: Tensor, labels_I: Tensor, scores_I: Tensor, sigma: float = 2.0) -> Tensor:
    """Lower the score of each mask by its overlap with better masks of its class, all at once.

    The decay of mask j is min over better masks i of its class of exp(-sigma * iou_ij^2) / exp(-sigma * c_i^2), where
    c_i is the largest overlap of i with a mask better than itself: a mask that is itself suppressed suppresses less.

    Args:
        masks_IL: bool masks, flattened, sorted by falling score.
        labels_I: class of each mask.
        scores_I: falling scores.
        sigma: sharpness of the Gaussian decay.

    Returns:
        (I,) decayed scores, in the order of the input.
    """
    count = len(scores_I)
    if count == 0:
        return scores_I
    masks = masks_IL.float()
    intersection_II = masks @ masks.T
    area_I = masks.sum(1)
    union_II = area_I[:, None] + area_I[None] - intersection_II
    iou_II = intersection_II / union_II.clamp(min=1)
    # Row i, column j: i is better than j and of its class.
    better_II = (labels_I[:, None] == labels_I[None]).triu(diagonal=1)
    iou_II = iou_II * better_II
    compensation_I = iou_II.amax(0)
    decay_II = torch.exp(-sigma * (iou_II.square() - compensation_I[:, None].square()))
    decay_II = torch.where(better_II, decay_II, decay_II.new_ones(()))
    return scores_I * decay_II.amin(0)
