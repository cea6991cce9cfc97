import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sotr import cli
from sotr.conversion import convert_released
from sotr.decoding import DecodeOptions
from sotr.errors import SOTRError
from sotr.model.segmenter import load
from tests.released.test_network import fill


class Harmful:
    """What a hostile pickle does when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("harm"),))


@pytest.mark.shared
def test_command_makes_a_model_folder(shared_dir: Path, tmp_path: Path) -> None:
    state = fill(shared_dir / "reference", "R50")
    torch.save({"model": state, "iteration": 269999}, tmp_path / "SOTR_R50.pth")
    out = tmp_path / "model"
    words = ["convert-released", str(tmp_path / "SOTR_R50.pth"), "--out", str(out), "--width-duplication", "wrapped"]
    assert cli.run(words) == 0
    description = json.loads((out / "config.json").read_text())
    assert description["architecture"]["variant"] == "released"
    model = load(out)
    assert (model.class_names[0], model.class_names[-1]) == ("person", "toothbrush")
    assert (model.category_ids[0], model.category_ids[-1], len(model.category_ids)) == (1, 90, 80)
    assert model.decode_options == DecodeOptions.released()
    assert model.config.width_duplication == "wrapped"
    card = (out / "README.md").read_text()
    assert "SOTR_R50" in card
    assert "report a mask AP of 39.6 % on COCO" in card


def test_pickles_are_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"weight": torch.zeros(1)}, "extra": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(SOTRError, match=r"bad\.pth cannot be read as plain tensors"):
        convert_released(str(tmp_path / "bad.pth"), str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pth"]


def test_other_contents(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(SOTRError, match=r"other\.safetensors: not a released SOTR checkpoint"):
        convert_released(str(tmp_path / "other.safetensors"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
