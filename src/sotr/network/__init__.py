"""The network: Figure 2 of the paper, box by box."""

from sotr.network.dynamic_convolution import convolved_features, mask_logits
from sotr.network.sotr import SOTR, DensePredictions

__all__ = ["SOTR", "DensePredictions", "convolved_features", "mask_logits"]
