"""Objects as GeoJSON, which QuPath and geographic tools read."""

from typing import Any

import numpy as np

from sotr.masks.polygons import Polygon, rings
from sotr.results.instances import Instances


def feature_collection(instances: Instances) -> dict[str, Any]:
    """A FeatureCollection of one feature per object, best first, with the properties that QuPath knows.

    Coordinates are pixels, origin at the top left. Parts of an object that touch at corners alone are polygons of their
    own, for a ring that touches itself is invalid. Names and labels are the numbers of the label image.
    """
    return {"type": "FeatureCollection", "features": [_feature(instances, i) for i in range(len(instances))]}


def _feature(instances: Instances, i: int) -> dict[str, Any]:
    mask_hw, x, y = instances.mask_crop(i)
    polygons = [[_closed(ring + np.array([x, y])) for ring in part] for part in rings(mask_hw)]
    one = len(polygons) == 1
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon" if one else "MultiPolygon", "coordinates": polygons[0] if one else polygons},
        "properties": {
            "objectType": "detection",
            "name": str(i + 1),
            "classification": {"name": instances.class_names[instances.labels_I[i]]},
            "measurements": {"label": i + 1, "score": round(float(instances.scores_I[i]), 6)},
        },
    }


def _closed(ring: Polygon) -> list[list[int]]:
    """Corners in turn, the first once more at the end."""
    return np.concatenate([ring, ring[:1]]).astype(int).tolist()
