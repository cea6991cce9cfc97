"""The moving average of the weights, which is what is validated and saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from sotr.training.module import SOTRModule


class AveragedWeights(WeightAveraging):
    """Exponential moving average of all weights and buffers.

    Args:
        decay: in step t (from 1) the average keeps min(decay, (1 + t) / (10 + t)) of itself, so that it follows
            quickly at first and a short run is not averaged with its random start.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=True)
        self._decay = decay

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update after an optimizer step; unlike AveragedModel's own update it never waits for the device."""
        step = trainer.global_step
        if step <= self._latest_update_step:
            return
        assert self._average_model is not None
        decay = min(self._decay, (1 + step) / (10 + step))
        average = self._average_model.module
        floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        for mine, theirs in zip(_tensors(average), _tensors(pl_module), strict=True):
            if mine.is_floating_point():
                floats[0].append(mine)
                floats[1].append(theirs)
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(floats[0], floats[1], 1 - decay)
        self._latest_update_step = step

    @contextmanager
    def in_place_of(self, module: SOTRModule) -> Iterator[None]:
        """The averaged weights in the module, the current ones after the block."""
        self._swap_models(module)
        try:
            yield
        finally:
            self._swap_models(module)


def _tensors(module: torch.nn.Module) -> Iterator[Tensor]:
    for parameter in module.parameters():
        yield parameter.detach()
    yield from module.buffers()
