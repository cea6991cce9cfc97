from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.errors import SOTRError
from sotr.explanation import explain
from sotr.explanation.explain import choose_channels
from sotr.model.segmenter import Segmenter
from tests.training.conftest import CONFIG

SMALL = replace(SOTRConfig.from_dict(CONFIG), num_classes=2, depth=2)


def segmenter(config: SOTRConfig = SMALL) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(build_network(config), ("cat", "dog"), (1, 2))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(path)
    return path


def test_three_pictures_of_the_best_cell(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = segmenter()
    with torch.no_grad():  # only cells of a level that sees more than zeros differ: make one class likely
        model.network.class_head.bias[1] = 2.0
    result = explain(picture, model, tmp_path / "out")
    names = ["scene.mask-features.png", "scene.class-scores.png", "scene.attention.png", "scene.numbers.npz"]
    assert [path.name for path in result.files] == names
    sizes = [Image.open(path).size for path in result.files[:3]]
    # Four columns of panels, three, three; a panel is 630 x 420.
    assert [round(width / 630) for width, _ in sizes] == [4, 3, 3]
    assert result.level in (2, 3, 4, 5, 6)
    assert f"P{result.level}, row {result.row}, column {result.column}, class score 0.8" in capsys.readouterr().out


def test_numbers_are_those_of_the_network(picture: Path, tmp_path: Path) -> None:
    model = segmenter()
    result = explain(picture, model, tmp_path, level=3, row=7, column=2, quiet=True)
    with np.load(result.files[-1]) as numbers:
        assert numbers["cell"].tolist() == [3, 7, 2]
        grid, heads = SMALL.grids[1], SMALL.heads
        assert numbers["class_scores.P3"].shape == (grid, grid, 2)
        assert numbers["mask_features"].shape[0] == SMALL.mask_channels
        for layer in (1, 2):
            row, column = numbers[f"attention.{layer}.row"], numbers[f"attention.{layer}.column"]
            assert (row.shape, column.shape) == ((heads, grid), (heads, grid, grid))
            np.testing.assert_allclose(row.sum(-1), 1, rtol=1e-5)
            np.testing.assert_allclose(column.sum(-1), 1, rtol=1e-5)
            np.testing.assert_allclose(numbers[f"attention.{layer}.total"], row.mean(0) * column.mean(0).T, rtol=1e-5)


def test_a_chosen_cell_and_channels(picture: Path, tmp_path: Path) -> None:
    result = explain(
        picture, segmenter(), tmp_path, level=3, row=7, column=2, channels=[0, 31], device="cpu", quiet=True
    )
    assert (result.level, result.row, result.column) == (3, 7, 2)
    # The image and two channels fill one row.
    assert Image.open(result.files[0]).height < 1.2 * 420


def test_without_transformer_there_is_no_attention(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = segmenter(replace(SMALL, transformer="none", mask_transformer_levels=()))
    assert len(explain(picture, model, tmp_path).files) == 3
    assert "no attention to draw" in capsys.readouterr().err


def test_chosen_channels_vary_and_differ() -> None:
    x = torch.linspace(0, 1, 12)
    ramp = x[None, :].expand(12, 12)
    features = torch.stack([0.1 * ramp.T, ramp, 2 * ramp, torch.zeros(12, 12), 1 - ramp])
    assert choose_channels(features, 2) == [2, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": 7}, "level is 7; there are 2, 3, 4, 5, 6"),
        ({"row": 1}, "give all three"),
        ({"row": 1, "column": 1}, "give all three"),
        ({"level": 3, "row": 8, "column": 0}, r"P3 has no cell \(8, 0\); rows and columns are 0 to 7"),
        ({"channels": [32]}, "give some of 0 to 31"),
        ({"channels": []}, "give some of 0 to 31"),
    ],
)
def test_bad_input(picture: Path, tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(SOTRError, match=message):
        explain(picture, segmenter(), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
