"""Who is next where few can be served at a time."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sotr.serving.turns import Turns


def order_of(clients: str, places: int, of_one: int) -> str:
    """Who got a place, in order, when all ask at once and the oldest place is given back again and again."""

    async def run() -> str:
        turns, got, held = Turns(places, of_one), [], []

        async def ask(client: str) -> None:
            await turns.take(client)
            got.append(client)
            held.append(client)

        tasks = [asyncio.create_task(ask(client)) for client in clients]
        while len(got) < len(clients):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if held:
                turns.give_back(held.pop(0))
        await asyncio.gather(*tasks)
        return "".join(got)

    return asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize(
    ("clients", "places", "of_one", "expected"),
    [
        ("aaab", 3, 2, "aaba"),  # b does not wait for any of a
        ("aaaa", 1, 1, "aaaa"),
        ("aabbcc", 2, 2, "aabcbc"),
        ("aaaabc", 2, 1, "abacaa"),
    ],
)
def test_no_client_has_all_places(clients: str, places: int, of_one: int, expected: str) -> None:
    assert order_of(clients, places, of_one) == expected


def test_whoever_leaves_takes_no_place() -> None:
    async def run() -> None:
        turns = Turns(1, 1)
        await turns.take("a")
        leaving = [asyncio.create_task(turns.take(client)) for client in "bc"]
        await asyncio.sleep(0)
        leaving[0].cancel()
        turns.give_back("a")
        leaving[1].cancel()  # at the moment at which it has its place
        await asyncio.gather(*leaving, return_exceptions=True)
        await asyncio.wait_for(turns.take("d"), 1)

    asyncio.run(run())


def test_a_place_is_held_until_the_thread_has_ended() -> None:
    async def run() -> None:
        turns, go, ran = Turns(1, 1), threading.Event(), []
        with ThreadPoolExecutor(2) as pool:
            first = asyncio.create_task(turns.run("a", pool, lambda: go.wait(10)))
            await asyncio.sleep(0.05)
            first.cancel()  # nobody waits for it, but it goes on
            second = asyncio.create_task(turns.run("b", pool, lambda: ran.append("b")))
            await asyncio.sleep(0.05)
            assert ran == []
            go.set()
            await asyncio.wait_for(second, 10)
            assert ran == ["b"]
            with pytest.raises(ZeroDivisionError):
                await turns.run("c", pool, lambda: 1 // 0)
            assert await asyncio.wait_for(turns.run("d", pool, lambda: 5), 10) == 5

    asyncio.run(run())
