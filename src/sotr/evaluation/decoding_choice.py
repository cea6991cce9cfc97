"""Which decoding settings suit a data set: some images measured with each of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from sotr.data.batches import eval_loader
from sotr.data.coco import CocoDataset
from sotr.decode_options import DecodeOptions
from sotr.decoding import find, finish
from sotr.evaluation.coco import coco_metrics
from sotr.model.segmenter import Segmenter

CHANGES = ("nms_sigma=1", "nms_sigma=4", "nms=linear", "nms=mask", "points_nms=true")
"""What is tried beside a model's own settings, as `DecodeOptions.with_changes` takes it."""

MOST_IMAGES = 48
"""Images that are measured, evenly spread over the data set."""

LEAST_GAIN = 0.005
"""AP that a change must gain to be made: less is chance on so few images."""


class Choice(NamedTuple):
    """The settings that were chosen, and what was measured."""

    options: DecodeOptions
    change: str
    """One of `CHANGES`, or nothing."""
    ap_of: dict[str, float]
    """AP of each change, and of none under the name "", in 0..1."""


@torch.inference_mode()
def choose_decoding(
    segmenter: Segmenter, data: CocoDataset, on_images: Callable[[int], object] = lambda count: None
) -> Choice:
    """The settings of `CHANGES` with the best AP, if it is better by `LEAST_GAIN` than that of the model's own.

    Each image goes through the network once. Take images that nothing is reported on, such as those of the training:
    a choice makes its own images look better than others.

    Args:
        segmenter: a model whose classes are those of `data`.
        data: images and their objects.
        on_images: told of each image when it is done.
    """
    own = segmenter.decode_options
    options_of = {change: own.with_changes(change) if change else own for change in ("", *CHANGES)}
    results: dict[str, list[dict[str, Any]]] = {change: [] for change in options_of}
    places: Sequence[int] = np.unique(np.linspace(0, len(data) - 1, min(MOST_IMAGES, len(data))).astype(int)).tolist()
    loader = eval_loader(data, segmenter.config, batch_size=1, workers=0, pin_memory=False, pictures=places)
    for batch in loader:
        predictions = segmenter.forward(batch.images_B3HW.to(segmenter.device))
        for change, options in options_of.items():
            (found,) = finish(
                find(predictions, options, segmenter.config),
                batch.image_sizes,
                batch.original_sizes,
                options,
                class_names=segmenter.class_names,
                category_ids=data.category_ids,
            )
            results[change] += found.to_coco(batch.image_ids[0])
        on_images(1)
    truth = data.truth(places)
    ap_of = {
        change: coco_metrics(truth, found, max_dets=own.max_objects).AP or 0.0 for change, found in results.items()
    }
    best = max(ap_of, key=lambda change: ap_of[change])
    change = best if ap_of[best] >= ap_of[""] + LEAST_GAIN else ""
    return Choice(options_of[change], change, ap_of)
