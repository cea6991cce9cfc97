"""What the README tells people to type works as typed."""

import re
import shlex
from pathlib import Path

import pytest
from mahotas import demos
from PIL import Image

from sotr.cli import COMMANDS, build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


SHELL_LINES = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
COMMAND_LINES = [line for line in SHELL_LINES if line.startswith("sotr ")]
COMMAND_LINES += re.findall(r"`(sotr [^`]+)`", README)


def test_the_first_commands_are_demo_and_test() -> None:
    assert [line.split("#")[0].strip() for line in SHELL_LINES[:2]] == ["make demo", "make test"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for line in SHELL_LINES:
        if line.startswith("make "):
            assert line.split()[1] in targets


def test_the_readme_shows_the_main_commands() -> None:
    assert {shlex.split(line)[1] for line in COMMAND_LINES} >= {"predict", "train", "evaluate"}


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_command_line_parses(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    assert words[0] in COMMANDS
    parser, _ = build_parser(words[0])
    settings = parser.parse_args(words)
    assert settings.command == words[0]


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


def test_links_and_paths_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
