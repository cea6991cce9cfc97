"""What a row costs: parameters, multiply-accumulates, time per image, memory of a training step."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sotr.data.batches import Batch, train_loader
from sotr.data.coco import CocoDataset
from sotr.data.images import load_image
from sotr.info import count_components
from sotr.model.segmenter import Segmenter
from sotr.training.module import SOTRModule
from sotr.training.recipe import Recipe

TIMED_PICTURES = 20
"""Images, after one to warm up, whose median time is reported."""


@dataclass(frozen=True)
class Costs:
    """Of one network on one device."""

    parameters: int
    macs: int
    """Multiply-accumulates of one image of `height` x `width`, as `sotr info` counts them."""
    height: int
    width: int
    ms: float
    """Median milliseconds from a loaded image to its objects, one image at a time, float32."""
    memory: float
    """Megabytes (10^6) of a training step of `batch_size` images in float32: on CUDA the peak that was allocated,
    elsewhere parameters, gradients and all that the forward pass keeps for the backward pass."""
    batch_size: int


def measure(segmenter: Segmenter, train_data: CocoDataset, val_data: CocoDataset, recipe: Recipe) -> Costs:
    """The costs of a trained model on the device where it is."""
    loader = train_loader(
        train_data,
        segmenter.config,
        recipe.augmentation,
        batch_size=recipe.batch_size,
        mask_stride=recipe.loss.mask_stride,
        seed=0,
        workers=0,
        pin_memory=False,
    )
    batch = next(iter(loader)).to(segmenter.device)
    height, width = batch.images_B3HW.shape[-2:]
    total = count_components(segmenter.config, height, width)["total"]
    return Costs(
        parameters=total.parameters,
        macs=total.macs,
        height=height,
        width=width,
        ms=1000 * _seconds(segmenter, val_data),
        memory=_training_bytes(segmenter, recipe, batch) / 1e6,
        batch_size=recipe.batch_size,
    )


def _seconds(segmenter: Segmenter, data: CocoDataset) -> float:
    pictures = [load_image(data.record(index).path) for index in range(min(len(data), TIMED_PICTURES + 1))]
    times = []
    for picture in pictures:
        started = time.perf_counter()
        segmenter.predict(picture)  # its masks end up on the host: nothing is left running
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:] or times)


def _training_bytes(segmenter: Segmenter, recipe: Recipe, batch: Batch) -> int:
    module = SOTRModule(segmenter.config, recipe, total_iterations=1, seed=0).to(segmenter.device)
    parameters = sum(parameter.nbytes for parameter in module.parameters())
    kept: dict[int, int] = {parameter.data_ptr(): 0 for parameter in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    on_cuda = segmenter.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(segmenter.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module.training_step(batch, 0)
    loss.backward()
    if on_cuda:
        return torch.cuda.max_memory_allocated(segmenter.device)
    return 2 * parameters + sum(kept.values())
