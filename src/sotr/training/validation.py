"""What happens at a validation: metrics, and images for the loggers."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import distributed as dist

from sotr.data.coco import CocoDataset
from sotr.decoding import DecodeOptions
from sotr.evaluation.coco import Metrics, coco_metrics
from sotr.evaluation.evaluate import detect
from sotr.model.segmenter import Segmenter
from sotr.training.devices import share_statistics, whole_weights
from sotr.training.display import Display, Interrupts, Stop
from sotr.training.module import SOTRModule
from sotr.training.report import spread, truth_beside

SHOWN_PICTURES = 4
"""Images that the loggers show after each validation."""


def measured(
    segmenter: Segmenter, data: CocoDataset, max_dets: int, workers: int, on_images: Callable[[int], object]
) -> dict[str, Any]:
    """COCO mask AP of a model on some data with its classes, measured as `sotr evaluate` does."""
    results = detect(segmenter, data, data.category_ids, max_dets=max_dets, workers=workers, on_pictures=on_images)
    return coco_metrics(data.truth(), results, max_dets=max_dets).at_operating_point(data, results).to_dict()


class Validation:
    """COCO mask AP of a module on the validation images, measured as `sotr evaluate` does.

    Several processes share the images; each gets the metrics of all of them.
    """

    def __init__(self, data: CocoDataset, options: DecodeOptions, workers: int, interrupts: Interrupts) -> None:
        self._data, self._options, self._workers, self._interrupts = data, options, workers, interrupts
        self._truth = data.truth()
        self._score = options.operating_score

    def __call__(self, module: SOTRModule, display: Display) -> Metrics:
        """Measure the weights that the module has now.

        Raises:
            Stop: a signal asked to.
        """
        data, limit = self._data, self._options.max_objects
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

        def on_pictures(count: int) -> None:
            display.advance(count * ranks)
            # One process alone must not leave: the others would wait for its part.
            if ranks == 1 and self._interrupts.number is not None:
                raise Stop

        display.begin("validation", len(data))
        share_statistics(module)
        with whole_weights(module):
            segmenter = self._segmenter(module)
            results = detect(
                segmenter,
                data,
                data.category_ids,
                max_dets=limit,
                workers=self._workers,
                on_pictures=on_pictures,
                pictures=range(module.global_rank, len(data), ranks),
            )
        if ranks > 1:
            parts: list[Any] = [None] * ranks
            dist.all_gather_object(parts, results)
            results = [result for part in parts for result in part]
        metrics = coco_metrics(self._truth, results, max_dets=limit).at_operating_point(data, results)
        if metrics.operating_score is not None:
            self._score = metrics.operating_score
        return metrics

    def _segmenter(self, module: SOTRModule) -> Segmenter:
        return Segmenter(
            module.network,
            self._data.class_names,
            self._data.category_ids,
            self._options,
            device=module.device,
            engine="pytorch",  # the weights change before an engine would pay
        )

    def pictures(self, module: SOTRModule) -> dict[str, NDArray[np.uint8]]:
        """Some validation images, truth beside prediction, for the loggers."""
        data = self._data
        with whole_weights(module):
            segmenter = self._segmenter(module)
            return {
                f"validation/{data.file_names[index]}": truth_beside(segmenter, data, index, self._score)[1]
                for index in spread(len(data), SHOWN_PICTURES)
            }
