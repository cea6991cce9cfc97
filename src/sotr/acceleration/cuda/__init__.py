"""Inference on NVIDIA GPUs."""
