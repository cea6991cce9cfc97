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


Size = tuple[int, int]
"""Height and width of an image, or a model's shortest edge and cap of the longest, in pixels."""


def shrinking(height: int, width: int, edges: Size, usual: Size | None = None) -> float:
    """The factor by which an image is shrunk to a model's sizes more than the training images; below 1 less.

    Args:
        height, width: of the image.
        edges: shortest edge to which the model resizes images, and cap of the longest.
        usual: height and width of a common training image; None where nobody knows: it was not resized.
    """
    factor = 1 / resize_ratio(height, width, *edges)
    return factor if usual is None else factor * resize_ratio(*usual, *edges)


def good_tile(edges: Size, usual: Size | None = None) -> int:
    """Side of tiles in which objects are as large to the network as in the training images; see `shrinking`."""
    return max(1, round(edges[0] / (1 if usual is None else resize_ratio(*usual, *edges))))


def notes_on_size(size: Size, edges: Size, usual: Size | None, remedy: str) -> list[str]:
    """One line about an image that was shrunk by more than `MUCH_SHRUNK`, else nothing; see `shrinking`.

    Args:
        remedy: what to do; "{tile}" in it becomes a good side of a tile.
    """
    factor = shrinking(*size, edges, usual)
    if factor <= MUCH_SHRUNK:
        return []
    text = f"the image was shrunk by a factor of {factor:.1f} {compared(usual)}"
    return [f"{text}; {remedy.format(tile=good_tile(edges, usual))}"]


def compared(usual: Size | None) -> str:
    """To what the factor of `shrinking` compares an image."""
    return f"{'to fit the size of' if usual is None else 'more than'} the model's training images"
