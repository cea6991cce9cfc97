"""The training step: network, losses, optimizer and schedule, as Lightning wants them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LambdaLR

from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.data.batches import Batch
from sotr.errors import SOTRError
from sotr.learning import Assignment, Normalisers, sotr_losses
from sotr.network import SOTR
from sotr.network.backbone import Backbone
from sotr.training.quick_layers import QuickLayers
from sotr.training.recipe import Recipe

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class LossNotFinite(Exception):
    """A loss or its gradient became infinite or not a number; the module's weights are still those of before the step.

    Args:
        batch: what it was computed from, on the module's device.
        losses: by name, as `SOTRModule.latest`.
        gradient: the gradient's largest value, if that is what is not finite.
    """

    def __init__(self, batch: Batch, losses: dict[str, Tensor], gradient: Tensor | None = None) -> None:
        what, value = ("loss", losses["loss"]) if gradient is None else ("gradient of the loss", gradient)
        super().__init__(f"the {what} became {float(value)}")
        self.batch, self.losses = batch, losses


class SOTRModule(pl.LightningModule):
    """A SOTR network under training.

    Args:
        config: the architecture.
        recipe: how to train it.
        total_iterations: optimizer steps of the whole run, for the schedule.
        seed: of the random numbers drawn inside the network while training.
        compile: run the training steps through torch.compile.
    """

    def __init__(
        self, config: SOTRConfig, recipe: Recipe, total_iterations: int, seed: int, compile: bool = False
    ) -> None:
        super().__init__()
        if recipe.loss.mask_stride > config.mask_feature_stride:
            raise SOTRError(
                f"the recipe's loss.mask_stride is {recipe.loss.mask_stride}, coarser than the model's "
                f"mask_feature_stride {config.mask_feature_stride}; make them equal"
            )
        self.network = build_network(config)
        # A function, not a module: the state dict must not hold the network twice.
        self._forward = torch.compile(self.network.forward) if compile else self.network.forward
        self._compiled = compile
        self._quick: QuickLayers | None = None
        self.recipe = recipe
        self.total_iterations = total_iterations
        self.seed = seed
        self.time_fraction = 0.0
        """Part of the run's time budget that is used up, 0 without one; the schedule keeps pace with it."""
        self.latest: dict[str, Tensor] = {}
        """The last step's losses, means over the processes, detached and still on the device."""
        self._unchecked: tuple[Batch, Tensor, torch.cuda.Event | None] | None = None
        self._batch: Batch | None = None
        """Whose gradient is to be looked at."""
        if recipe.class_head_scale != 1:
            with torch.no_grad():
                self.network.class_head.weight.mul_(recipe.class_head_scale)
        if recipe.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if recipe.backbone_lr_factor == 0:
            self.network.backbone.requires_grad_(False)
        if recipe.batch_norm == "frozen":
            for norm in self._batch_norms():
                norm.requires_grad_(False)
        for parameter in stage_parameters(self.network.backbone, recipe.frozen_stages):
            parameter.requires_grad_(False)
        self.train()  # Lightning takes the modes as they are

    def _batch_norms(self) -> Iterator[nn.Module]:
        return (part for part in self.network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))

    def train(self, mode: bool = True) -> "SOTRModule":
        """Training or evaluation mode; what is frozen stays in the latter, so that its statistics do not move."""
        super().train(mode)
        if self.recipe.backbone_lr_factor == 0:
            self.network.backbone.eval()
        if self.recipe.batch_norm == "frozen":
            for norm in self._batch_norms():
                norm.eval()
        return self

    def configure_model(self) -> None:
        """Where weights are shared out they are contiguous: their optimizer's state would come back permuted."""
        if isinstance(self.trainer.strategy, FSDPStrategy):
            self.network.to(memory_format=torch.contiguous_format)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy without waiting: the loader has pinned the memory."""
        return batch.to(device, non_blocking=True)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Random numbers of a step depend on the seed and the step alone, so that a resumed run draws the same."""
        seed_step(self.seed, self.global_step, self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The summed losses of a batch; nothing in here waits for the device."""
        losses = self.losses(batch)
        loss = torch.stack(list(losses.values())).sum()
        self.latest = average_over_processes({"loss": loss.detach()} | {k: v.detach() for k, v in losses.items()})
        self._watch(self.latest["loss"], batch)
        return loss

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted losses by name."""
        images = batch.images_B3HW
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with attention_for(images.device), self._quick_layers(images.device):
            predictions = self._forward(images)
        normalisers = shared_normalisers(batch.assignment, images.device)
        return sotr_losses(predictions, batch.targets, batch.assignment, self.recipe.loss, normalisers)

    def _quick_layers(self, device: torch.device) -> AbstractContextManager[None]:
        """On CPUs, layers that compute the same as the network's in less time."""
        if device.type != "cpu" or self._compiled or not self.recipe.quick_layers:
            return nullcontext()
        if self._quick is None:
            frozen = self.recipe.batch_norm == "frozen" or self.recipe.backbone_lr_factor == 0
            self._quick = QuickLayers(self.network, frozen)
        return self._quick.active()

    def _watch(self, loss: Tensor, batch: Batch) -> None:
        """On CUDA start the loss's copy to the host, to be looked at when the backward pass is on its way."""
        event = None
        if loss.is_cuda:
            arrived = torch.empty((), dtype=loss.dtype, pin_memory=True)
            arrived.copy_(loss, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            loss = arrived
        self._unchecked = batch, loss, event
        if event is None:
            self._check_loss()
        self._batch = batch if loss.device.type == "cpu" and event is None else None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the loss before it changes the weights: the device is busy with the backward pass meanwhile.

        On CPUs look at the gradient, too. Another device would have to be waited for; there the next loss tells, or the
        weights when they are to be saved.
        """
        self._check_loss()
        if self._batch is None:
            return
        batch, self._batch = self._batch, None
        gradients = [p.grad for p in self.parameters() if p.grad is not None and p.grad.numel()]
        largest = get_total_norm(gradients, torch.inf)
        if not torch.isfinite(largest):
            raise LossNotFinite(batch, self.latest, largest)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients, of which this process may have but a part."""
        whole = self.trainer.strategy.model
        if gradient_clip_val is not None and isinstance(whole, FullyShardedDataParallel):
            whole.clip_grad_norm_(gradient_clip_val)
        elif gradient_clip_val and optimizer.defaults.get("fused"):  # which Lightning refuses to clip for
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def has_finite_weights(self) -> bool:
        """Whether no weight of this process is infinite or not a number; waits for the device."""
        held = [weight for weight in self.parameters() if weight.numel()]  # where they are shared out, not all are here
        return not held or bool(get_total_norm(held, torch.inf).isfinite())

    def _check_loss(self) -> None:
        if self._unchecked is None:
            return
        batch, loss, event = self._unchecked
        self._unchecked = None
        if event is not None:
            event.synchronize()
        if not torch.isfinite(loss):
            raise LossNotFinite(batch, self.latest)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The recipe's optimizer and its schedule, one step per iteration."""
        groups = parameter_groups(self.network, self.recipe)
        optimizer: torch.optim.Optimizer
        if self.recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.recipe.lr, momentum=self.recipe.momentum)
        else:
            fused = self.recipe.quick_layers and self.device.type == "cpu"
            optimizer = torch.optim.AdamW(
                groups, lr=self.recipe.lr, betas=(self.recipe.momentum, 0.999), fused=fused or None
            )
        schedule = LambdaLR(optimizer, lambda step: self.lr_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_factor(self, step: int) -> float:
        """The learning rate of a step as a multiple of the recipe's, with the time that is used up so far."""
        # Whichever is further, the steps or the time, so that the rate has come down when either is used up.
        progress = max(float(step), self.time_fraction * self.total_iterations)
        return self.recipe.lr_factor(progress, self.total_iterations)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch's random numbers for one training step of one process."""
    torch.manual_seed((seed * 1_000_003 + step * 97 + rank) % 2**63)


def shared_normalisers(assignment: Assignment, device: torch.device) -> Normalisers | None:
    """What divides this process's losses so that their mean over the processes is the loss of the whole batch; None
    for a single process. All processes must call it together; nothing waits for the device."""
    if not _distributed():
        return None
    totals = torch.tensor([assignment.positives, sum(assignment.counts)], dtype=torch.float32).to(device)
    dist.all_reduce(totals)
    processes = dist.get_world_size()
    return Normalisers(class_cells=(totals[0] + 1) / processes, masks=totals[1].clamp(min=1) / processes)


def average_over_processes(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each of some scalars over all processes, which must call it together."""
    if not _distributed():
        return values
    stacked = torch.stack(list(values.values()))
    dist.all_reduce(stacked)
    return dict(zip(values, stacked / dist.get_world_size(), strict=True))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def attention_for(device: torch.device) -> AbstractContextManager[None]:
    """The kind of attention that trains quickest on a device."""
    # On CPUs the fused attention's backward pass over rows and columns, tens of cells long, is up to fifteen times
    # slower than that of the plain product (bfloat16, 2.13); the weights it saves storing are few at this length.
    if device.type == "cpu":
        return sdpa_kernel(SDPBackend.MATH)
    # With masks the gradient of cuDNN's attention may not be a number (PyTorch 2.11, pytorch/pytorch#196678).
    without_cudnn = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(without_cudnn) if device.type == "cuda" else nullcontext()


def stage_parameters(backbone: Backbone, last: int) -> list[nn.Parameter]:
    """The trainable parameters of a backbone from which its map C2, .. or C5 (`last`) is made; none for 0."""
    if last == 0:
        return []
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    images_13HW = torch.zeros(1, 3, 64, 64, device=parameters[0].device)
    feature = backbone(images_13HW)[last - 2]
    gradients = torch.autograd.grad(feature.sum(), parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def parameter_groups(network: SOTR, recipe: Recipe) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay: (backbone, rest) x (decayed, not decayed).

    Norm layers are not decayed; with AdamW, whose decay is far stronger, biases and position embeddings are not either.
    The class head's weights are a group of their own where they are trained at a multiple of the rate; its decay is the
    same then.
    """
    factors = {"backbone": recipe.backbone_lr_factor, "class head": recipe.class_head_scale, "rest": 1.0}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for prefix, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            part = "backbone" if prefix.startswith("backbone") else "rest"
            if parameter is network.class_head.weight and recipe.class_head_scale != 1:
                part = "class head"
            spared = recipe.optimizer == "adamw" and (name == "bias" or prefix.endswith("position"))
            decayed = not isinstance(module, _NORMS) and not spared
            groups.setdefault((part, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": recipe.lr * factors[part],
            "weight_decay": recipe.weight_decay / (factors[part] if part == "class head" else 1) if decayed else 0.0,
        }
        for (part, decayed), parameters in groups.items()
    ]
