"""The README stays what it is meant to be; that its commands work is shown by test_docs.py."""

import re
from pathlib import Path

from tests.test_docs import command_lines, split_command

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_it_is_short_and_opens_with_demo_and_test() -> None:
    assert len(README.splitlines()) < 121
    first = re.search(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert first
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make demo", "make test"]


def test_it_shows_one_picture_of_results() -> None:
    assert re.findall(r"!\[[^\]]+\]\((.+?)\)", README) == ["docs/nuclei.jpg"]


def test_it_shows_the_main_commands() -> None:
    shown = {split_command(line)[0] for place, line in command_lines() if place.startswith("README.md")}
    assert shown >= {"predict", "train", "evaluate", "serve", "export", "data check"}
