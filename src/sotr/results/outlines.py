"""The polygons of found objects."""

import numpy as np

from sotr.masks.polygons import Polygon, polygons, rings
from sotr.results.instances import Instances


def polygons_of(instances: Instances, i: int, tolerance: float = 0.0) -> list[Polygon]:
    """The polygons of object i in pixels of the image, as `sotr.masks.polygons.polygons` makes them."""
    mask_hw, x, y = instances.mask_crop(i)
    return [polygon + np.array([x, y]) for polygon in polygons(mask_hw, tolerance)]


def rings_of(instances: Instances, i: int) -> list[list[Polygon]]:
    """The parts of object i, as `sotr.masks.polygons.rings` makes them, in pixels of the image."""
    mask_hw, x, y = instances.mask_crop(i)
    return [[ring + np.array([x, y]) for ring in part] for part in rings(mask_hw)]
