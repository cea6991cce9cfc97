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
    """A function of a CUDA tensor and of settings, recorded for each shape and settings that come again.

    Its results are those of the function, in memory of the caller's. Safe in several threads that use the same stream.
    What cannot be recorded, since it waits for the device, goes on as it is.

    Args:
        function: whose work is the same for every tensor of a shape. What it keeps from one call to the next must not
            change any more after the first.
        most: recordings that are kept. They share the device's memory for what is neither input nor output.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], most: int = 8) -> None:
        self.function, self.most = function, most
        self._recordings: OrderedDict[Hashable, _Recording | None] = OrderedDict()
        self._pool: Any | None = None
        self._lock = Lock()

    def __call__(self, x: Tensor, *settings: Hashable) -> Sequence[Tensor]:
        """The function's results."""
        with self._lock:
            key = x.shape, settings
            if key not in self._recordings:  # many never come again
                self._recordings[key] = None
                while len(self._recordings) > self.most:
                    self._recordings.popitem(last=False)
                return self.function(x, *settings)
            self._recordings.move_to_end(key)
            recording = self._recordings[key]
            if recording is None:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                recording = self._recordings[key] = _Recording(lambda x: self.function(x, *settings), x, self._pool)
            return recording(x)


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
