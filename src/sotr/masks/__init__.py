"""Masks as run lengths, and the way from the network's mask logits to them."""
