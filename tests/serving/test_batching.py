"""Which items meet in a batch, and that nobody is forgotten."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from sotr.serving.batching import Batcher


class Work:
    """A function for a batcher that waits until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.go = threading.Event()

    def __call__(self, key: str, items: Sequence[int]) -> list[int]:
        self.batches.append((key, list(items)))
        assert self.go.wait(10)
        if key == "bad":
            raise RuntimeError("a bug")
        return [10 * item for item in items]


def submit_all(jobs: list[tuple[str, int]], max_batch: int, gone: Sequence[int] = ()) -> tuple[Work, list[object]]:
    """Submit `jobs` one after another while the first is at work; those numbered in `gone` are given up meanwhile."""
    work = Work()

    async def run() -> list[object]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(work, max_batch, executor)
            tasks = []
            for key, item in jobs:
                tasks.append(asyncio.create_task(batcher.submit(key, item)))
                await asyncio.sleep(0)
            while not work.batches:
                await asyncio.sleep(0.001)
            for number in gone:
                tasks[number].cancel()
            await asyncio.sleep(0)
            work.go.set()
            return list(await asyncio.gather(*tasks, return_exceptions=True))

    return work, asyncio.run(run())


def test_what_waits_and_is_alike_goes_together_oldest_first() -> None:
    jobs = [("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5), ("b", 6), ("b", 7)]
    work, results = submit_all(jobs, max_batch=3)
    assert results == [10, 20, 30, 40, 50, 60, 70]
    # The first goes at once, alone: nobody waits for company.
    assert work.batches == [("a", [1]), ("b", [2, 4, 6]), ("a", [3, 5]), ("b", [7])]


def test_callers_who_have_gone_cost_nothing_and_harm_nobody() -> None:
    jobs = [("a", 1), ("a", 2), ("a", 3), ("a", 4)]
    work, results = submit_all(jobs, max_batch=8, gone=[0, 2])
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False, True, False]
    assert (results[1], results[3]) == (20, 40)
    assert work.batches == [("a", [1]), ("a", [2, 4])]


def test_an_error_reaches_all_of_its_batch_and_no_other() -> None:
    jobs = [("a", 1), ("bad", 2), ("a", 3), ("bad", 4)]
    work, results = submit_all(jobs, max_batch=8)
    assert results[0::2] == [10, 30]
    assert [str(result) for result in results[1::2]] == ["a bug", "a bug"]
    assert len(work.batches) == 3


def test_it_starts_again_after_a_rest() -> None:
    work = Work()
    work.go.set()

    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(work, 4, executor)
            assert await batcher.submit("a", 1) == 10
            await asyncio.sleep(0.01)
            assert await batcher.submit("a", 2) == 20
            with pytest.raises(RuntimeError, match="a bug"):
                await batcher.submit("bad", 3)
            assert await batcher.submit("a", 4) == 40

    asyncio.run(run())
