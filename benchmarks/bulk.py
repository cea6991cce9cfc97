"""What bounds `sotr predict --shards`: the network, or reading images and writing results?

    python benchmarks/bulk.py --pictures 100

Segments the same images twice: with a model that finds 30 objects at once, which leaves reading and writing, and with
a real one. Prints images per second, and the processor's time per image, which other work hardly changes.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

import sotr
from sotr.model.predictor import Predictor


class Instant:
    """Finds the same 30 discs in every image."""

    name, class_names, category_ids = "instant", ("disc",), (1,)
    intensity = domain = None

    def __init__(self, side: int) -> None:
        y, x = np.mgrid[:side, :side]
        centers = np.random.default_rng(0).integers(0, side, (30, 2))
        masks = np.stack([(y - cy) ** 2 + (x - cx) ** 2 < (side / 25) ** 2 for cy, cx in centers])
        self._found = sotr.Instances.from_masks(np.linspace(0.9, 0.5, 30), np.zeros(30), masks, ["disc"], [1])

    def predict(self, pictures: Any, **_: Any) -> Any:
        """The discs, once for each image."""
        return [self._found for _ in pictures]


def main(pictures: int = 100, side: int = 256, model: str = "nuclei", device: str = "cpu", batch_size: int = 1) -> None:
    """Time both models.

    Args:
        pictures: how many.
        side: their width and height in pixels.
        model: as for `sotr predict`.
        device: as for `sotr predict`.
        batch_size: images that go through the network together.
    """
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for number in range(pictures):
            noise = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
            Image.fromarray(noise).resize((side, side)).save(Path(folder) / f"{number:06d}.png")
        models: list[Predictor] = [Instant(side), sotr.load(model, device)]
        for chosen in models:
            chosen.predict([np.zeros((side, side, 3), np.uint8)], score=0.3)
            wall, processor = time.perf_counter(), time.process_time()
            sotr.predict([folder], chosen, Path(folder) / chosen.name, shards=1, batch_size=batch_size)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            print(
                f"{chosen.name}: {pictures / wall:.1f} images per second; "
                f"{1000 * processor / pictures:.1f} ms of processor time per image"
            )


if __name__ == "__main__":
    auto_cli(main)
