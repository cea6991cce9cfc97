"""In processes of their own, for what is imported once stays."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

AFTER_PREDICT = """
import sys
from sotr.cli import run
assert run(["predict", "cells.png", "--engine", "pytorch", "--quiet"]) == 0
assert "torchvision" in sys.modules
print("compiler" if "torch._dynamo" in sys.modules else "none")
import torch
assert torch._dynamo.utils.counters is not None  # the real one comes when it is asked for
"""

LIBRARY = """
import sys, sotr
sotr.load("nuclei")
print("compiler" if "torch._dynamo" in sys.modules else "none")
"""


def outcome(program: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_sotr_predict_imports_no_compiler(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "cells.png")
    assert outcome(AFTER_PREDICT, tmp_path) == "none"


def test_the_library_leaves_imports_alone(tmp_path: Path) -> None:
    assert outcome(LIBRARY, tmp_path) == "compiler"


def test_python_m_sotr(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "sotr", "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.startswith("sotr ")) == (0, True)
