"""How `sotr serve` does under load: throughput, waiting times, shed requests and memory, with 1, 4, 16 and 64 clients.

    python benchmarks/serve_load.py            # about five minutes
    python benchmarks/serve_load.py --quick    # about one

Starts a server of its own on a free port of this machine, on which the clients run, too: they take a small part of
its time. Each client sends the sample picture again as soon as it has its answer; one that is refused waits as long as
the server asks it to, but at most a second. Every stage is bounded in seconds and in requests.

Memory is asked for every second while a stage runs. A long soak at constant load follows: its parts show whether memory
goes on growing, which the stages cannot, for each of them asks for more than the one before.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field

import httpx

CLIENTS = (1, 4, 16, 64)

SOAK_CLIENTS = 16

SOAK_PARTS = 6


@dataclass
class Stage:
    """What came of some clients' requests."""

    clients: int
    seconds: float = 0.0
    answered: list[float] = field(default_factory=list)
    """Seconds of each request that was answered."""
    shed: int = 0
    failed: int = 0
    memory: list[float] = field(default_factory=list)
    """The server's resident memory in MB, second by second."""

    def line(self) -> str:
        times = sorted(self.answered) or [float("nan")]
        median, last = times[len(times) // 2], times[min(len(times) - 1, int(0.99 * len(times)))]
        return (
            f"| {self.clients} | {len(self.answered)} | {len(self.answered) / self.seconds:.2f} | {median:.2f} | "
            f"{last:.2f} | {self.shed} | {self.failed} | {self.memory[-1]:.0f} | {max(self.memory):.0f} |"
        )


async def run_stage(http: httpx.AsyncClient, picture: bytes, stage: Stage, seconds: float, requests: int) -> None:
    """Let the clients of a stage run side by side until its time or its requests are used up."""
    started = time.perf_counter()
    left = requests

    async def client() -> None:
        nonlocal left
        while left > 0 and time.perf_counter() - started < seconds:
            left -= 1
            sent = time.perf_counter()
            try:
                response = await http.post("predict", content=picture, headers={"Content-Type": "image/png"})
            except httpx.TransportError:
                stage.failed += 1
                continue
            if response.status_code == 200:
                stage.answered.append(time.perf_counter() - sent)
            elif response.status_code == 503:
                stage.shed += 1
                await asyncio.sleep(min(1.0, float(response.headers["Retry-After"])))
            else:
                stage.failed += 1

    async def watch() -> None:
        while True:
            stage.memory.append(await resident_memory(http))
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client() for _ in range(stage.clients)))
    stage.seconds = time.perf_counter() - started
    watching.cancel()
    stage.memory.append(await resident_memory(http))


async def resident_memory(http: httpx.AsyncClient) -> float:
    """The server's resident memory in MB."""
    lines = (await http.get("metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes ")) / 1e6


async def soak(http: httpx.AsyncClient, picture: bytes, seconds: float) -> None:
    """Constant load in `SOAK_PARTS` parts, and the memory in each."""
    print(f"\nsoak: {SOAK_CLIENTS} clients for {seconds:g} s\n")
    print("| part | answered | shed | failed | memory MB, lowest | mean | highest |")
    print("|---|---|---|---|---|---|---|", flush=True)
    means = []
    for part in range(1, SOAK_PARTS + 1):
        stage = Stage(SOAK_CLIENTS)
        await run_stage(http, picture, stage, seconds / SOAK_PARTS, sys.maxsize)
        memory = stage.memory
        means.append(sum(memory) / len(memory))
        print(
            f"| {part} | {len(stage.answered)} | {stage.shed} | {stage.failed} | {min(memory):.0f} | {means[-1]:.0f} | "
            f"{max(memory):.0f} |",
            flush=True,
        )
    print(f"\nmean memory of the last part minus that of the second: {means[-1] - means[1]:+.0f} MB")


async def measure(url: str, seconds: float, requests: int, soak_seconds: float) -> None:
    """All stages, one after another, and the soak, against the server at `url`."""
    limits = httpx.Limits(max_connections=2 * max(CLIENTS))
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        picture = (await http.get("sample")).content
        warm_up = Stage(1)
        await run_stage(http, picture, warm_up, seconds, 3)
        print(f"memory before: {await resident_memory(http):.0f} MB\n")
        print("| clients | answered | pictures/s | median s | p99 s | shed | failed | memory MB | highest |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        for clients in CLIENTS:
            stage = Stage(clients)
            await run_stage(http, picture, stage, seconds, requests)
            print(stage.line(), flush=True)
        if soak_seconds:
            await soak(http, picture, soak_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nuclei", help="the model to serve")
    parser.add_argument("--seconds", type=float, default=30, help="time of each stage")
    parser.add_argument("--requests", type=int, default=2000, help="at most so many requests in each stage")
    parser.add_argument("--quick", action="store_true", help="8 s and 200 requests for each stage, a soak of 24 s")
    parser.add_argument("--soak", type=float, default=150, help="seconds of constant load at the end; 0 for none")
    options = parser.parse_args()
    seconds, requests, soaking = options.seconds, options.requests, options.soak
    if options.quick:
        seconds, requests, soaking = 8.0, 200, 24.0

    command = [sys.executable, "-m", "sotr.cli", "serve", "--port", "0", "--model", options.model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = next((word for word in server.stdout.readline().split() if word.startswith("http://")), None)
        if address is None:
            sys.exit("the server did not start; its message is above")
        load = os.getloadavg()[0]
        print(
            f"{options.model}, {os.cpu_count()} cores (load {load:.1f}), {seconds:g} s a stage, {soaking:g} s of soak"
        )
        try:
            asyncio.run(measure(address, seconds, requests, soaking))
        finally:
            server.terminate()
        server.wait()
    print(f"\nthe server ended with code {server.returncode}")


if __name__ == "__main__":
    main()
