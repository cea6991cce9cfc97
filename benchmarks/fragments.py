"""Count fragments: objects that lie inside of a larger one.

`python benchmarks/fragments.py RESULTS --score 0.3` reads COCO results, as `sotr evaluate --results FILE` writes them.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

INSIDE = 0.8
"""Share of an object's pixels in one larger object that makes it a fragment."""


def count_fragments(results: Iterable[Mapping[str, Any]], score: float) -> tuple[int, int]:
    """Fragments, and all objects.

    Args:
        results: COCO results with RLE masks.
        score: objects below it do not count.
    """
    masks = defaultdict(list)
    for result in results:
        if result["score"] >= score:
            masks[result["image_id"]].append(result["segmentation"])
    fragments = 0
    for own in masks.values():
        areas = coco_masks.area(own)
        # With "crowds" the overlap is divided by the first object's area.
        inside = np.asarray(coco_masks.iou(own, own, [1] * len(own))) > INSIDE
        fragments += int((inside & (areas[None, :] > areas[:, None])).any(1).sum())
    return fragments, sum(map(len, masks.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--score", type=float, default=0.3)
    given = parser.parse_args()
    found, objects = count_fragments(json.loads(given.results.read_text(encoding="utf-8")), given.score)
    print(f"{found} fragments of {objects} objects, {100 * found / max(1, objects):.1f} per 100")
