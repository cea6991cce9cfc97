"""How things are timed: sides take turns within one run, so that what else the machine does meets all of them alike."""

import gc
import multiprocessing
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Parts = dict[str, float]
"""Seconds by part of the work."""

PACKAGES = ("sotr", "torch", "torchvision", "timm", "transformers")
"""Whose versions a report names."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of several runs, in seconds."""

    median: float
    low: float
    high: float
    runs: int


def spread(seconds: list[float]) -> Spread:
    """Median and quartiles; of a single run all three are that run."""
    if len(seconds) == 1:
        return Spread(seconds[0], seconds[0], seconds[0], 1)
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Spread(median, low, high, len(seconds))


class Stopwatch:
    """Splits work into parts: `lap(name)` books the time since the last lap, once the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: Parts = {}
        self._since = self._now()

    def lap(self, part: str) -> None:
        """Book what was done since the last lap, or the start, under `part`."""
        now = self._now()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._since
        self._since = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def alternate(
    sides: Mapping[str, Callable[[], Parts]],
    runs: int,
    on_run: Callable[[str], object] = str,
    settle: bool = False,
) -> dict[str, dict[str, Spread]]:
    """Run every side in turn, `runs` times after one round to warm up.

    Args:
        sides: name -> work that returns the seconds of its parts.
        on_run: told the name of each side before its turn.
        settle: begin every turn with a run that does not count, which finds memory and caches as the side before left
            them; a program that does the same again and again finds its own.

    Returns:
        Side -> part -> spread, with the part "total", the sum of a run's parts.
    """
    found: dict[str, list[Parts]] = {name: [] for name in sides}
    for turn in range(runs + 1):
        for name, work in sides.items():
            on_run(name)
            if settle and turn:
                work()
            parts = work()
            if turn:
                found[name].append(parts | {"total": sum(parts.values())})
    return {name: {part: spread([run[part] for run in of]) for part in of[0]} for name, of in found.items()}


def peak_memory(work: Callable[..., object], *arguments: Any) -> float:
    """MiB that a process of its own needs at most for `work(*arguments)` beyond what its imports took.

    It is the high-water mark of the process's resident memory, as the system counts it: weights, activations, buffers
    of libraries, and what the allocator does not give back. `work` must be importable.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_of, torch.get_num_threads(), work, arguments).result()


class Peak:
    """The most memory that was allocated on a device in a `device_peak` block, beyond what was before."""

    mib = 0.0


@contextmanager
def device_peak(device: torch.device) -> Iterator[Peak]:
    """Look at the memory that PyTorch allocates on a CUDA device; of others 0 is known."""
    peak = Peak()
    if device.type != "cuda":
        yield peak
        return
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield peak
    peak.mib = (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _peak_of(threads: int, work: Callable[..., object], arguments: tuple[Any, ...]) -> float:
    torch.set_num_threads(threads)
    # Imports leave a mark higher than what is in use once they are done; Linux can forget it.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _high_water()
    work(*arguments)
    return _high_water() - before


def _high_water() -> float:
    """MiB of resident memory at most so far."""
    # What getrusage tells on Linux includes the process that started this one.
    with suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as file:
        return int(next(line.split()[1] for line in file if line.startswith("VmHWM"))) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran."""

    processor: str
    cores: int
    threads: int
    device: str
    system: str
    versions: dict[str, str]

    @property
    def kind(self) -> str:
        """What machines are told apart by: a file name."""
        words = f"{self.device} {self.cores} cores" if self.device == self.processor else self.device
        return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"kind": self.kind}


def describe_machine(device: torch.device) -> Machine:
    """This machine, as far as timings depend on it."""
    processor = _processor()
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return Machine(
        processor=processor,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        system=f"{platform.system()} {platform.machine()}",
        versions=versions,
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    words = re.sub(r"\((?:R|TM|C)\)", "", name, flags=re.IGNORECASE).split()
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX"):
        words.append(capability)
    if torch.cpu.get_capabilities().get("amx_tile"):  # several times the speed in bfloat16
        words.append("AMX")
    return " ".join(words)
