"""Trained models: network, class names and decoding in one object and one folder."""

from typing import TYPE_CHECKING

from sotr.lazy import lazy_names

if TYPE_CHECKING:
    from sotr.model.predictor import Predictor
    from sotr.model.segmenter import Segmenter, bundled_models, choose_device, load

__all__ = ["Predictor", "Segmenter", "bundled_models", "choose_device", "load"]

_HOMES = {
    "Predictor": "sotr.model.predictor",
    "Segmenter": "sotr.model.segmenter",
    "bundled_models": "sotr.model.segmenter",
    "choose_device": "sotr.model.segmenter",
    "load": "sotr.model.segmenter",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
