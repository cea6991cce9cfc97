"""On what a run computes: one device, or several processes with one each, on one machine or more."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel

from sotr.errors import SOTRError
from sotr.training.module import SOTRModule
from sotr.training.recipe import Recipe

STRATEGIES = ("auto", "ddp", "fsdp")
"""What `Devices.strategy` may be."""


@dataclass(frozen=True)
class Devices:
    """The devices of a run; each has a process, and this is one of them.

    Raises:
        SOTRError: on construction, if the settings contradict one another.
    """

    device: torch.device
    """This process's; without an index where there are several."""
    per_node: int = 1
    """Devices of each machine."""
    nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """"ddp": each device has all weights; "fsdp": CUDA devices share them out; "auto": ddp where there are several."""

    def __post_init__(self) -> None:
        for name, value in (("devices", self.per_node), ("nodes", self.nodes)):
            if value < 1:
                raise SOTRError(f"{name} is {value}; it must be at least 1")
        if self.strategy not in STRATEGIES:
            raise SOTRError(f"there is no strategy {self.strategy!r}; choose one of {', '.join(STRATEGIES)}")
        if self.per_node > 1 and self.device.index is not None:
            raise SOTRError(f"device {self.device} is a single one; give --device {self.device.type} with --devices")
        if self.device.type == "cuda" and self.per_node > torch.cuda.device_count():
            raise SOTRError(
                f"devices is {self.per_node}, but PyTorch sees {torch.cuda.device_count()} CUDA devices; lower it"
            )
        if self.strategy == "fsdp" and self.device.type != "cuda":
            raise SOTRError(f"strategy fsdp needs CUDA devices, not {self.device}; use ddp")

    @property
    def total(self) -> int:
        """Processes in all."""
        return self.per_node * self.nodes

    @property
    def rank(self) -> int:
        """This process among all, from 0. Launchers tell it: torchrun, SLURM's srun, or Lightning's own."""
        if self.total == 1:
            return 0
        environment = os.environ
        if "RANK" in environment:
            return int(environment["RANK"])
        if "LOCAL_RANK" in environment or "NODE_RANK" in environment:
            return int(environment.get("NODE_RANK", "0")) * self.per_node + int(environment.get("LOCAL_RANK", "0"))
        return int(environment.get("SLURM_PROCID", "0"))

    @property
    def first_of_node(self) -> bool:
        """Whether this is the first process of its machine."""
        return self.rank % self.per_node == 0

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes the run folder and speaks to the user."""
        return self.rank == 0

    def check_launcher(self) -> None:
        """Refuse to be one of several processes that know nothing of one another.

        Raises:
            SOTRError: torchrun or srun started another number of processes than the settings say.
        """
        for name, launcher in (("WORLD_SIZE", "torchrun"), ("SLURM_STEP_NUM_TASKS", "srun")):
            if (started := os.environ.get(name)) is not None:
                if started != str(self.total):
                    raise SOTRError(
                        f"{launcher} started {started} processes ({name}), but devices x nodes is {self.total}; "
                        "give --devices, the processes of each machine, and --nodes"
                    )
                return

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that these devices cannot follow.

        Raises:
            SOTRError: the batch cannot be shared out evenly, or the strategy does not support a setting.
        """
        if recipe.batch_size % self.total:
            raise SOTRError(
                f"batch_size {recipe.batch_size} cannot be shared out evenly to {self.total} devices; "
                "give a multiple with --batch-size"
            )
        if recipe.precision == "16-mixed" and self.device.type == "cpu":
            raise SOTRError("precision 16-mixed needs a GPU; use bf16-mixed, 32-true or auto")
        if self.strategy == "fsdp" and recipe.ema_decay:
            raise SOTRError("strategy fsdp keeps no average of the weights; set ema_decay to 0, or use ddp")
        if recipe.batch_norm == "sync" and self.total > 1 and self.device.type != "cuda":
            raise SOTRError("batch_norm 'sync' needs CUDA devices; use 'frozen' or 'batch'")

    def trainer_arguments(self) -> dict[str, Any]:
        """What tells Lightning's trainer all this."""
        strategy: Any = "ddp" if self.strategy == "auto" and self.total > 1 else self.strategy
        if strategy == "fsdp":
            strategy = FSDPStrategy(state_dict_type="full")
        devices: Any = self.per_node
        if self.device.type == "cuda" and self.per_node == 1:
            devices = [self.device.index or 0]
        accelerator = "gpu" if self.device.type == "cuda" else self.device.type
        return {"accelerator": accelerator, "devices": devices, "num_nodes": self.nodes, "strategy": strategy}


def sharded(module: SOTRModule) -> bool:
    """Whether the devices share out the weights, so that all processes must take part in gathering them."""
    return isinstance(module.trainer.strategy.model, FullyShardedDataParallel)


@contextmanager
def whole_weights(module: SOTRModule) -> Iterator[None]:
    """In the block this process has all weights; where they are shared out, all processes must enter it together."""
    whole = module.trainer.strategy.model
    if isinstance(whole, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(whole, writeback=False):
            yield
    else:
        yield


def share_statistics(module: SOTRModule) -> None:
    """Give all processes the first one's BatchNorm statistics; the others' are those of their own images."""
    if dist.is_available() and dist.is_initialized():
        for buffer in module.network.buffers():
            dist.broadcast(buffer, 0)
