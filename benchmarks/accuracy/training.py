"""Training for a budget of processor time, which may be interrupted and go on later."""

import math
import pickle
import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.accuracy.competitors import Competitor
from benchmarks.accuracy.study import SHARES, Plan, Point, Progress
from sotr.config import SOTRConfig
from sotr.data.batches import train_loader
from sotr.data.coco import CocoDataset
from sotr.data.sampling import EpochSampler
from sotr.errors import SOTRError
from sotr.files import atomic_write
from sotr.training.module import attention_for, seed_step
from sotr.training.recipe import Recipe

LONG = 1_000_000
"""Steps that no budget reaches: the schedule follows the processor time alone."""

SAVE_EVERY = 120.0
"""Processor seconds from one checkpoint to the next."""


class Stopped(Exception):
    """The training was told to stop, and has written its checkpoint."""


def processor_seconds() -> float:
    """User and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def schedule(used: float, warmup: float = 0.1) -> float:
    """The rate after a share of the budget, as a multiple of the highest: a linear rise, then a cosine to 1 %."""
    if used < warmup:
        return 0.01 + 0.99 * used / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (used - warmup) / (1 - warmup)))


class Training:
    """A competitor's training, from its checkpoint on if there is one.

    Args:
        checkpoint: file to write about every `SAVE_EVERY` processor seconds; None writes none.
        most_steps: end after so many steps, if the budget is not used up before.

    Raises:
        SOTRError: the checkpoint cannot be read.
    """

    def __init__(
        self,
        competitor: Competitor,
        data: CocoDataset,
        config: SOTRConfig,
        recipe: Recipe,
        plan: Plan,
        checkpoint: Path | None = None,
        most_steps: int = LONG,
    ) -> None:
        self.competitor, self.plan, self.checkpoint, self.most_steps = competitor, plan, checkpoint, most_steps
        self.progress = Progress()
        self._network = competitor.network.to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.AdamW(competitor.groups(plan.lr), betas=(recipe.momentum, 0.999))
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._learned = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        self._average = _Average(self._network, recipe.ema_decay)
        self._loader = train_loader(
            data,
            config,
            recipe.augmentation,
            batch_size=recipe.batch_size,
            mask_stride=competitor.mask_stride,
            seed=plan.seed,
        )
        if checkpoint is not None and checkpoint.is_file():
            self._read(checkpoint)
        self._saved_s = self.progress.used_s
        self._clock = (0.0, 0.0)

    def run(
        self, measure: Callable[[], tuple[float, float]] | None = None, stopped: Callable[[], bool] = lambda: False
    ) -> Progress:
        """Train until the budget is used up, with all that is spent on data in it.

        The network ends with the moving average of its weights.

        Args:
            measure: AP and AP50 of the network as it is, after each of `SHARES`; what it costs is not in the budget.
            stopped: asked after each step whether to stop.

        Raises:
            Stopped: it was told to; the checkpoint is written.
        """
        progress, sampler = self.progress, self._loader.sampler
        assert isinstance(sampler, EpochSampler)
        self._start_clock()
        while True:
            sampler.set_position(progress.epoch, progress.position)
            for batch in self._loader:
                self._read_clock()
                used = max(progress.used_s / self.plan.budget_s, progress.step / self.most_steps)
                if used >= 1:
                    self._average.swap()
                    return progress
                if measure and progress.measured < len(SHARES) and used >= SHARES[progress.measured]:
                    self._measure(measure, used)
                self._step(batch, used)
                progress.position += self._loader.batch_size or 1
                if stopped():
                    self._read_clock()
                    self._write()
                    raise Stopped
                if progress.used_s - self._saved_s >= SAVE_EVERY:
                    self._write()
            progress.epoch, progress.position = progress.epoch + 1, 0

    def _step(self, batch: object, used: float) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._rates):
            group["lr"] = rate * schedule(used)
        seed_step(self.plan.seed, self.progress.step, 0)
        with torch.autocast("cpu", torch.bfloat16), attention_for(torch.device("cpu")):
            loss = self.competitor.loss(batch)
        self._optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._learned, self.competitor.clip_norm or math.inf)
        if norm.isfinite():
            self._optimizer.step()
        else:  # a rate that is too high must not end a search of rates
            self.progress.skipped += 1
        self.progress.step += 1
        self.progress.losses.append([round(self.progress.used_s, 3), float(loss.detach())])
        self._average.update(self.progress.step)

    def _measure(self, measure: Callable[[], tuple[float, float]], used: float) -> None:
        progress = self.progress
        self._average.swap()
        ap, ap50 = measure()
        self._average.swap()
        progress.curve.append(asdict(Point(progress.used_s, progress.step, ap, ap50)))
        progress.measured = sum(share <= used for share in SHARES)
        self._start_clock()
        self._write()

    def _start_clock(self) -> None:
        self._clock = processor_seconds(), time.perf_counter()

    def _read_clock(self) -> None:
        """Book what was used since the clock was started or read."""
        now = processor_seconds(), time.perf_counter()
        self.progress.used_s += now[0] - self._clock[0]
        self.progress.wall_s += now[1] - self._clock[1]
        self._clock = now

    def _write(self) -> None:
        if self.checkpoint is None:
            return
        state = {
            "progress": asdict(self.progress),
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.mean,
        }
        with atomic_write(self.checkpoint) as file:
            torch.save(state, file)
        self._saved_s = self.progress.used_s
        self._start_clock()

    def _read(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.progress = Progress(**state["progress"])
            self._network.load_state_dict(state["network"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._average.load(state["average"])
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SOTRError(f"{path} cannot be read ({reason}); remove it to train anew") from None


class _Average:
    """The moving average of a network's floating-point weights and buffers."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self._current = [value for value in network.state_dict().values() if value.is_floating_point()]
        self.mean: list[Tensor] = [value.clone() for value in self._current]

    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.mean, self._current, 1 - min(self._decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def load(self, mean: list[Tensor]) -> None:
        torch._foreach_copy_(self.mean, mean)

    @torch.no_grad()
    def swap(self) -> None:
        """Put the average in the network's place, and the other way round."""
        current = [value.clone() for value in self._current]
        torch._foreach_copy_(self._current, self.mean)
        torch._foreach_copy_(self.mean, current)
