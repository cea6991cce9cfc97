"""What a small set of images is best trained from: the same epochs from ImageNet, from the bundled model (and gently:
with a fifth of the rate, and a tenth of that for the backbone) and from random weights.

    python benchmarks/small_data.py FOLDER --as balloon --from imagenet nuclei random --out small
    python benchmarks/small_data.py FOLDER --as carparts --from imagenet --points 0 1024 --max-time 29m --out points

The second compares mask losses, over all pixels (0) and over points, at equal time: its runs share one core at once.
Run it on a single core (`taskset -c 0`).
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

COMMON: dict[str, Any] = {
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "batch_size": 4,
    "schedule": "cosine",
    "warmup": "linear",
    "warmup_iterations": 200,
    "clip_norm": 1.0,
    "ema_decay": 0.998,
}
CHANGES: dict[str, Any] = {"scale": [0.6, 1.25], "color": 0.3}


@dataclass(frozen=True)
class Kind:
    """How long a data set is trained, and what may be done to its images."""

    epochs: int
    augmentation: dict[str, bool]


KINDS = {
    "balloon": Kind(30, {"horizontal_flip": True}),
    "virus": Kind(30, {"horizontal_flip": True, "vertical_flip": True, "rotate90": True}),
    "carparts": Kind(12, {"horizontal_flip": False}),
}

MODEL = str(Path(__file__).parent.parent / "recipes" / "sotr-nano-mobilenetv2.yaml")

STARTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "imagenet": (
        ["--model", MODEL, "--backbone-weights", "imagenet"],
        {"lr": 0.001, "backbone_lr_factor": 0.1, "batch_norm": "frozen"},
    ),
    "nuclei": (["--model", "nuclei"], {"lr": 0.0005}),
    "nuclei-gently": (["--model", "nuclei"], {"lr": 0.0001, "backbone_lr_factor": 0.1, "ema_decay": 0.999}),
    "random": (["--model", "sotr-nano", "--no-suggest"], {"lr": 0.001}),
}


def command(arguments: argparse.Namespace, start: str, points: int) -> tuple[Path, list[str]]:
    """The run's folder, and the command that trains it; its recipe is written beside."""
    kind = KINDS[arguments.kind]
    model, settings = STARTS[start]
    if arguments.backbone_weights and "--backbone-weights" in model:
        model = [*model[:-1], arguments.backbone_weights]
    # With a limit of time the epochs are only to be more than enough.
    epochs = 1000 if arguments.max_time else arguments.epochs or kind.epochs
    recipe = COMMON | settings | {"epochs": epochs, "validate_every": max(1, epochs // 3)}
    recipe["augmentation"] = CHANGES | kind.augmentation
    recipe["loss"] = {"points": points}
    folder = Path(arguments.out) / f"{arguments.kind}-{start}-{points}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe))
    limit = ["--max-time", arguments.max_time] if arguments.max_time else []
    size = ["--image-size", str(arguments.image_size), "--workers", "0"]
    data = [str(arguments.data), *model, "--recipe", str(file), *size, *limit, "--out", str(folder)]
    return folder, [sys.executable, "-m", "sotr.cli", "train", *data]


def main() -> None:
    """Train and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--as", dest="kind", choices=KINDS, required=True, help="whose epochs and augmentation")
    parser.add_argument("--from", dest="starts", nargs="+", choices=STARTS, default=["imagenet", "nuclei", "random"])
    parser.add_argument("--points", nargs="+", type=int, default=[0], help="points of the mask loss; 0 is all pixels")
    parser.add_argument("--epochs", type=int, help="other than usual")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--backbone-weights", help="a file instead of fetching ImageNet's")
    parser.add_argument("--max-time", help="end by the clock instead of epochs; all runs at once")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    runs = [command(arguments, start, points) for start in arguments.starts for points in arguments.points]
    if arguments.max_time:
        processes = [subprocess.Popen(words) for _, words in runs]
        codes = [process.wait() for process in processes]
    else:
        codes = [subprocess.run(words, check=False).returncode for _, words in runs]
    for folder, _ in runs:
        if (file := folder / "metrics.json").is_file():
            metrics = json.loads(file.read_text())
            print(f"{folder.name}: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}, AP75 {metrics['AP75']:.3f}")
    sys.exit(1 if any(codes) else 0)


if __name__ == "__main__":
    main()
