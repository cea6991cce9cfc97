"""Trained models: network, class names and decoding in one object and one folder."""
