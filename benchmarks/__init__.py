"""Measuring speed, memory and accuracy, beside peers in the same run: `python -m benchmarks --help`."""
