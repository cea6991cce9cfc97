"""Everything that the README and the pages of docs/ tell people to type is run, or checked as far as it can be here.

A comment right above a block of code changes what happens to it:

- `<!-- not run: WHY -->`: it cannot run here (a cluster, a camera, an upload); `sotr` lines in it are still parsed;
- `<!-- run by tests/...: WHY -->`: another test runs it;
- `<!-- tested with: THIS -> THAT -->`: it is run with THIS replaced by THAT, for the sake of time.

Blocks without one are run if they are Python, everywhere, and if they are shell, on the pages `RUN_PAGES`; other pages'
shell lines are parsed, and `sotr` lines run by the slow tests/test_guides.py. A block ```yaml title="FILE" becomes that
file. All blocks of a page share a folder and names.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from benchmarks.__main__ import parse
from mahotas import demos
from PIL import Image

from sotr.cli import COMMANDS, GROUPS, build_parser
from sotr.config import TRANSFORMERS
from sotr.network.transformer import LAYERS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
RUN_PAGES = ("quickstart.md", "tutorial.md")
"""Pages whose shell blocks are run, too."""
SHOWN = ("text", "bibtex")
"""Languages that nobody runs."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code, with the comments right above it."""

    page: str
    line: int
    language: str
    title: str
    comments: str
    source: str

    @property
    def remark(self) -> str:
        """What keeps the block from being run here, if anything does."""
        found = re.search(r"<!-- (not run: .+?|run by tests/.+?) -->", self.comments)
        return found[1] if found else ""

    @property
    def runs(self) -> bool:
        return not self.remark and (self.language == "python" or (self.language == "sh" and self.page in RUN_PAGES))

    @property
    def tested(self) -> str:
        """The source as it is run."""
        source = self.source
        for this, that in re.findall(r"<!-- tested with: (.+?) -> (.+?) -->", self.comments):
            assert this in source, f"{self}: {this!r} is not there"
            source = source.replace(this, that)
        return source

    @property
    def lines(self) -> list[str]:
        """Lines of shell, joined where they go on, without comments."""
        lines = self.source.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


FENCE = re.compile(
    r"^(?P<comments>(?: *<!-- .*? -->\n)*)(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<source>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page.name,
            text.count("\n", 0, found.start("indent")) + 1,
            found["language"],
            found["title"] or "",
            found["comments"],
            re.sub(f"^{found['indent']}", "", found["source"], flags=re.MULTILINE),
        )
        for found in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def command_lines() -> list[tuple[str, str]]:
    """Place and command line: `sotr` lines of shell blocks, and whole commands in running text."""
    found = [(str(b), line) for b in BLOCKS if b.language == "sh" for line in b.lines if line.startswith("sotr ")]
    for page in PAGES:
        found += [(page.name, line) for line in re.findall(r"`(sotr [^-`][^`]*)`", page.read_text(encoding="utf-8"))]
    return found


def split_command(line: str) -> tuple[str, list[str]]:
    """The command, of one word or two, and all words behind `sotr`."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: next((i for i, word in enumerate(words) if word in ("&", "|", ">", "&&")), None)]
    return " ".join(words[: 2 if words[0] in GROUPS else 1]), words


@pytest.mark.parametrize(("place", "line"), command_lines())
def test_command_line_parses(place: str, line: str) -> None:
    command, words = split_command(line)
    assert command in {*COMMANDS, *GROUPS}
    if words == command.split() or words[-1] == "--help":
        return  # the command's name, not a call of it
    parser, _ = build_parser(command)
    parser.parse_args(words)


def test_every_block_is_run_or_checked_or_says_why_not() -> None:
    fences = sum(len(re.findall(r"^ *(?:```|~~~)", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in PAGES)
    assert 2 * len(BLOCKS) == fences > 100  # none has another form than the one looked for
    unnamed = [str(b) for b in BLOCKS if b.language not in ("sh", "python", "yaml", *SHOWN)]
    assert not unnamed, f"say what these blocks are (sh, python, yaml, text): {unnamed}"
    code = re.compile(r"^(sotr|make|pip|python|curl|\$) |^(import|from) \w+", re.MULTILINE)
    hidden = [str(b) for b in BLOCKS if b.language in SHOWN and code.search(b.source)]
    assert not hidden, f"code among blocks that are only shown: {hidden}"
    unchecked = [
        f"{block}: {line}"
        for block in BLOCKS
        if block.language == "sh" and not block.runs and not block.remark
        for line in block.lines
        if not _is_checked(line)
    ]
    assert not unchecked, f"nothing checks these lines; mark their blocks: {unchecked}"


def _is_checked(line: str) -> bool:
    """Whether a line that is not run can be checked otherwise, and is right."""
    words = shlex.split(line, comments=True)
    if words[0] == "sotr":
        return True  # by test_command_line_parses
    if words[0] == "make":
        return words[1] in re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    if words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        named = {extra for word in words for extra in re.findall(r"^(?:sotr|\.)\[(.+)\]$", word)}
        return {extra for extras in named for extra in extras.split(",")} <= set(project["optional-dependencies"])
    if words[:3] == ["python", "-m", "benchmarks"]:
        parse(words[3:])
        return True
    if words[0] in ("python", "pytest"):
        return any((ROOT / word).is_file() for word in words[1:])
    return False


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.remark.startswith("run by")], ids=str)
def test_the_other_test_is_there_and_speaks_of_the_page(block: Block) -> None:
    test = ROOT / block.remark.removeprefix("run by ").split(":")[0]
    assert block.page in test.read_text(encoding="utf-8")


def _pages_to_run() -> list[object]:
    """The tutorial trains, exports and serves, in a process each: that takes a minute."""
    names = dict.fromkeys(block.page for block in BLOCKS if block.runs)
    return [pytest.param(name, marks=[pytest.mark.slow] * (name == "tutorial.md"), id=name) for name in names]


@pytest.mark.parametrize("page", _pages_to_run())
def test_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    if page not in RUN_PAGES:  # those make what they need
        Image.open(demos.image_path("nuclear.png")).crop((0, 0, 320, 256)).save(folder / "cells.png")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{programs(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    names_of_layers = list(TRANSFORMERS)  # a page may add a layer, which is gone after it
    for module in ("sotr.config", "sotr.network.transformer"):
        monkeypatch.setattr(f"{module}.TRANSFORMERS", names_of_layers)
    monkeypatch.setattr("sotr.network.transformer.LAYERS", dict(LAYERS))
    names: dict[str, object] = {}
    for block in (block for block in BLOCKS if block.page == page):
        if block.title:
            (folder / block.title).write_text(block.tested, encoding="utf-8")
        elif block.runs and block.language == "python":
            exec(compile(block.tested, str(block), "exec"), names)
        elif block.runs:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.tested], capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def programs(folder: Path) -> Path:
    """A folder with `sotr` and `python` as an installation would have them."""
    folder.mkdir()
    for name, command in (("sotr", f'"{sys.executable}" -m sotr.cli'), ("python", f'"{sys.executable}"')):
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_yaml_is_yaml(block: Block) -> None:
    assert isinstance(yaml.safe_load(block.tested), dict)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_the_drawing_names_files_that_exist() -> None:
    drawn = re.findall(r'class="file">([^<]+)<', (ROOT / "docs" / "network.svg").read_text(encoding="utf-8"))
    files = [file for line in drawn for file in line.split()]
    assert len(files) > 10
    assert [file for file in files if not (ROOT / "src" / "sotr" / file).exists()] == []


@pytest.mark.parametrize("room", ["", *(f".{page.stem}" for page in REFERENCE if page.stem != "index")])
def test_the_reference_has_all_public_names(room: str) -> None:
    entries = {
        entry.rpartition(".")[2]
        for page in REFERENCE
        for entry in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert set(importlib.import_module(f"sotr{room}").__all__) - entries <= {"__version__"}


def test_all_examples_are_mentioned() -> None:
    text = (ROOT / "docs" / "ecosystem.md").read_text(encoding="utf-8")
    assert [file.name for file in (ROOT / "examples").iterdir() if file.is_file() and file.name not in text] == []
