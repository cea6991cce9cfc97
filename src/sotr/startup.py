"""A quicker start for the command line: torchvision and timm without PyTorch's compiler.

Importing torchvision or timm imports `torch._dynamo`, which only `torch.compile` needs and which takes long. Here a
stand-in takes the place of `torch._dynamo` during these imports and is removed afterwards, so that a later import gets
the real module. All threads see the stand-in, and timm's functions are not marked for `torch.compile`. Therefore only
the command `sotr predict` does this, which has one thread at that time and compiles nothing; a library must not.
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
