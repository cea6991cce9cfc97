"""What docs/serving.md tells people to type works as typed."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sotr.cli import build_parser
from tests.serving.conftest import Server

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


LINES = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("sotr ")])
def test_commands_parse(line: str) -> None:
    words = shlex.split(line)[1:]
    parser, _ = build_parser(words[0])
    assert parser.parse_args(words).command == "serve"


def test_addresses_and_settings_exist(server: Server) -> None:
    interface = server.http.get("openapi.json").json()
    for address in re.findall(r"`(?:GET |POST )?(/[a-z]+)`", PAGE):
        assert address in interface["paths"] or address == "/docs"
    documented = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert documented == {parameter["name"] for parameter in interface["paths"]["/predict"]["post"]["parameters"]}


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_runs(server: Server, sample: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cells.png").write_bytes(sample)
    monkeypatch.chdir(tmp_path)
    lines = [line for line in LINES if line.startswith("curl ")]
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line.replace("http://127.0.0.1:8000/", server.url))
        answer = subprocess.run([words[0], "--silent", "--show-error", "--fail", *words[1:]], capture_output=True)
        assert answer.returncode == 0, answer.stderr
        answers = [] if "-o" in words else json.loads(answer.stdout).get("results", [json.loads(answer.stdout)])
        assert all(each["objects"] for each in answers)
    assert Image.open("overlay.png").size == (1024, 768)  # small images are drawn on at twice their size
    assert np.asarray(Image.open("labels.png")).max() > 20


def test_python_runs(
    server: Server,
    sample: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "cells.png").write_bytes(sample)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for source in blocks("python"):
        exec(compile(source.replace("http://127.0.0.1:8000/", server.url), "serving.md", "exec"), names)
    masks = names["masks"]
    assert isinstance(masks, list)
    assert len(masks) > 20
    assert masks[0].shape == (384, 512)
    *_, good, bad = capsys.readouterr().out.splitlines()
    assert int(good.removeprefix("cells.png ")) > 20
    assert bad.startswith("broken.png what was sent")
