"""An image for a first try, drawn here, so that none has to be shipped."""

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = (384, 512)
"""Height and width of the sample."""

CELLS = 46


def draw_sample(seed: int = 7) -> NDArray[np.uint8]:
    """Bright, soft-edged cell nuclei on a dark ground, as a fluorescence microscope shows them; HW3 RGB."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    light_HW: NDArray[np.float32] = np.full(SIZE, 0.05, np.float32)
    places: list[tuple[float, float, float]] = []
    while len(places) < CELLS:
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(9, 18)
        if all(np.hypot(x - px, y - py) > 1.02 * (radius + other) for px, py, other in places):
            places.append((x, y, radius))
            _draw_nucleus(light_HW, (x, y), radius, rng)
    seen_HW = cv2.GaussianBlur(light_HW, (0, 0), 1.1) + 0.1 * cv2.GaussianBlur(light_HW, (0, 0), 14)
    grey_HW = np.clip(255 * (seen_HW + rng.normal(0, 0.01, SIZE)), 0, 255).astype(np.uint8)
    return np.repeat(grey_HW[..., None], 3, axis=2)


def _draw_nucleus(
    light_HW: NDArray[np.float32], center: tuple[float, float], radius: float, rng: np.random.Generator
) -> None:
    """Add one: an ellipse with darker spots inside."""
    mask_HW = np.zeros(SIZE, np.uint8)
    axes = (radius, radius * rng.uniform(0.68, 0.95))
    cv2.ellipse(mask_HW, (center, (2 * axes[0], 2 * axes[1]), float(rng.uniform(0, 180))), 1, -1)
    texture_HW = np.ones(SIZE, np.float32)
    for _ in range(3):
        spot = (np.array(center) + rng.uniform(-0.5, 0.5, 2) * radius).astype(int).tolist()
        cv2.circle(texture_HW, spot, max(1, round(radius / 5)), float(rng.uniform(0.8, 1)), -1)
    soft_HW = cv2.GaussianBlur(texture_HW, (0, 0), radius / 8)
    light_HW[mask_HW > 0] = rng.uniform(0.2, 0.55) * soft_HW[mask_HW > 0]
