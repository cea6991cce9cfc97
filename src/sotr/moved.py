"""Modules of version 0.3 under their old names, for one minor version, with a `DeprecationWarning`; other names of
parameters."""

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

MOVED = {
    "sotr.data.advice": "sotr.curation.advice",
    "sotr.data.check": "sotr.curation.checks",
    "sotr.data.convert": "sotr.curation.convert",
    "sotr.data.findings": "sotr.curation.findings",
    "sotr.data.formats": "sotr.curation.formats",
    "sotr.data.grids": "sotr.curation.grids",
    "sotr.data.pictures": "sotr.curation.image_files",
    "sotr.data.synthetic": "sotr.curation.synthetic",
    "sotr.hub_card": "sotr.model.hub_card",
    "sotr.inspection": "sotr.curation",
    "sotr.inspection.check": "sotr.curation.check",
    "sotr.inspection.repair": "sotr.curation.repair",
    "sotr.inspection.show": "sotr.curation.show",
    "sotr.inspection.summary": "sotr.curation.summary",
    "sotr.instances": "sotr.results.instances",
    "sotr.labelling": "sotr.curation.pre_annotate",
    "sotr.model_files": "sotr.model.files",
    "sotr.network.released": "sotr.released.network",
    "sotr.overlay": "sotr.results.drawing",
    "sotr.panels": "sotr.results.panels",
    "sotr.predictor": "sotr.model.predictor",
    "sotr.rle": "sotr.masks.run_lengths",
}
"""Old name -> new name."""


class _Moved(MetaPathFinder, Loader):
    """Finds a module of an old name: one that has all that the new one has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        is_package = any(name.startswith(f"{fullname}.") for name in MOVED)
        return ModuleSpec(fullname, self, is_package=is_package) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = import_module(MOVED[module.__name__])
        warnings.warn(f"{module.__name__} is now {new.__name__}", DeprecationWarning, stacklevel=2)
        module.__getattr__ = lambda name: getattr(new, name)  # type: ignore[method-assign]


def keep_old_names() -> None:
    """Let old names be imported."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())


def renamed(other: str, name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function's keyword `name` be given as `other`, too."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> R:
            if other in keywords:
                if name in keywords:
                    raise TypeError(f"{other} is another name of {name}; give one of them")
                keywords[name] = keywords.pop(other)
            return function(*arguments, **keywords)

        return call

    return decorate
