"""Train YOLO for a budget of processor time: run by `yolo.py` with the Python of an environment that has ultralytics.

    python yolo_process.py job.json

The job names everything, and what is found is written beside it: COCO results after each share of the budget, with
uncompressed run lengths, and `done.json`. Nothing of this repository is imported, and nothing here but by a Python that
its user chose for ultralytics, which is under the AGPL.
"""

import copy
import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import settings
from ultralytics.models.yolo.segment import SegmentationPredictor, SegmentationTrainer
from ultralytics.nn.modules.block import TorchVision
from ultralytics.nn.tasks import SegmentationModel, yaml_model_load

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NECK = 9
"""The layer from which on an architecture of ultralytics is kept: what is before is its own backbone."""

MAPS = {4: 1, 6: 2, 10: 5}
"""Layers of its backbone that its head reads, and what stands in for them."""

STAGES = ((32, 7), (96, 14), (320, 18))
"""Channels of MobileNetV2's maps at strides 8, 16 and 32, and their place among the outputs of its layers."""

MANY_EPOCHS = 1_000_000


class Done(Exception):
    """The budget is used up."""


def schedule(used: float, warmup: float = 0.1) -> float:
    """As in `training.py`."""
    if used < warmup:
        return 0.01 + 0.99 * used / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (used - warmup) / (1 - warmup)))


def processor_seconds() -> float:
    """As in `training.py`."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def architecture(name: str, classes: int) -> dict[str, Any]:
    """An architecture of ultralytics with torchvision's MobileNetV2 in the place of its backbone.

    Its neck begins with the last two layers of its backbone, which stay.
    """
    whole = yaml_model_load(name)

    def moved(layer: int) -> int:
        return layer if layer < 0 else MAPS.get(layer, layer + 1 + len(STAGES) - NECK)

    body = [[-1, 1, "TorchVision", [STAGES[-1][0], "mobilenet_v2", None, True, 2, True]]]
    body += [[0, 1, "Index", [channels, place]] for channels, place in STAGES]
    head = [
        [[moved(layer) for layer in source] if isinstance(source, list) else moved(source), *rest]
        for source, *rest in whole["head"]
    ]
    return {**whole, "nc": classes, "backbone": body + whole["backbone"][NECK:], "head": head}


def put_weights(model: torch.nn.Module, path: str) -> None:
    """Give the backbone weights that expect ImageNet's mean and deviation, which ultralytics does not apply.

    They go into the first convolution and the norm behind it.
    """
    (body,) = (module for module in model.modules() if isinstance(module, TorchVision))
    state = torch.load(path, map_location="cpu", weights_only=True)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    first = state["0.0.weight"]
    state["0.1.running_mean"] = state["0.1.running_mean"] + (first * mean / deviation).sum((1, 2, 3))
    state["0.0.weight"] = first / deviation
    result = body.m.load_state_dict(state, strict=False)
    if result.unexpected_keys or any(not key.startswith("18.") for key in result.missing_keys):
        raise SystemExit(f"the weights do not fit the backbone: {result}")


class Trainer(SegmentationTrainer):
    """ultralytics' training with a schedule and an end by processor time."""

    job: dict[str, Any]

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> torch.nn.Module:
        """The architecture with the common backbone."""
        torch.manual_seed(self.job["seed"])
        classes = self.data["nc"]
        model = SegmentationModel(architecture(self.job["model"], classes), nc=classes, ch=3, verbose=False)
        if self.job["weights"]:
            put_weights(model, self.job["weights"])
        return self.set_model_names_for_load(model)

    def begin(self, _: object) -> None:
        """Start the clock."""
        torch.set_num_threads(1)
        self.steps, self.used_s, self.wall_s, self.infer_s = 0, 0.0, 0.0, 0.0
        self.losses: list[list[float]] = []
        self.moments: list[dict[str, Any]] = []
        self.shares = [*self.job["shares"], 1.0]
        self.clock = processor_seconds(), time.perf_counter()

    def optimizer_step(self) -> None:
        """A step at the rate of the time that is used; after each share of the budget the network is measured."""
        used = self.used_s / self.job["budget_s"]
        for group in self.optimizer.param_groups:
            group["lr"] = self.job["lr"] * schedule(used)
        criterion = self.model.criterion
        if hasattr(criterion, "o2m"):  # it shifts from one loss to another in the course of a training
            criterion.update = lambda: None
            criterion.o2m = criterion.o2m_copy + (criterion.final_o2m - criterion.o2m_copy) * used
            criterion.o2o = criterion.total - criterion.o2m
        super().optimizer_step()
        self.steps += 1
        now = processor_seconds(), time.perf_counter()
        self.used_s, self.wall_s = self.used_s + now[0] - self.clock[0], self.wall_s + now[1] - self.clock[1]
        self.clock = now
        self.losses.append([round(self.used_s, 3), float(self.loss)])
        while self.shares and self.used_s / self.job["budget_s"] >= self.shares[0]:
            self.shares.pop(0)
            self.measure()
        if not self.shares:
            raise Done

    def measure(self) -> None:
        """Write what the averaged weights find in the validation images."""
        file = f"results-{len(self.moments)}.json"
        started = processor_seconds()
        results = found(self.ema.ema, self.job)
        self.infer_s = (processor_seconds() - started) / len(self.job["images"])
        Path(self.job["folder"], file).write_text(json.dumps(results), encoding="utf-8")
        self.moments.append({"file": file, "used_s": self.used_s, "steps": self.steps})
        torch.set_num_threads(1)
        self.clock = processor_seconds(), time.perf_counter()


def found(model: torch.nn.Module, job: dict[str, Any]) -> list[dict[str, Any]]:
    """COCO results in images of the sizes that the other competitors see."""
    settings_of = {"conf": 0.001, "max_det": job["max_dets"], "retina_masks": True, "device": "cpu"}
    predictor = SegmentationPredictor(overrides={**settings_of, "save": False, "verbose": False, "mode": "predict"})
    predictor.setup_model(copy.deepcopy(model).float().eval(), verbose=False)
    predictor.add_callback("on_predict_start", lambda _: torch.set_num_threads(1))
    results = []
    for image_id, path, size in job["images"]:
        predictor.args.imgsz = size
        (result,) = predictor(path)
        if result.masks is None:
            continue
        masks = result.masks.data.numpy() > 0.5
        for score, label, mask in zip(result.boxes.conf.tolist(), result.boxes.cls.tolist(), masks):
            if mask.any():
                category = job["category_ids"][int(label)]
                rle = {"size": list(mask.shape), "counts": run_lengths(mask)}
                results.append({"image_id": image_id, "category_id": category, "score": score, "segmentation": rle})
    return results


def run_lengths(mask_hw: np.ndarray) -> list[int]:
    """COCO's run lengths: column after column, zeros first."""
    flat = mask_hw.T.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return np.diff([0, *edges, flat.size]).tolist()


def main(job: dict[str, Any]) -> None:
    """Train, and write what was found."""
    settings.update({"sync": False})
    overrides = {
        "model": job["model"],
        "data": job["data"],
        "project": job["folder"],
        "name": "run",
        "exist_ok": True,
        "epochs": MANY_EPOCHS,
        "imgsz": job["image_size"],
        "batch": job["batch"],
        "nbs": job["batch"],
        "device": "cpu",
        "workers": 0,
        "optimizer": "AdamW",
        "lr0": job["lr"],
        "momentum": 0.9,
        "weight_decay": job["decay"],
        "warmup_epochs": 0,
        "amp": False,  # ultralytics has bfloat16 for CUDA alone
        "seed": job["seed"],
        "mosaic": 0.0,
        "close_mosaic": 0,
        "scale": job["scale"],
        "fliplr": job["fliplr"],
        "flipud": job["flipud"],
        "val": False,
        "plots": False,
        "save": False,
        "pretrained": False,
        "verbose": False,
    }
    Trainer.job = job
    trainer = Trainer(overrides=overrides)
    trainer.add_callback("on_train_start", trainer.begin)
    try:
        trainer.train()
    except Done:
        done = {
            "steps": trainer.steps,
            "used_s": trainer.used_s,
            "wall_s": trainer.wall_s,
            "infer_s": trainer.infer_s,
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            "losses": trainer.losses,
            "moments": trainer.moments,
        }
        Path(job["folder"], "done.json").write_text(json.dumps(done), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
