"""Measuring speed and memory, reproducibly."""

from sotr.benchmarks.benchmark import benchmark
from sotr.benchmarks.report import Report

__all__ = ["Report", "benchmark"]
