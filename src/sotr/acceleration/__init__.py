"""Quicker ways to the same predictions, each beside the proof that it is one. The network knows nothing of them."""
