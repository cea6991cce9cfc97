"""How `sotr serve` does under load: throughput, waiting times, shed requests and memory, with 1, 4, 16 and 64 clients.

    python benchmarks/serve_load.py --quick

Starts a server of its own on a free port of this machine, on which the clients run, too: they take a small part of
its time. Each client sends the sample picture again as soon as it has its answer; one that is refused waits as long as
the server asks it to, but at most a second. Every stage is bounded in seconds and in requests.
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


@dataclass
class Stage:
    """What came of some clients' requests."""

    clients: int
    seconds: float = 0.0
    answered: list[float] = field(default_factory=list)
    """Seconds of each request that was answered."""
    shed: int = 0
    failed: int = 0
    memory: float = 0.0
    """The server's resident memory after the stage, in MB."""

    def line(self) -> str:
        times = sorted(self.answered) or [float("nan")]
        median, last = times[len(times) // 2], times[min(len(times) - 1, int(0.99 * len(times)))]
        return (
            f"| {self.clients} | {len(self.answered)} | {len(self.answered) / self.seconds:.2f} | {median:.2f} | "
            f"{last:.2f} | {self.shed} | {self.failed} | {self.memory:.0f} |"
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

    await asyncio.gather(*(client() for _ in range(stage.clients)))
    stage.seconds = time.perf_counter() - started


async def resident_memory(http: httpx.AsyncClient) -> float:
    """The server's resident memory in MB."""
    lines = (await http.get("metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes ")) / 1e6


async def measure(url: str, seconds: float, requests: int) -> None:
    """All stages, one after another, against the server at `url`."""
    limits = httpx.Limits(max_connections=2 * max(CLIENTS))
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        picture = (await http.get("sample")).content
        warm_up = Stage(1)
        await run_stage(http, picture, warm_up, seconds, 3)
        print(f"memory before: {await resident_memory(http):.0f} MB\n")
        print("| clients | answered | pictures/s | median s | p99 s | shed | failed | memory MB |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for clients in CLIENTS:
            stage = Stage(clients)
            await run_stage(http, picture, stage, seconds, requests)
            stage.memory = await resident_memory(http)
            print(stage.line(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nuclei", help="the model to serve")
    parser.add_argument("--seconds", type=float, default=30, help="time of each stage")
    parser.add_argument("--requests", type=int, default=2000, help="at most so many requests in each stage")
    parser.add_argument("--quick", action="store_true", help="8 s and 200 requests for each stage")
    options = parser.parse_args()
    seconds, requests = (8.0, 200) if options.quick else (options.seconds, options.requests)

    command = [sys.executable, "-m", "sotr.cli", "serve", "--port", "0", "--model", options.model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = next((word for word in server.stdout.readline().split() if word.startswith("http://")), None)
        if address is None:
            sys.exit("the server did not start; its message is above")
        load = os.getloadavg()[0]
        print(f"{options.model}, {os.cpu_count()} cores (load {load:.1f}), {seconds:g} s a stage")
        try:
            asyncio.run(measure(address, seconds, requests))
        finally:
            server.terminate()
        server.wait()
    print(f"\nthe server ended with code {server.returncode}")


if __name__ == "__main__":
    main()
