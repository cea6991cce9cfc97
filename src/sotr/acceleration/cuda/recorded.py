"""Work on a GPU recorded once as a CUDA graph and replayed.

A network launches about a thousand kernels. Launching each one takes longer than running it; a graph launches all at
once.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor


class Recorded:
    """A function of a CUDA tensor and of settings, recorded for each shape and settings that occur often.

    It returns what the function returns, in memory of its own. It is safe in several threads that use the same stream.
    A function that cannot be recorded, since it waits for the device, is called as it is, after one warning.

    Args:
        function: it must do the same work for every tensor of a shape, and keep nothing that changes after its first
            call.
        most: how many shapes and settings are remembered, those used last. Their recordings share memory.
        after: how many calls pass before one is recorded. Recording takes as long as many calls.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], most: int = 16, after: int = 3) -> None:
        self.function, self.most, self.after = function, most, after
        self._calls: OrderedDict[Hashable, int] = OrderedDict()
        self._recordings: dict[Hashable, _Recording] = {}
        self._place: tuple[torch.cuda.Stream, Any] | None = None
        self._fails = False
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
            if self._calls[key] > self.after and not self._fails and key not in self._recordings:
                recording = self._record(x, settings)
                self._fails = recording is None
                if recording is not None:
                    self._recordings[key] = recording
            return self._recordings[key](x) if key in self._recordings else self.function(x, *settings)

    def _record(self, x: Tensor, settings: tuple[Hashable, ...]) -> "_Recording | None":
        """A recording; None, and a warning, if that cannot be."""
        function = self.function
        if self._place is None:  # only on one stream do recordings share memory
            self._place = torch.cuda.Stream(x.device), torch.cuda.graph_pool_handle()
        try:
            # Back to this stream even where a failure leaves the other one in its place.
            with _RECORDING, torch.cuda.stream(torch.cuda.current_stream(x.device)):
                return _Recording(lambda x: function(x, *settings), x, *self._place)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"goes on without CUDA graphs, which cannot be made here: {reason}", stacklevel=3)
            return None


_RECORDING = Lock()
"""To record waits for the whole device, which would spoil another recording."""


class _Recording:
    def __init__(
        self, work: Callable[[Tensor], Sequence[Tensor]], x: Tensor, stream: torch.cuda.Stream, pool: Any
    ) -> None:
        self.input = x.clone()
        # Libraries want some of their memory for each stream, and not while a recording is made.
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            work(self.input)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may well use the device meanwhile.
        with torch.cuda.graph(self.graph, pool, stream, capture_error_mode="thread_local"):
            self.output = work(self.input)

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        self.input.copy_(x)
        self.graph.replay()
        # The next replay writes over its output, maybe while this one's is still read.
        return [each.clone() for each in self.output]
