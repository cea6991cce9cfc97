"""The size to which preprocessing brings an image. Nothing here needs PyTorch."""

import math

from sotr.config import INPUT_DIVISOR


def resized_size(height: int, width: int, image_size: int, max_image_size: int) -> tuple[int, int]:
    """(h, w) with the shortest edge at `image_size` and the longest at most `max_image_size`; at least 1 pixel each."""
    ratio = resize_ratio(height, width, image_size, max_image_size)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def padded_side(side: float) -> int:
    """The next multiple of the network's input divisor, in pixels."""
    return math.ceil(side / INPUT_DIVISOR) * INPUT_DIVISOR


def resize_ratio(height: int, width: int, image_size: float, max_image_size: float) -> float:
    """The factor on both edges that does so, before rounding."""
    return min(image_size / min(height, width), max_image_size / max(height, width))


MUCH_SHRUNK = 2.0
"""Factor by which an image may be shrunk to the sizes of a model before people are told."""


def shrinking(height: int, width: int, edges: tuple[int, int]) -> float:
    """The factor by which an image is shrunk to a model's sizes, shortest and longest edge; below 1 it is enlarged."""
    return 1 / resize_ratio(height, width, *edges)


def notes_on_size(size: tuple[int, int], edges: tuple[int, int], remedy: str) -> list[str]:
    """One line about an image of this height and width that was shrunk by more than `MUCH_SHRUNK`, else nothing.

    Args:
        size: its height and width.
        edges: shortest edge to which the model resizes images, and cap of the longest.
        remedy: what to do; "{tile}" in it becomes a good side of a tile.
    """
    factor = shrinking(*size, edges)
    if factor <= MUCH_SHRUNK:
        return []
    text = f"the image was shrunk by a factor of {factor:.1f} to fit the size of the model's training images"
    return [f"{text}; {remedy.format(tile=edges[0])}"]
