"""The table of docs/backbones.md against timm's models, built on the meta device, which costs no memory."""

import re
from pathlib import Path

import pytest
import torch

from sotr.errors import SOTRError
from sotr.network.backbone import STRIDES, Backbone

PAGE = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
WORKING = dict(re.findall(r"^\| `(\w+)` \| ([\d, ]+) \|$", PAGE, re.MULTILINE))
REFUSED = re.findall(r"^\| `(\w+)` \| [a-z]", PAGE, re.MULTILINE)

ALWAYS = ("resnet50", "dla34", "swin_tiny_patch4_window7_224", "convnextv2_atto", "davit_tiny", "vit_small_patch16_224")
"""Tried in every run: a plain one, strides in another order, NHWC, no batch norm, sums in place, and a refused one."""


def some(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.slow]) for name in names]


def test_the_page_names_about_sixty_models() -> None:
    assert len(WORKING) > 45
    assert len(REFUSED) > 4


@pytest.mark.parametrize("name", some(list(WORKING)))
def test_these_work(name: str) -> None:
    with torch.device("meta"), torch.no_grad():
        backbone = Backbone(name).eval()
        maps = backbone(torch.zeros(1, 3, 64, 224))
    assert backbone.channels == [int(count) for count in WORKING[name].split(",")]
    sizes = [
        (channels, 64 // stride, 224 // stride) for channels, stride in zip(backbone.channels, STRIDES, strict=True)
    ]
    assert [tuple(each.shape[1:]) for each in maps] == sizes


@pytest.mark.parametrize("name", some(REFUSED))
def test_these_are_refused(name: str) -> None:
    with pytest.raises(SOTRError, match=rf"backbone '{name}' (cannot be built|has feature maps of)"):
        Backbone(name)
