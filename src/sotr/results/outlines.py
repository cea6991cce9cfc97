"""The polygons of found objects."""

import numpy as np

from sotr.masks.polygons import Polygon, polygons
from sotr.results.instances import Instances


def polygons_of(instances: Instances, i: int, tolerance: float = 0.0) -> list[Polygon]:
    """The polygons of object i in pixels of the image, as `sotr.masks.polygons.polygons` makes them."""
    mask_hw, x, y = instances.mask_crop(i)
    return [polygon + np.array([x, y]) for polygon in polygons(mask_hw, tolerance)]
