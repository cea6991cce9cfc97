from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from sotr.config import SOTRConfig
from sotr.errors import SOTRError
from sotr.network import SOTR
from sotr.training.backbone_weights import backbone_weights
from tests.training.conftest import CONFIG

SMALL = SOTRConfig.from_dict(CONFIG)


def timm_weights(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return timm.create_model(name, pretrained=False).state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".nested.pth"])
@pytest.mark.parametrize("deformable", [(), (4, 5)])
def test_files_fill_the_backbone_and_nothing_else(tmp_path: Path, suffix: str, deformable: tuple[int, ...]) -> None:
    weights = timm_weights("resnet10t" if not deformable else "test_resnet")
    config = SOTRConfig.from_dict({**CONFIG, "backbone": "resnet10t" if not deformable else "test_resnet"})
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "epoch": 3} if "nested" in suffix else weights, path)
    tensors, origin = backbone_weights(config, str(path))
    assert origin == f"the weights in {path}"
    network = SOTR(config)
    loaded = network.load_state_dict(tensors, strict=False)
    assert not loaded.unexpected_keys
    assert not [key for key in loaded.missing_keys if key.startswith("backbone.") and "num_batches" not in key]
    for key, value in network.backbone.body.state_dict().items():
        assert torch.equal(value, weights[key])


def test_names_that_timm_joins_differently_are_understood(tmp_path: Path) -> None:
    """ConvNeXt's stages are `stages.0` in the whole model and `stages_0` in its features."""
    weights = timm_weights("test_convnext")
    save_file(weights, tmp_path / "weights.safetensors")
    config = SOTRConfig.from_dict({**CONFIG, "backbone": "test_convnext"})
    tensors, _ = backbone_weights(config, str(tmp_path / "weights.safetensors"))
    assert any("stages_" in key for key in tensors)
    for key, value in tensors.items():
        original = key.removeprefix("backbone.body.").replace("_", ".")
        assert any(torch.equal(value, v) for k, v in weights.items() if k.replace("_", ".") == original)


def broken(kind: str) -> Any:
    weights = timm_weights("test_resnet")
    first = next(key for key, value in weights.items() if value.dim() == 4)
    if kind == "missing":
        del weights[first]
    elif kind == "shape":
        weights[first] = weights[first][:1].clone()
    elif kind == "unknown":
        weights["surprise"] = torch.zeros(1)
    elif kind == "text":
        return {"weights": "none"}
    return weights


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "1 missing: "),
        ("shape", "1 of another shape: "),
        ("unknown", "1 unknown: surprise"),
        ("text", "does not hold a state dict"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, kind: str, words: str) -> None:
    torch.save(broken(kind), tmp_path / "weights.pth")
    with pytest.raises(SOTRError, match=words) as caught:
        backbone_weights(SMALL, str(tmp_path / "weights.pth"))
    assert "\n" not in str(caught.value)


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_files_are_never_executed(tmp_path: Path) -> None:
    torch.save({"conv1.weight": _Touch(tmp_path / "touched")}, tmp_path / "weights.pth")
    with pytest.raises(SOTRError, match="cannot be read as plain tensors, and nothing else is read"):
        backbone_weights(SMALL, str(tmp_path / "weights.pth"))
    assert not (tmp_path / "touched").exists()
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(SOTRError, match="no sound safetensors file"):
        backbone_weights(SMALL, str(tmp_path / "weights.safetensors"))


def test_weights_that_cannot_be_fetched_name_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SOTRError, match=r"could not be had .*--backbone-weights FILE") as caught:
        backbone_weights(SMALL, "imagenet")
    assert "\n" not in str(caught.value)
