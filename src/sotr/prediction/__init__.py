"""Trained models at work: images and folders in, results on disk out."""

from sotr.prediction.predict import PredictionSummary, predict

__all__ = ["PredictionSummary", "predict"]
