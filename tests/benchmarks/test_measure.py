import time

import numpy as np
import torch
from benchmarks.measure import Stopwatch, alternate, describe_machine, peak_memory, spread


def allocate(mebibytes: int) -> None:
    np.ones(mebibytes * 2**20, np.uint8)


def test_sides_take_turns_after_a_round_to_warm_up():
    order = []

    def side(name, seconds):
        def work():
            order.append(name)
            return {"network": seconds * len(order), "decoding": seconds}

        return work

    found = alternate({"a": side("a", 1.0), "b": side("b", 10.0)}, runs=3)
    assert order == ["a", "b"] * 4
    assert found["a"]["network"].median == 5.0  # of 3, 5 and 7: the first round, 1, is not counted
    assert found["b"]["network"].median == 60.0
    assert found["b"]["total"].median == 70.0
    assert (found["a"]["total"].low, found["a"]["total"].high, found["a"]["total"].runs) == (5.0, 7.0, 3)


def test_what_the_side_before_left_is_settled_first():
    order = []

    def side(name):
        def work():
            order.append(name)
            return {"network": float(len(order))}

        return work

    found = alternate({"a": side("a"), "b": side("b")}, runs=2, settle=True)
    assert order == [*"ab", *"aabb", *"aabb"]
    assert (found["a"]["total"].low, found["a"]["total"].high) == (4.0 + 1.0, 8.0 - 1.0)  # quartiles of 4 and 8


def test_spread_is_median_and_quartiles():
    values = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0]
    found = spread(values)
    np.testing.assert_allclose([found.low, found.median, found.high], np.percentile(values, [25, 50, 75]))
    assert spread([2.0]).low == spread([2.0]).high == 2.0


def test_a_stopwatch_books_all_time_once():
    start = time.perf_counter()
    watch = Stopwatch(torch.device("cpu"))
    for part in ("a", "b", "a"):
        time.sleep(0.01)
        watch.lap(part)
    assert list(watch.parts) == ["a", "b"]
    assert watch.parts["a"] >= 0.02
    assert sum(watch.parts.values()) <= time.perf_counter() - start


def test_peak_memory_is_that_of_the_work_alone():
    # The system keeps count of pages per core and adds them up now and then: it may be some MiB behind.
    assert 190 <= peak_memory(allocate, 200) < 260


def test_machine():
    machine = describe_machine(torch.device("cpu"))
    assert machine.threads == torch.get_num_threads()
    assert torch.__version__.startswith(machine.versions["torch"])
    assert machine.kind
    assert set(machine.kind) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
