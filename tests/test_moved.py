"""Imports of version 0.3 still work, and say where things are now."""

import importlib
import sys

import pytest

import sotr
from sotr.moved import MOVED, renamed


@pytest.mark.parametrize("old", MOVED)
def test_old_modules_have_what_the_new_ones_have(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        module = importlib.import_module(old)
    new = importlib.import_module(MOVED[old])
    for name in getattr(new, "__all__", [name for name in vars(new) if not name.startswith("_")]):
        assert getattr(module, name) is getattr(new, name)


def test_names_come_from_old_modules() -> None:
    sys.modules.pop("sotr.instances", None)
    with pytest.warns(DeprecationWarning, match="sotr.results.instances"):
        from sotr.instances import Instances
    assert Instances is sotr.Instances
    from sotr.model import Segmenter

    assert Segmenter is sotr.Segmenter


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"sotr\.nonsense"):
        importlib.import_module("sotr.nonsense")


def test_a_parameter_of_two_names() -> None:
    @renamed("old", "new")
    def double(new: int) -> int:
        return 2 * new

    assert double(1) == double(new=1) == double(old=1) == 2  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="old is another name of new"):
        double(new=1, old=1)  # type: ignore[call-arg]
