"""What a CUDA card does during some work, and what it could do."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

COPIED = 1 << 30
"""Bytes of the copy that shows how quick the card's memory is."""

KINDS = {
    "attention": r"sdpa|fmha|flash|attention",
    "convolutions": r"fprop|dgrad|wgrad|conv",
    "matrix products": r"nvjet|gemm|cutlass|cublas",
    "copies": r"memcpy|memset|copy|cat_?array",
    "norms and sums": r"norm|reduce|moments|welford|triton_(red|per)",
    "choosing": r"sort|topk|scan|select|gather|scatter|index|nonzero|unique|cub",
}
"""What kernels do, by the words in their names, the first that fits; the rest works element by element."""


def copies(device: torch.device) -> float:
    """Bytes per second that a copy within the card's memory reads and writes."""
    source, target = torch.ones(2, COPIED, dtype=torch.uint8, device=device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    target.copy_(source)
    start.record()
    for _ in range(10):
        target.copy_(source)
    end.record()
    torch.cuda.synchronize(device)
    return 10 * 2 * COPIED / (start.elapsed_time(end) / 1e3)


def traffic(work: Callable[[], Any], known: Mapping[Any, Any]) -> float:
    """Bytes of the operands and results of convolutions, matrix products and attention, each read or written once.

    Args:
        work: neither recorded nor in inference mode, where nothing is seen of what is in it.
        known: such operators that PyTorch's own register lacks.
    """
    mode = _Traffic({*flop_registry, *known})
    with mode:
        work()
    return mode.bytes


class _Traffic(TorchDispatchMode):
    def __init__(self, counted: set[Any]) -> None:
        super().__init__()
        self.counted, self.bytes = counted, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in self.counted:
            tensors = (each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor))
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def costs(work: Callable[[], Any]) -> list[str]:
    """What kernels of which kind take of the card's time, the largest share first."""
    work()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:  # which spans its kernels
            spent[kind_of(event.key)] += event.self_device_time_total
    total = sum(spent.values()) or 1
    return [f"{kind} {time / total:.0%} ({time / 1e3:.2f} ms)" for kind, time in spent.most_common()]


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    fitting = (kind for kind, words in KINDS.items() if re.search(words, kernel, re.IGNORECASE))
    return next(fitting, "element by element")
