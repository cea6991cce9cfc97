"""How `sotr serve` does under load: waiting times, refused requests and memory, with few and with many clients."""

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from statistics import mean, quantiles

import httpx

from benchmarks.measure import describe_machine
from sotr.errors import SOTRError
from sotr.model.segmenter import choose_device

FLAT = 0.05
"""Part of the memory by which it may grow from a stage's first fifth to its last and still count as flat."""

WARM_UP = 20
"""Seconds before the first stage, of as many clients as there are places: buffers grow to what they need."""


@dataclass
class Stage:
    """What came of some clients' requests."""

    clients: int
    seconds: float = 0.0
    answered: list[float] = field(default_factory=list)
    """Seconds of each request that was answered."""
    shed: list[float] = field(default_factory=list)
    """Seconds of each request that was told to come again."""
    failed: int = 0
    memory: list[float] = field(default_factory=list)
    """The server's resident memory in MB, second by second."""

    @property
    def ends(self) -> tuple[float, float]:
        """Mean memory in MB over the first and over the last fifth."""
        fifth = max(1, len(self.memory) // 5)
        return mean(self.memory[:fifth]), mean(self.memory[-fifth:])

    @property
    def growth(self) -> float:
        """Part by which the memory grew from the first fifth to the last."""
        return self.ends[1] / self.ends[0] - 1

    def line(self) -> str:
        """One row of the table."""
        return (
            f"| {self.clients} | {len(self.answered)} | {len(self.answered) / self.seconds:.2f} | "
            f"{_percentile(self.answered, 50)} | {_percentile(self.answered, 99)} | {len(self.shed)} | "
            f"{_percentile(self.shed, 50)} | {_percentile(self.shed, 99)} | {self.failed} | {self.ends[0]:.0f} | "
            f"{self.ends[1]:.0f} | {self.growth:+.1%} |"
        )


HEAD = (
    "| clients | accepted | a second | p50 s | p99 s | shed | p50 s | p99 s | failed | MB first | MB last | growth |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def load(
    model: str = "nuclei",
    seconds: float = 300.0,
    clients: str = "1,4,16,64",
    engine: str = "auto",
    quick: bool = False,
) -> list[Stage]:
    """Start a server on this machine and let clients send its sample image as quickly as they get answers.

    A client that is told to come again waits as long as the server asks it to, but at most a second. The clients run
    on this machine, too, and take some of its time. Exit code 1: a request failed, or memory grew by more than 5 %.

    Args:
        model: the model to serve.
        seconds: time of each stage.
        clients: of each stage, separated by commas.
        engine: auto or pytorch.
        quick: eight seconds a stage.

    Raises:
        SOTRError: an argument is out of range, or the server does not start.
    """
    try:
        counts = [int(count) for count in clients.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise SOTRError(f"clients is {clients!r}; give numbers such as 1,4,16")
    if not seconds > 0:
        raise SOTRError(f"seconds is {seconds}; it must be positive")
    seconds = 8.0 if quick else seconds
    command = [sys.executable, "-m", "sotr.cli", "serve", "--port", "0", "--model", model, "--engine", engine]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = next((word for word in server.stdout.readline().split() if word.startswith("http://")), None)
        if address is None:
            raise SOTRError("the server did not start; its message is above")
        machine = describe_machine(choose_device("cpu"))
        print(
            f"{model}, {os.cpu_count()} cores of {machine.processor} (load {os.getloadavg()[0]:.1f} before), "
            f"{seconds:g} s a stage\n"
        )
        try:
            stages = asyncio.run(_measure(address, seconds, counts))
        finally:
            server.terminate()
        server.wait()
    grown = [stage.clients for stage in stages if stage.growth > FLAT]
    failed = sum(stage.failed for stage in stages)
    print(f"\nmemory grew by more than {FLAT:.0%} with {grown} clients" if grown else f"\nmemory is flat to {FLAT:.0%}")
    print(f"{failed} requests failed; the server ended with code {server.returncode}")
    if grown or failed or server.returncode:
        sys.exit(1)
    return stages


async def _measure(url: str, seconds: float, counts: list[int]) -> list[Stage]:
    limits = httpx.Limits(max_connections=2 * max(counts))
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        image = (await http.get("sample")).content
        await _run(http, image, Stage(min(32, max(counts))), WARM_UP)
        print(f"memory before: {await _memory(http):.0f} MB\n\n{HEAD}", flush=True)
        stages = []
        for count in counts:
            stages.append(Stage(count))
            await _run(http, image, stages[-1], seconds)
            print(stages[-1].line(), flush=True)
        return stages


async def _run(http: httpx.AsyncClient, image: bytes, stage: Stage, seconds: float) -> None:
    """Let the clients of a stage run side by side until its time is used up."""
    started = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - started < seconds:
            sent = time.perf_counter()
            try:
                response = await http.post("predict", content=image, headers={"Content-Type": "image/png"})
            except httpx.HTTPError:
                stage.failed += 1
                continue
            taken = time.perf_counter() - sent
            if response.status_code == 200:
                stage.answered.append(taken)
            elif response.status_code == 503:
                stage.shed.append(taken)
                await asyncio.sleep(min(1.0, float(response.headers["Retry-After"])))
            else:
                stage.failed += 1

    async def watch() -> None:
        while True:
            stage.memory.append(await _memory(http))
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client() for _ in range(stage.clients)))
    stage.seconds = time.perf_counter() - started
    watching.cancel()
    stage.memory.append(await _memory(http))


async def _memory(http: httpx.AsyncClient) -> float:
    """The server's resident memory in MB."""
    lines = (await http.get("metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes ")) / 1e6


def _percentile(seconds: list[float], percent: int) -> str:
    if not seconds:
        return "-"
    return f"{quantiles(seconds * 2, n=100, method='inclusive')[percent - 1]:.2f}"
