"""Objects as a label image: one number per pixel."""

import numpy as np
from numpy.typing import NDArray

from sotr.results.instances import Instances


def label_image(instances: Instances) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """HW whole numbers: 0 outside of all objects, else the object's position plus 1; the best of several is on top.

    uint16, or uint32 for more than 65,535 objects.
    """
    labels_HW = np.zeros(instances.image_size, np.uint16 if len(instances) < 1 << 16 else np.uint32)
    for i in reversed(range(len(instances))):
        mask_hw, x, y = instances.mask_crop(i)
        labels_HW[y : y + mask_hw.shape[0], x : x + mask_hw.shape[1]][mask_hw] = i + 1
    return labels_HW
