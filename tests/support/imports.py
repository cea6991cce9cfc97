"""What the files of the package import of one another, read from their source."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "sotr"


class Import(NamedTuple):
    """A file imports a module: at its top level, inside a function, or only for type checkers."""

    file: str
    target: str
    where: str
    """"module", "function" or "types"."""


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of a file, of anything."""
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")).body, module_of(path), "module")


def _imports(body: list[ast.stmt], file: str, where: str) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(file, name.name, where)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            for name in node.names:
                own = f"{node.module}.{name.name}"
                yield Import(file, own if own in MODULES else str(node.module), where)
        else:
            inner = where
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inner = "function" if where != "types" else where
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                inner = "types"
            for field in ("body", "orelse", "finalbody", "handlers"):
                yield from _imports(getattr(node, field, []), file, inner)


def room_of(module: str) -> str:
    """The folder, or the file at the root, of a module of the package; "sotr" for the package itself."""
    return ".".join(module.split(".")[:2])
