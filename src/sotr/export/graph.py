"""The network with its decoding as one graph: batched, of tensors only, without loops."""

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sotr.config import SOTRConfig
from sotr.decode_options import DecodeOptions
from sotr.decoding.decode import LEVEL_STRIDES, points_nms
from sotr.decoding.matrix_nms import mask_iou, matrix_nms
from sotr.network import SOTR, DensePredictions


class BatchedObjects(NamedTuple):
    """Objects of B images, best first; those of an image after its first `count` are padding."""

    scores_BI: Tensor
    labels_BI: Tensor
    mask_logits_BIhw: Tensor
    count_B: Tensor


class SegmentationGraph(nn.Module):
    """Images -> objects, with the steps of `sotr.decoding.decode` for a whole batch at once.

    Where `decode` drops what it no longer needs, image by image, this sets its score to zero: a score of zero sorts
    last, so it can suppress no object, and is below every threshold. What all images of the batch can do without is
    cut off: of `max_candidates` sorted scores few are over the threshold, and masks are made of these only.
    """

    strides_K: Tensor

    def __init__(self, network: SOTR, options: DecodeOptions) -> None:
        super().__init__()
        self.network = network
        self.config: SOTRConfig = network.config
        self.options = options
        areas = torch.tensor([grid * grid for grid in self.config.grids])
        strides_K = torch.tensor(LEVEL_STRIDES).repeat_interleave(areas)
        self.register_buffer("strides_K", strides_K, persistent=False)

    def forward(self, images_B3HW: Tensor) -> BatchedObjects:
        """As `SOTR.forward`, but with decisions."""
        options = self.options
        predictions: DensePredictions = self.network(images_B3HW)
        scores_BKM = predictions.class_logits_BKM.sigmoid()
        if options.points_nms:
            scores_BKM = points_nms(scores_BKM, self.config.grids)
        scores_BI, index_BI = scores_BKM.flatten(1).topk(
            min(options.max_candidates, self.config.num_cells * self.config.num_classes)
        )
        scores_BI = torch.where(scores_BI > options.cell_threshold, scores_BI, 0.0)
        # At least one: the maximum over no object is not defined.
        candidates = _most(scores_BI > 0, 1)
        scores_BI, index_BI = scores_BI[:, :candidates], index_BI[:, :candidates]

        labels_BI, cells_BI = index_BI % self.config.num_classes, index_BI // self.config.num_classes
        logits_BIhw = _mask_logits(
            _take(predictions.kernels_BKD, cells_BI), predictions.mask_features_BEhw, self.config.kernel_size
        )
        logits_BIL = logits_BIhw.flatten(2)
        masks_BIL = logits_BIL > options.threshold_logit
        area_BI = masks_BIL.sum(2).float()
        # Certainty, the mean probability inside the mask; 0 if it is empty.
        scores_BI = scores_BI * (logits_BIL.sigmoid() * masks_BIL).sum(2) / area_BI.clamp(min=1)
        if options.min_area_strides:
            least_BI = options.min_area_strides * self.strides_K[cells_BI]
            scores_BI = torch.where(area_BI > least_BI, scores_BI, 0.0)

        # A full top-k is a sort; of equal scores ONNX's, like a stable sort, takes the first one first.
        scores_BI, order_BI = scores_BI.topk(scores_BI.shape[1])
        if options.max_nms < options.max_candidates:
            scores_BI, order_BI = scores_BI[:, : options.max_nms], order_BI[:, : options.max_nms]
        labels_BI, masks_BIL = _take(labels_BI, order_BI), _take(masks_BIL, order_BI)
        kernel: Literal["gaussian", "linear"] = "linear" if options.nms == "linear" else "gaussian"
        scores_BI = matrix_nms(mask_iou(masks_BIL), labels_BI, scores_BI, options.nms_sigma, kernel)

        scores_BI, best_BI = scores_BI.topk(scores_BI.shape[1])
        found_BI = scores_BI > options.score_threshold
        objects = _most(found_BI[:, : options.max_objects], 0)
        best_BI = best_BI[:, :objects]
        chosen_BI = _take(order_BI, best_BI)
        return BatchedObjects(
            scores_BI[:, :objects],
            _take(labels_BI, best_BI),
            _take(logits_BIhw, chosen_BI),
            found_BI.sum(1).clamp(max=options.max_objects),
        )


def _most(wanted_BI: Tensor, least: int) -> int:
    """The largest number of wanted ones among the images, at least `least`: a number that depends on the data."""
    # Not int(...): for the tracer this is a symbol.
    most = cast(int, wanted_BI.sum(1).amax(0).clamp(min=least).item())
    torch._check(most >= least)
    torch._check(most <= wanted_BI.shape[1])
    return most


def _take(values: Tensor, index_BI: Tensor) -> Tensor:
    """Of each image the rows, along dimension 1, that `index_BI` names."""
    pictures, rows = values.shape[:2]
    first_B1 = rows * torch.arange(pictures, device=values.device)[:, None]
    # Whole rows of all images: an index per row, where `gather` would want one per element.
    return values.flatten(0, 1)[index_BI + first_B1]


def _mask_logits(kernels_BID: Tensor, features_BEhw: Tensor, kernel_size: int) -> Tensor:
    """`sotr.network.mask_logits` of a batch, as one matrix product: (B, I, h, w)."""
    neighbours_BDL = (
        features_BEhw.flatten(2) if kernel_size == 1 else F.unfold(features_BEhw, kernel_size, padding=kernel_size // 2)
    )
    return (kernels_BID @ neighbours_BDL).unflatten(2, features_BEhw.shape[2:])
