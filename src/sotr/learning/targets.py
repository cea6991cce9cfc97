"""What the objects of one image are, as far as learning needs to know."""

from dataclasses import dataclass

from torch import Tensor


@dataclass  # not frozen: where weights are shared out, Lightning sets the fields of a copy
class Targets:
    """The objects of one image, in the coordinates of the padded network input."""

    labels_I: Tensor
    """int64, contiguous class indices in 0..M-1."""
    boxes_I4: Tensor
    """float32, xyxy pixels, half-open, tight around the mask."""
    centers_I2: Tensor
    """float32, (x, y) center of mass of the mask in pixels."""
    masks_Ihw: Tensor
    """uint8, share of each block of `mask_stride` x `mask_stride` pixels that the object covers; 255 is all of it."""

    def __len__(self) -> int:
        return self.labels_I.shape[0]
