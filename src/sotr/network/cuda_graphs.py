"""Work on a GPU recorded once and replayed: a network is a thousand launches, each of which costs the processor more
time than its kernel runs."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any

import torch
from torch import Tensor


class Recorded:
    """A function of a CUDA tensor and of settings, recorded for each shape and settings that come again and again.

    Its results are those of the function, in memory of the caller's. Safe in several threads that use the same stream.
    What cannot be recorded, since it waits for the device, goes on as it is.

    Args:
        function: whose work is the same for every tensor of a shape. What it keeps from one call to the next must not
            change any more after the first.
        most: shapes and settings that are remembered, those used last. Their recordings share the device's memory for
            what is neither input nor output.
        after: calls before one is recorded, which takes as long as many calls.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], most: int = 16, after: int = 3) -> None:
        self.function, self.most, self.after = function, most, after
        self._calls: OrderedDict[Hashable, int] = OrderedDict()
        self._recordings: dict[Hashable, _Recording] = {}
        self._pool: Any | None = None
        self._lock = Lock()

    def __call__(self, x: Tensor, *settings: Hashable) -> Sequence[Tensor]:
        """The function's results."""
        with self._lock:
            key = x.shape, settings
            self._calls[key] = self._calls.get(key, 0) + 1
            self._calls.move_to_end(key)
            if len(self._calls) > self.most:
                oldest, _ = self._calls.popitem(last=False)
                self._recordings.pop(oldest, None)
            if self._calls[key] <= self.after:
                return self.function(x, *settings)
            if key not in self._recordings:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._recordings[key] = _Recording(lambda x: self.function(x, *settings), x, self._pool)
            return self._recordings[key](x)


class _Recording:
    def __init__(self, function: Callable[[Tensor], Sequence[Tensor]], x: Tensor, pool: Any) -> None:
        self.function = function
        self.input = x.clone()
        self.graph: torch.cuda.CUDAGraph | None = None
        with suppress(RuntimeError), torch.cuda.device(x.device):
            # Libraries want some of their memory for each stream, and not while a recording is made.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                function(self.input)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may well use the device meanwhile.
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                self.output = function(self.input)
            self.graph = graph

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        if self.graph is None:
            return self.function(x)
        self.input.copy_(x)
        self.graph.replay()
        # The next replay writes over its output, maybe while this one's is still read.
        return [each.clone() for each in self.output]
