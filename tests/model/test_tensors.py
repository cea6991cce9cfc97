import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sotr.errors import SOTRError
from sotr.model.tensors import read_state_dict

WEIGHT = torch.arange(6.0).view(2, 3)


class Harmful:
    def __reduce__(self):
        return eval, ("open('harm', 'w').close()",)


def written(folder: Path, kind: str) -> Path:
    """The same tensors as different tools write them."""
    arrays = {"head.weight": WEIGHT.numpy(), "pixel_mean": np.ones(3, np.float32), "__author__": "someone"}
    if kind == "detectron2.pkl":
        (folder / kind).write_bytes(
            pickle.dumps({"model": arrays, "__author__": "someone", "matching_heuristics": True})
        )
    elif kind == "old.pkl":
        (folder / kind).write_bytes(pickle.dumps(OrderedDict(arrays), protocol=2))
    elif kind == "safe.safetensors":
        save_file({"head.weight": WEIGHT}, folder / kind)
    elif kind == "lightning.pth":
        torch.save({"state_dict": {"head.weight": WEIGHT}, "epoch": 3, "lr": 0.1}, folder / kind)
    elif kind == "parallel.pth":
        torch.save({"model": {"module.head.weight": WEIGHT}, "iteration": 269999}, folder / kind)
    elif kind == "both.pth":
        torch.save({"model": {"state_dict": {"head.weight": WEIGHT}}}, folder / kind)
    else:
        torch.save({"head.weight": WEIGHT, "score": np.float64(0.5), "table": np.ones(2)}, folder / kind)
    return folder / kind


@pytest.mark.parametrize(
    "kind",
    ["detectron2.pkl", "old.pkl", "safe.safetensors", "lightning.pth", "parallel.pth", "both.pth", "numpy_scalars.pth"],
)
def test_tensors_are_found_wherever_tools_put_them(tmp_path: Path, kind: str) -> None:
    found = read_state_dict(written(tmp_path, kind))
    assert torch.equal(found["head.weight"], WEIGHT)
    assert all(isinstance(value, torch.Tensor) for value in found.values())


@pytest.mark.parametrize("name", ["bad.pth", "bad.pkl"])
def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"model": {"weight": torch.zeros(1)}, "extra": Harmful()}
    if name.endswith(".pth"):
        torch.save(content, name)
    else:
        Path(name).write_bytes(pickle.dumps({"weight": np.zeros(1), "extra": Harmful()}))
    with pytest.raises(SOTRError, match=rf"{name} cannot be read as plain tensors, and nothing else is read") as caught:
        read_state_dict(Path(name))
    assert "\n" not in str(caught.value)
    assert not Path("harm").exists()


@pytest.mark.parametrize("name", ["damaged.pth", "damaged.pkl", "damaged.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02}q\x00X\xff", bytes(range(256)) * 8])
def test_damaged_files_end_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SOTRError, match="cannot be read") as caught:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_other_contents(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(SOTRError, match="does not hold a state dict"):
        read_state_dict(tmp_path / "list.pth")
    with pytest.raises(SOTRError, match="no such file"):
        read_state_dict(tmp_path / "absent.pth")
