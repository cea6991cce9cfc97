"""Dynamic batching: what has come while the last batch ran, and is alike, goes through the network together."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Job(Generic[K, T, R]):
    key: K
    item: T
    result: "asyncio.Future[R]"


class Batcher(Generic[K, T, R]):
    """Runs a function over batches of waiting items, one batch at a time, oldest item first.

    A batch is the oldest waiting item and the next ones of the same key. Nobody waits for company: while nothing runs,
    a lone item goes at once. Items whose caller has gone are dropped. Callers bound how many wait. Not for threads:
    all calls come from one event loop.

    Args:
        function: maps a key and items of that key to their results; called in the executor.
        max_batch: items in a batch, at most.
        executor: where the function runs.
    """

    def __init__(self, function: Callable[[K, Sequence[T]], Sequence[R]], max_batch: int, executor: Executor) -> None:
        self._function = function
        self._max_batch = max_batch
        self._executor = executor
        self._waiting: deque[_Job[K, T, R]] = deque()
        self._runner: asyncio.Task[None] | None = None

    async def submit(self, key: K, item: T) -> R:
        """The function's result for `item`, or the exception that its batch raised."""
        loop = asyncio.get_running_loop()
        job: _Job[K, T, R] = _Job(key, item, loop.create_future())
        self._waiting.append(job)
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        return await job.result

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            items = [job.item for job in batch]
            try:
                results = await loop.run_in_executor(self._executor, self._function, batch[0].key, items)
            except Exception as error:
                for job in batch:
                    if not job.result.done():
                        job.result.set_exception(error)
            else:
                for job, result in zip(batch, results, strict=True):
                    if not job.result.done():  # its caller may have gone meanwhile
                        job.result.set_result(result)
        self._runner = None

    def _next_batch(self) -> list[_Job[K, T, R]]:
        alive = [job for job in self._waiting if not job.result.done()]
        alike = [job for job in alive if job.key == alive[0].key][: self._max_batch]
        chosen = set(map(id, alike))
        self._waiting = deque(job for job in alive if id(job) not in chosen)
        return alike
