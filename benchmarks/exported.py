"""An exported model against PyTorch's, on the same images in the same process: are results equal, and how long?

    python benchmarks/exported.py PICTURES... [--model nuclei] [--files nuclei.onnx nuclei.xml] [--rounds 5]

Each round takes every image through PyTorch and through each file in turn, so that whatever else the machine is doing
meets all alike. Printed are, for each file, the images whose objects differ in number, the largest difference of
scores and the least IoU of masks among the others, and the time of an image (median over images and rounds, and the
quartiles of its ratio to PyTorch's).
"""

import argparse
import statistics
import time

import numpy as np
from faster_coco_eval.core import mask as coco_mask

import sotr
from sotr.data import list_images, load_image

SAME_SCORE = 1e-4
"""Objects whose scores differ by more are not the same."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--files", nargs="+", default=["nuclei.onnx"])
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    pictures = [load_image(path) for path in list_images(settings.pictures)]
    reference = sotr.load(settings.model)
    models = {file: sotr.load(file) for file in settings.files}

    for file, model in models.items():
        other_number, scores, ious = 0, [0.0], [1.0]
        objects = moved = 0
        for picture in pictures:
            expected, found = reference.predict(picture), model.predict(picture)
            objects += len(expected)
            if len(found) != len(expected):
                other_number += 1
                continue
            if not len(expected):
                continue
            # Objects of almost equal scores may change places: each is held against its like among those.
            overlaps_II = coco_mask.iou(list(found.rles), list(expected.rles), [0] * len(expected))
            overlaps_II[abs(found.scores_I[:, None] - expected.scores_I[None]) > SAME_SCORE] = -1
            places_I = overlaps_II.argmax(0)
            moved += int((places_I != np.arange(len(places_I))).sum())
            scores += np.abs(found.scores_I[places_I] - expected.scores_I).tolist()
            ious += overlaps_II.max(0).tolist()
        print(
            f"{file}: {len(pictures)} images, {objects} objects; another number of objects in {other_number}; "
            f"{moved} objects in another place; scores within {max(scores):.1e}, IoU of masks at least {min(ious):.5f} "
            f"(below 0.999: {sum(iou < 0.999 for iou in ious)})"
        )

    seconds: dict[str, list[float]] = {name: [] for name in ("PyTorch", *models)}
    for _ in range(settings.rounds):
        for picture in pictures:
            for name, model in {"PyTorch": reference, **models}.items():
                started = time.perf_counter()
                model.predict(picture)
                seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        ratios = [time / base for time, base in zip(times, seconds["PyTorch"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name}: {1000 * statistics.median(times):.0f} ms an image, "
            f"{middle:.2f} ({low:.2f} to {high:.2f}) of PyTorch's"
        )


if __name__ == "__main__":
    main()
