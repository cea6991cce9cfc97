"""COCO's run lengths and polygons as others wrote them: checked, and brought to one form."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from faster_coco_eval import mask_api_new_cpp
from faster_coco_eval.core import mask as coco_mask

from sotr.errors import SOTRError


def plain_rle(rle: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The RLE with compressed `counts` as str, checked to have `size` (H, W).

    Raises:
        SOTRError: it is damaged, or of another size.
    """
    try:
        rle_size, counts = (int(rle["size"][0]), int(rle["size"][1])), rle["counts"]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise SOTRError('a mask must be a COCO RLE: {"size": [height, width], "counts": ...}') from error
    if rle_size != size:
        raise SOTRError(
            f"a mask of {rle_size[0]} x {rle_size[1]} (height x width) does not fit an image of {size[0]} x {size[1]}"
        )
    try:
        if not isinstance(counts, (str, bytes)):
            if not all(isinstance(run, (int, np.integer)) and run >= 0 for run in counts):
                raise ValueError("run lengths must be whole numbers of at least 0")
            runs = [int(run) for run in counts]
            counts = coco_mask.frPyObjects({"size": list(size), "counts": runs}, *size)["counts"]
        plain = {"size": list(size), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
        pixels = sum(mask_api_new_cpp.toUncompressedRLE([plain])[0]["counts"])
    except (ValueError, TypeError, RuntimeError) as error:
        raise SOTRError(f"a mask's RLE is damaged: {' '.join(str(error).split())}") from error
    if pixels != size[0] * size[1]:
        raise SOTRError(f"a mask's run lengths add up to {pixels}, not to {size[0]} x {size[1]} pixels")
    return plain


def rle_of_segmentation(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The RLE of what a COCO annotation has for a mask: an RLE, or a list of polygons.

    Raises:
        SOTRError: it is damaged, or of another size.
    """
    if isinstance(segmentation, Mapping):
        return plain_rle(segmentation, size)
    try:
        return plain_rle(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size)), size)
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise SOTRError(f"a mask's polygons are damaged: {' '.join(str(error).split())}") from error
