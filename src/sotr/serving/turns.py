"""Who is next where few can be served at a time: no client takes all places, and whoever has fewest goes first."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import TypeVar

R = TypeVar("R")


class Turns:
    """Places shared out among clients. Not for threads: all calls come from one event loop.

    Args:
        places: how many can be served at a time.
        of_one: how many of them one client may have.
    """

    def __init__(self, places: int, of_one: int) -> None:
        self._free = places
        self._of_one = of_one
        self._held: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    async def take(self, client: str) -> None:
        """Wait for a place; `give_back` it for the same client."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((client, turn))
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the moment at which nobody wanted it any more
                self.give_back(client)
            raise

    async def run(self, client: str, executor: Executor, function: Callable[[], R]) -> R:
        """What a function returns in a thread. The client has its place until that has ended, waited for or not."""
        loop = asyncio.get_running_loop()
        await self.take(client)
        working = executor.submit(function)

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # of a loop that has ended
                loop.call_soon_threadsafe(self.give_back, client)

        working.add_done_callback(ended)
        return await asyncio.wrap_future(working)

    def give_back(self, client: str) -> None:
        """Let the next one have the place."""
        self._free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        self._next()

    def _next(self) -> None:
        self._waiting = [each for each in self._waiting if not each[1].done()]
        while self._free:
            able = [each for each in self._waiting if self._held[each[0]] < self._of_one]
            if not able:
                return
            chosen = min(able, key=lambda each: self._held[each[0]])  # the first of equals has waited longest
            self._waiting.remove(chosen)
            self._free -= 1
            self._held[chosen[0]] += 1
            chosen[1].set_result(None)
