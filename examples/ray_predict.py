"""Segment the pictures of a folder or an object store on all machines of a Ray cluster.

    pip install "sotr[ray]"
    python examples/ray_predict.py s3://bucket/pictures s3://bucket/results --workers 8 --gpus_per_worker 1

Every worker loads the model once and takes batches of files as they come; memory does not grow with their number. The
results are JSON lines: file_name, height, width, objects (as JSON), and error for a picture that could not be read.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import ray
from jsonargparse import auto_cli

import sotr
from sotr.data.images import IMAGE_SUFFIXES


class Predictor:
    """One worker's model."""

    def __init__(self, model: str, score: float) -> None:
        self.model = sotr.load(model, "auto")
        self.score = score

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Segment the files of a batch, given by `path` and `bytes`."""
        rows = [self.row(str(path), data) for path, data in zip(batch["path"], batch["bytes"], strict=True)]
        return {key: [row[key] for row in rows] for key in ("file_name", "height", "width", "objects", "error")}

    def row(self, path: str, data: bytes) -> dict[str, Any]:
        """The line of one picture."""
        try:
            found = self.model.predict(bytes(data), score=self.score).to_json()
        except sotr.SOTRError as error:
            return {"file_name": path, "height": 0, "width": 0, "objects": "[]", "error": str(error)}
        objects = json.dumps(found["objects"])
        return {"file_name": path, "height": found["height"], "width": found["width"], "objects": objects, "error": ""}


def main(
    pictures: str,
    out: str,
    model: str = "nuclei",
    score: float = 0.3,
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    batch_size: int = 16,
) -> None:
    """Segment pictures with Ray Data.

    Args:
        pictures: folder or address of an object store.
        out: folder or address for the JSON lines.
        model: a bundled model, a model or training run folder that all machines see, or a hub id.
        score: leave out objects below this score, 0..1.
        workers: processes that hold the model.
        gpus_per_worker: GPUs of each; 0 for the CPU.
        batch_size: files that a worker takes at a time.
    """
    # Ray's workers have folders of their own to start from.
    model = str(Path(model).resolve()) if Path(model).exists() else model
    files = ray.data.read_binary_files(
        pictures, include_paths=True, file_extensions=[suffix[1:] for suffix in sorted(IMAGE_SUFFIXES)]
    )
    results = files.map_batches(
        Predictor,
        fn_constructor_kwargs={"model": model, "score": score},
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=gpus_per_worker or None,
    )
    results.write_json(out if "://" in out else str(Path(out).resolve()))


if __name__ == "__main__":
    auto_cli(main)
