"""The laws of the house, each of which docs/architecture.md states."""

import ast
import re

import pytest

from tests.support.imports import MODULES, PACKAGE, ROOT, imports_of, room_of

IMPORTS = [each for path in MODULES.values() for each in imports_of(path)]
OWN = [each for each in IMPORTS if each.target.split(".")[0] == "sotr" and each.where != "types"]

LAZY = {
    "sotr.loading": "the kind of model decides which of the two is imported; exported ones run without PyTorch",
    "sotr.info": "an architecture alone needs no model",
    "sotr.acceleration.accelerate": "CUDA's ways are imported where CUDA is",
    "sotr.export.write": "calibration imports ONNX Runtime's quantization, which takes seconds",
    "sotr.results.instances": "drawing and measuring import OpenCV, which results alone do not need",
}
"""Files with imports of the package inside functions, and why they are not at the top."""

MOST_LINES = 400
MOST_FUNCTION_LINES = 80
COMMANDS = {"check_data", "convert_data", "evaluate", "explain", "export", "predict", "reproduce", "serve", "train"}
"""Functions whose length is their docstring, which is the command's help."""


def floors() -> dict[str, int]:
    """Room -> floor, from the plan in docs/architecture.md; the highest floor comes first there."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    plan = text.split("<!-- the plan -->")[1]
    rows = [row for row in plan.splitlines() if row.startswith("| ") and "`" in row]
    return {
        f"sotr.{name.removesuffix('/').removesuffix('.py')}": len(rows) - number
        for number, row in enumerate(rows)
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }


def test_the_plan_has_every_room() -> None:
    assert set(floors()) == {room_of(module) for module in MODULES} - {"sotr"}


def test_rooms_import_from_rooms_below_only() -> None:
    floor = floors()
    upwards = [
        f"{each.file} imports {each.target}"
        for each in OWN
        if each.where == "module" and "sotr" not in (room_of(each.file), room_of(each.target))
        if room_of(each.file) != room_of(each.target) and floor[room_of(each.target)] >= floor[room_of(each.file)]
    ]
    assert upwards == []


def test_the_network_is_the_paper_and_nothing_else() -> None:
    allowed = {"torch", "torchvision", "timm"}
    for each in IMPORTS:
        if room_of(each.file) == "sotr.network":
            top = each.target.split(".")[0]
            own = each.target == "sotr.config" or each.target.startswith("sotr.network.")
            standard = top in {"collections", "functools", "itertools", "math", "typing"}
            assert top in allowed or own or standard, f"{each.file} imports {each.target}"
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in (PACKAGE / "network").glob("*.py"))
    assert lines < 700


def test_no_file_is_imported_in_a_circle() -> None:
    """Imports inside functions counted."""
    targets: dict[str, set[str]] = {module: set() for module in MODULES}
    for each in OWN:
        if each.target in MODULES:
            targets[each.file].add(each.target)

    def reaches(start: str, end: str) -> bool:
        seen, waiting = set(), [start]
        while waiting:
            here = waiting.pop()
            if here == end:
                return True
            waiting += targets[here] - seen
            seen |= targets[here]
        return False

    circles = [f"{file} <-> {target}" for file in targets for target in targets[file] if reaches(target, file)]
    assert circles == []


def test_imports_inside_functions_are_few_and_have_a_reason() -> None:
    lazy = {each.file for each in OWN if each.where == "function"}
    assert lazy <= set(LAZY), "give a reason in LAZY, or import at the top"
    assert set(LAZY) <= lazy, "these import nothing inside functions any more"


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short(module: str) -> None:
    source = MODULES[module].read_text(encoding="utf-8")
    assert source.count("\n") <= MOST_LINES
    long = [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if node.end_lineno is not None and node.end_lineno - node.lineno >= MOST_FUNCTION_LINES
    ]
    assert set(long) <= COMMANDS


def test_tests_import_no_private_names() -> None:
    private = [
        f"{path.relative_to(ROOT)}: {name.name}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("sotr", "benchmarks")
        for name in node.names
        if name.name.startswith("_") and not name.name.startswith("__")
    ]
    assert private == []
