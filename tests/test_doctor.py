import json
from importlib import metadata

import torch

from sotr import doctor as module
from sotr.acceleration import accelerate as acceleration
from sotr.cli import run


def test_it_tells_what_a_bug_report_needs(capsys) -> None:
    assert run(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["versions"]["torch"] == metadata.version("torch")
    assert told["devices"]["cpu"]
    assert told["caches"]["sotr"]["path"]
    assert {extra["name"] for extra in told["extras"]} == set(module.USER_EXTRAS)
    assert [(proof["device"], proof["precision"]) for proof in told["proofs"]][:2] == [
        ("cpu", "float32"),
        ("cpu", "bfloat16"),
    ]
    assert all(proof["difference"] < 0.1 for proof in told["proofs"])
    assert told["failures"] == []


def test_missing_packages_come_with_the_command_that_installs_them(monkeypatch, capsys) -> None:
    installed = module.version_of
    monkeypatch.setattr(
        module, "version_of", lambda name: {"onnxscript": None, "fastapi": "0.1"}.get(name, installed(name))
    )
    found = {extra.name: extra for extra in module.extras()}
    assert any(each.startswith("onnxscript>=") for each in found["export"].missing)
    assert found["export"].remedy == "pip install 'sotr[export]'"
    assert any(each.startswith("fastapi>=") for each in found["serve"].missing)  # there, but too old
    assert found["train"].missing == []


def test_a_quick_way_that_fails_is_told_and_sets_the_exit_code(monkeypatch, capsys) -> None:
    def engine(network, dtype, keep):
        acceleration.give_way("OpenVINO", "it failed: no such operator")

    monkeypatch.setattr(acceleration, "engine", engine)
    assert run(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "plain PyTorch" in printed
    assert "cpu, float32: predicts with plain PyTorch instead of OpenVINO: it failed: no such operator" in printed


def test_plain_pytorch_differs_from_itself_by_nothing(monkeypatch) -> None:
    monkeypatch.setattr(acceleration, "can_run", lambda network: False)
    found = module.proof("cpu", torch.float32)
    assert (found.way, found.difference, found.warnings) == ("plain PyTorch", 0.0, [])
