import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from sotr.config import SOTRConfig
from sotr.data import load_coco
from sotr.model.segmenter import Segmenter
from sotr.network import SOTR
from sotr.training.html_report import INK, write_report
from tests.training.conftest import CONFIG

RUN: dict[str, Any] = {
    "name": "run <1>",
    "command": "sotr train 'a & b' --lr 0.1",
    "config": {"backbone": "test_resnet", "depth": 1},
    "recipe": {"lr": 0.1},
    "seed": 0,
    "weights": "random weights",
    "data": {"name": "shapes", "train_pictures": 8, "train_objects": 30, "val_pictures": 4},
    "device": "cpu",
    "precision": "32-true",
    "versions": {"sotr": "0.1.0"},
}


class _Page(HTMLParser):
    """Collects what would be fetched, the images, and the tags that are open at the end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)
        self.sources += [str(value) for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [str(value) for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def row(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "epoch": 1, "loss": 3.0, "loss_class": 1.0, "loss_mask": 2.0, "lr": 0.1, **more}


@pytest.fixture
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    network = SOTR(SOTRConfig.from_dict({**CONFIG, "num_classes": 3}))
    with torch.no_grad():
        network.class_head.bias.fill_(0.5)
        network.kernel_head.bias.normal_()
    return Segmenter(network, ("disc", "box", "bar"), (3, 17, 90))


def test_the_page_is_whole_and_needs_nothing_else(coco_folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    data = load_coco(coco_folder / "val.json", coco_folder / "images")
    classes = {
        name: {"AP": ap, "AP50": 0.5, "AP75": None, "objects": 7} for name, ap in (("disc", 0.25), ("bar", None))
    }
    names = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR")
    metrics = {**dict.fromkeys(names, 0.125), "per_class": classes, "max_dets": 20, "objects": 21, "epoch": 2}
    rows = [row(1), row(2), {"step": 2, "epoch": 1, "AP": 0.1, "AP50": 0.2, "AP75": 0.05}]
    seen = []
    write_report(tmp_path / "r.html", segmenter, data, RUN, metrics, rows, 3723.0, on_pictures=seen.append)
    assert sum(seen) == 4
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    embedded = [source for source in page.sources if source.startswith("data:image/jpeg;base64,")]
    assert len(embedded) == 4  # two of the worst, two of the best
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert "http" not in text.replace("http://www.w3.org", "").replace("https://www.w3.org", "")
    assert INK not in text
    cells = re.findall(r'<td style="--share: [0-9.]+"[^>]*>(\d*)</td>', text)
    assert len(cells) == 4 * 4
    assert any(cells)
    assert not cells[-1]  # nothing, taken for nothing
    assert text.count("<svg") == 2
    for words in (
        "run &lt;1&gt;",
        "sotr train &#39;a &amp; b&#39; --lr 0.1",
        "0.125",
        "1:02:03",
        "not found",
        "quality",
    ):
        assert words in text, words


def test_without_validation_the_page_says_so(tmp_path: Path, segmenter: Segmenter) -> None:
    write_report(tmp_path / "r.html", segmenter, None, RUN, None, [row(1)], 1.0)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "There was no validation" in text
    assert "sotr train" in text
    assert text.count("<svg") == 1


def test_class_names_of_any_script_are_text_in_the_drawings(
    coco_folder: Path, tmp_path: Path, segmenter: Segmenter, recwarn: pytest.WarningsRecorder
) -> None:
    text = (coco_folder / "val.json").read_text().replace('"disc"', '"細胞"')
    (tmp_path / "val.json").write_text(text, encoding="utf-8")
    data = load_coco(tmp_path / "val.json", coco_folder / "images")
    assert "細胞" in data.class_names
    none = {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "objects": 7}
    metrics = {
        **dict.fromkeys(("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR"), 0.0),
        "per_class": dict.fromkeys(data.class_names, none),
        "max_dets": 20,
        "objects": 21,
        "epoch": 2,
    }
    write_report(tmp_path / "r.html", segmenter, data, RUN, metrics, [row(1), row(2)], 1.0)
    drawings = re.findall(r"<svg.*?</svg>", (tmp_path / "r.html").read_text(encoding="utf-8"), re.DOTALL)
    assert any(re.search(r"<text[^>]*>細胞</text>", drawing) for drawing in drawings)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_empty_axes_say_why(coco_folder: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    data = load_coco(coco_folder / "val.json", coco_folder / "images")
    with torch.no_grad():
        segmenter.network.class_head.bias.fill_(-20.0)  # finds nothing
    names = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR")
    metrics = {**dict.fromkeys(names, 0.0), "per_class": {}, "max_dets": 20, "objects": 21, "epoch": 1}
    rows = [row(1), {"step": 1, "epoch": 1, "AP": 0.0, "AP50": 0.0, "AP75": 0.0}]
    write_report(tmp_path / "r.html", segmenter, data, RUN, metrics, rows, 1.0)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "0 in all validations so far" in text
    assert "no detection matches an object" in text
    rows = [row(1), {"step": 1, "epoch": 1, "AP": 0.1, "AP50": 0.2, "AP75": 0.0}]
    write_report(tmp_path / "r.html", segmenter, None, RUN, None, rows, 1.0)
    assert "so far" not in (tmp_path / "r.html").read_text(encoding="utf-8")
