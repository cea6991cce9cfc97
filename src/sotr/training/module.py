"""The training step: network, losses, optimiser and schedule, as Lightning wants them."""

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR

from sotr.config import SOTRConfig
from sotr.data.batches import Batch
from sotr.errors import SOTRError
from sotr.learning import sotr_losses
from sotr.network import SOTR
from sotr.training.recipe import Recipe

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class SOTRModule(pl.LightningModule):
    """A SOTR network under training.

    Args:
        config: the architecture.
        recipe: how to train it.
        total_iterations: optimiser steps of the whole run, for the schedule.
        seed: of the random numbers drawn inside the network while training.
    """

    def __init__(self, config: SOTRConfig, recipe: Recipe, total_iterations: int, seed: int) -> None:
        super().__init__()
        self.network = SOTR(config)
        self.recipe = recipe
        self.total_iterations = total_iterations
        self.seed = seed
        self.latest: dict[str, Tensor] = {}
        """The last step's losses, detached and still on the device."""
        self._unchecked: deque[tuple[int, list[str], Tensor, torch.cuda.Event | None]] = deque()
        if recipe.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if recipe.backbone_lr_factor == 0:
            self.network.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "SOTRModule":
        """Training or evaluation mode; a frozen backbone stays in the latter, so that its statistics do not move."""
        super().train(mode)
        if self.recipe.backbone_lr_factor == 0:
            self.network.backbone.eval()
        return self

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy without waiting: the loader has pinned the memory."""
        return batch.to(device, non_blocking=True)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Random numbers of a step depend on the seed and the step alone, so that a resumed run draws the same."""
        torch.manual_seed((self.seed * 1_000_003 + self.global_step * 97 + self.global_rank) % 2**63)
        self.check_losses(wait=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The summed losses of a batch; nothing in here waits for the device."""
        images = batch.images_B3HW
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with attention_for(images.device):
            predictions = self.network(images)
        losses = sotr_losses(predictions, batch.targets, batch.assignment, self.recipe.loss)
        loss = torch.stack(list(losses.values())).sum()
        self.latest = {"loss": loss.detach()} | {name: value.detach() for name, value in losses.items()}
        self._watch(loss.detach(), batch.file_names)
        return loss

    def _watch(self, loss: Tensor, file_names: list[str]) -> None:
        """Check the loss now; on CUDA start its copy to the host, and look when it has arrived."""
        event = None
        if loss.is_cuda:
            arrived = torch.empty((), dtype=loss.dtype, pin_memory=True)
            arrived.copy_(loss, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            loss = arrived
        self._unchecked.append((self.global_step, file_names, loss, event))
        if event is None:
            self.check_losses(wait=True)

    def check_losses(self, wait: bool) -> None:
        """Look at the losses that have arrived, or with `wait` at all of them.

        Raises:
            SOTRError: if one is infinite or not a number; names the step and the pictures of its batch.
        """
        while self._unchecked:
            step, file_names, loss, event = self._unchecked[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self._unchecked.popleft()
            if not torch.isfinite(loss):
                raise SOTRError(
                    f"the loss became {float(loss)} in step {step + 1} with {', '.join(file_names)}; "
                    "check these pictures and their annotations, or lower the learning rate"
                )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The recipe's optimiser and its schedule, one step per iteration."""
        groups = parameter_groups(self.network, self.recipe)
        optimizer: torch.optim.Optimizer
        if self.recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.recipe.lr, momentum=self.recipe.momentum)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.recipe.lr, betas=(self.recipe.momentum, 0.999))
        schedule = LambdaLR(optimizer, lambda step: self.recipe.lr_factor(step, self.total_iterations))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def attention_for(device: torch.device) -> AbstractContextManager[None]:
    """The kind of attention that trains quickest on a device."""
    # On CPUs the fused attention's backward pass over rows and columns, tens of cells long, is up to fifteen times
    # slower than that of the plain product (bfloat16, 2.13); the weights it saves storing are few at this length.
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def parameter_groups(network: SOTR, recipe: Recipe) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay: (backbone, rest) x (decayed, not decayed).

    Norm layers are not decayed; with AdamW, whose decay is far stronger, biases and position embeddings are not either.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for prefix, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            spared = recipe.optimizer == "adamw" and (name == "bias" or prefix.endswith("position"))
            decayed = not isinstance(module, _NORMS) and not spared
            groups.setdefault((prefix.startswith("backbone"), decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": recipe.lr * (recipe.backbone_lr_factor if in_backbone else 1.0),
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (in_backbone, decayed), parameters in groups.items()
    ]
