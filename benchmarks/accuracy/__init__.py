"""Accuracy beside peers that were trained for as long: the same data, augmentation, budget and evaluator for all."""

from benchmarks.accuracy.run import Row, accuracy

__all__ = ["Row", "accuracy"]
