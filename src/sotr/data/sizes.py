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
