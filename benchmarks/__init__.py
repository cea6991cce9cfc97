"""Measuring speed and memory, reproducibly."""

from benchmarks.command import benchmark
from benchmarks.report import Report

__all__ = ["Report", "benchmark"]
