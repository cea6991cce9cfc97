"""A quicker start for the command line: torchvision and timm without PyTorch's compiler.

Both import `torch._dynamo` when they are imported, which takes as long as PyTorch itself, for functions that only
`torch.compile` needs. Here stand-ins take its place while they are imported, and are gone afterwards: whoever imports
the compiler later gets the real one. Stand-ins are seen by every thread, and timm's functions are then no longer
marked for `torch.compile`; so this is for commands, which have one thread and compile nothing, and never for a library.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

wanted = False
"""Whether `import_networks` may do this; the command line says so."""


def import_networks() -> None:
    """Import torchvision and timm without the compiler, if that is wanted and nobody has imported either."""
    if not wanted or {"torch._dynamo", "torchvision", "timm"} & set(sys.modules):
        return
    import torch

    compiler, utilities = ModuleType("torch._dynamo"), ModuleType("torch._dynamo.utils")
    vars(compiler).update(__path__=[], utils=utilities, disable=_unmarked)
    vars(utilities)["is_compile_supported"] = lambda device: False
    stand_ins = {module.__name__: module for module in (compiler, utilities)}
    sys.modules.update(stand_ins)
    try:
        for name in ("timm", "torchvision.transforms.v2", "torchvision.tv_tensors"):
            import_module(name)
    finally:
        for name in [name for name, module in sys.modules.items() if stand_ins.get(name) is module]:
            del sys.modules[name]
        vars(torch).pop("_dynamo", None)


def _unmarked(function: Any = None, recursive: bool = True, **_: Any) -> Any:
    """`torch._dynamo.disable`, with or without parentheses, that leaves a function as it is."""
    return function if function is not None else lambda decorated: decorated
