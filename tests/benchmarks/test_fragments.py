import numpy as np
from benchmarks.fragments import count_fragments
from pycocotools import mask as coco_masks


def result(image: int, box: tuple[int, int, int, int], score: float) -> dict:
    mask = np.zeros((40, 40), np.uint8, order="F")
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    return {"image_id": image, "category_id": 1, "score": score, "segmentation": coco_masks.encode(mask)}


def test_a_fragment_lies_inside_of_a_larger_object_of_its_image() -> None:
    large, inside, beside = (0, 0, 20, 20), (2, 2, 7, 7), (18, 18, 28, 28)
    # Nine tenths inside, and seven tenths.
    nearly, hardly = (11, 0, 21, 4), (13, 0, 23, 4)
    assert count_fragments([result(1, box, 0.9) for box in (large, inside, beside)], 0.3) == (1, 3)
    assert count_fragments([result(1, box, 0.9) for box in (large, nearly, hardly)], 0.3) == (1, 3)
    assert count_fragments([result(1, large, 0.9), result(2, inside, 0.9)], 0.3) == (0, 2)
    assert count_fragments([result(1, large, 0.9), result(1, inside, 0.2)], 0.3) == (0, 1)
    assert count_fragments([result(1, large, 0.9)] * 2, 0.3) == (0, 2)
    assert count_fragments([], 0.3) == (0, 0)
