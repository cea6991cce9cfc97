"""The network of the authors' released checkpoints, and their conversion."""
