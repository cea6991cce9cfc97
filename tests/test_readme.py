"""What the README tells people to type works as typed."""

import re
import shlex
from pathlib import Path

import pytest
from mahotas import demos
from PIL import Image

from sotr.cli import COMMANDS, GROUPS, build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shell_lines(text: str) -> list[str]:
    return [line for block in blocks("sh", text) for line in block.replace("\\\n", " ").splitlines()]


def command_lines() -> list[tuple[str, str]]:
    """Page and command line: lines of shell blocks, and whole commands in running text."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for line in shell_lines(text) if line.startswith("sotr ")]
        lines += re.findall(r"`(sotr [^-`][^`]*)`", text)
        found += [(page.name, line) for line in lines]
    return found


def split_command(line: str) -> tuple[str, list[str]]:
    """The command, of one word or two, and all words behind `sotr`."""
    words = shlex.split(line, comments=True)[1:]
    return " ".join(words[: 2 if words[0] in GROUPS else 1]), words


def test_the_first_commands_are_demo_and_test() -> None:
    assert [line.split("#")[0].strip() for line in shell_lines(README)[:2]] == ["make demo", "make test"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for page in PAGES:
        for line in shell_lines(page.read_text(encoding="utf-8")):
            if line.startswith("make "):
                assert line.split()[1] in targets


def test_the_readme_shows_the_main_commands() -> None:
    shown = {split_command(line)[0] for page, line in command_lines() if page == "README.md"}
    assert shown >= {"predict", "train", "evaluate", "serve", "export", "data check"}


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_command_line_parses(page: str, line: str) -> None:
    command, words = split_command(line)
    assert command in {*COMMANDS, *GROUPS}
    if words == command.split():
        return  # the command's name, not a call of it
    parser, _ = build_parser(command)
    parser.parse_args(words)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.open(demos.image_path("nuclear.png")).crop((0, 0, 320, 256)).save(tmp_path / "cells.png")
    monkeypatch.chdir(tmp_path)
    sources = blocks("python")
    assert len(sources) >= 2
    for source in sources:
        names: dict[str, object] = {}
        exec(compile(source, "README.md", "exec"), names)
        if "overlay" in names:
            assert names["overlay"].dtype == "uint8"  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target.split("#")[0]).exists(), target
