import inspect
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sotr.errors import SOTRError
from sotr.training import RECIPES, Recipe
from tests.training.conftest import RECIPE


def test_bundled_recipes_are_valid_and_survive_json() -> None:
    assert set(RECIPES) == {"finetune", "paper", "paper-imagenet", "pretrained", "scratch"}
    for name in RECIPES:
        recipe = Recipe.load(name)
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_paper_recipe_has_the_papers_numbers() -> None:
    paper = Recipe.load("paper")
    assert (paper.optimizer, paper.lr, paper.momentum, paper.weight_decay) == ("sgd", 0.01, 0.9, 1e-4)
    assert (paper.batch_size, paper.iterations, paper.epochs, paper.ema_decay) == (8, 300_000, None, 0.0)
    total = paper.total_iterations(per_epoch=14_786)
    assert total == 300_000
    rates = {
        step: paper.lr * paper.lr_factor(step, total) for step in (0, 999, 1000, 209_999, 210_000, 249_999, 250_000)
    }
    assert rates == pytest.approx(
        {0: 1e-4, 999: 1e-4, 1000: 0.01, 209_999: 0.01, 210_000: 0.001, 249_999: 0.001, 250_000: 1e-4}
    )
    assert paper.loss.mask_stride == 1  # masks of H x W
    assert paper.augmentation.scale == (0.8, 1.0)
    assert 800 * paper.augmentation.scale[0] == 640
    assert paper.augmentation.horizontal_flip
    assert not paper.augmentation.vertical_flip
    assert not paper.augmentation.crop


def test_milestones_may_be_fractions() -> None:
    recipe = Recipe(schedule="steps", milestones=(0.5, 90), warmup_iterations=0, epochs=1)
    factors = [recipe.lr_factor(step, 100) for step in (0, 49, 50, 89, 90, 99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@settings(deadline=None)
@given(total=st.integers(1, 5000), warmup=st.integers(0, 1000), factor=st.floats(0.001, 1))
def test_cosine_rises_then_falls_to_a_hundredth(total: int, warmup: int, factor: float) -> None:
    recipe = Recipe(epochs=1, warmup_iterations=warmup, warmup_factor=factor)
    steps = sorted({*range(0, total, max(1, total // 50)), total - 1})
    factors = [recipe.lr_factor(step, total) for step in steps]
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert all(0 < value <= 1 for value in factors)
    assert recipe.lr_factor(total, total) == pytest.approx(0.01)
    # Even a very short run spends nine tenths of its steps past the warm-up.
    assert recipe.lr_factor(total // 10, total) > 0.9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 1.0}, ["'learning_rate'", "the keys are", "lr", "ema_decay"]),
        ({"lr": "fast"}, ["lr is 'fast'", "a finite number"]),
        ({"weight_decay": float("nan")}, ["weight_decay is nan", "a finite number"]),
        ({"lr": -1.0}, ["lr is -1.0", "positive"]),
        ({"lr": True}, ["lr is True", "a finite number"]),
        ({"batch_size": 2.5}, ["batch_size is 2.5", "a whole number"]),
        ({"batch_size": 0}, ["batch_size is 0", "at least 1"]),
        ({"channels_last": 1}, ["channels_last is 1", "true or false"]),
        ({"optimizer": "adam"}, ["optimizer is 'adam'", "sgd", "adamw"]),
        ({"precision": 16}, ["precision is 16", "bf16-mixed"]),
        ({"iterations": 100}, ["exactly one of epochs and iterations"]),
        ({"epochs": None}, ["exactly one of epochs and iterations"]),
        ({"ema_decay": 1.0}, ["ema_decay is 1.0", "[0, 1)"]),
        ({"schedule": "steps"}, ["milestones"]),
        ({"augmentation": {"flip": True}}, ["'flip' in augmentation", "horizontal_flip"]),
        ({"augmentation": {"scale": [1.0]}}, ["augmentation.scale is [1.0]", "2 numbers"]),
        ({"augmentation": {"scale": [2.0, 1.0]}}, ["scale"]),
        ({"augmentation": 3}, ["augmentation is 3", "keys of"]),
        ({"loss": {"mask_stride": 3}}, ["mask_stride is 3"]),
    ],
)
def test_mistakes_are_named(write_yaml: Callable[..., str], changes: dict[str, Any], words: list[str]) -> None:
    path = write_yaml("mine.yaml", RECIPE, **changes)
    with pytest.raises(SOTRError) as caught:
        Recipe.load(path)
    message = str(caught.value)
    assert message.startswith(path)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(
        SOTRError, match=r"no recipe 'papr'; choose one of finetune, paper, paper-imagenet, pretrained, scratch"
    ):
        Recipe.load("papr")
    broken = tmp_path / "broken.yaml"
    broken.write_text("lr: [1,\n")
    with pytest.raises(SOTRError, match=r"broken\.yaml is not valid YAML"):
        Recipe.load(broken)
    broken.write_text("- 1\n")
    with pytest.raises(SOTRError, match=r"broken\.yaml must hold"):
        Recipe.load(broken)


def test_numbers_without_a_point(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-3 for text and 1 for an integer."""
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 1e-3\nclip_norm: 1\nepochs: 1\naugmentation: {scale: [1, 2]}\n")
    recipe = Recipe.load(path)
    assert recipe.lr == 1e-3
    assert recipe.clip_norm == 1.0
    assert recipe.augmentation.scale == (1.0, 2.0)


def test_every_field_is_documented() -> None:
    lines = inspect.getsource(Recipe).splitlines()
    for name in Recipe.__dataclass_fields__:
        index = next(i for i, line in enumerate(lines) if line.startswith(f"    {name}: "))
        assert lines[index + 1].strip().startswith('"""'), name


def test_yaml_of_a_recipe_loads_again(tmp_path: Path) -> None:
    recipe = replace(Recipe.load("scratch"), lr=3e-4, epochs=7)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    assert Recipe.load(path) == recipe


@pytest.mark.parametrize(
    ("changes", "per_epoch"),
    [
        ({}, 14786),
        ({"iterations": None, "epochs": 20}, 14786),
        ({"iterations": None, "epochs": 20, "batch_size": 16}, 7393),
        ({"iterations": None, "epochs": 36, "batch_size": 64, "lr": 0.08}, 1848),
        ({"iterations": 9000}, 500),
    ],
)
def test_the_papers_rate_drops_twice_whatever_the_length(changes: dict[str, Any], per_epoch: int) -> None:
    recipe = replace(Recipe.load("paper"), **changes)
    total = recipe.total_iterations(per_epoch)
    factors = [recipe.lr_factor(step, total) for step in range(total)]
    drops = [step for step in range(1, total) if factors[step] < factors[step - 1]]
    assert drops == [math.ceil(0.7 * total), math.ceil(round(total * 5 / 6, 6))]
    assert factors[-1] == pytest.approx(0.01)
    if not changes:
        assert drops == [210_000, 250_000]


def test_the_papers_training_from_imagenet_differs_in_three_settings() -> None:
    paper, imagenet = Recipe.load("paper").to_dict(), Recipe.load("paper-imagenet").to_dict()
    differing = {name: imagenet[name] for name in paper if paper[name] != imagenet[name]}
    assert differing == {"batch_norm": "frozen", "frozen_stages": 2}


COCO_IMAGES = 118_287


def commands_in_docs() -> list[list[str]]:
    """Commands of the documentation that train with the paper's recipe, without those that only measure."""
    pages = (Path(__file__).parents[2] / "docs").glob("*.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "train " in line and "--recipe paper" in line]
    return [shlex.split(line, comments=True) for line in lines if "--max-time" not in line]


@pytest.mark.parametrize("words", commands_in_docs(), ids=" ".join)
def test_the_documented_commands_train_as_long_as_the_paper(words: list[str]) -> None:
    given = dict(pairwise(words))
    recipe = Recipe.load(given["--recipe"])
    changes: dict[str, Any] = {}
    if "--epochs" in given:
        changes |= {"epochs": int(given["--epochs"]), "iterations": None}
    if "--batch-size" in given:
        changes |= {"batch_size": int(given["--batch-size"])}
    if "--lr" in given:
        changes |= {"lr": float(given["--lr"])}
    recipe = replace(recipe, **changes)
    per_epoch = COCO_IMAGES // recipe.batch_size
    total = recipe.total_iterations(per_epoch)
    assert 18 <= total / per_epoch <= 37
    assert recipe.lr == pytest.approx(0.01 * recipe.batch_size / 8)  # the rate grows with the batch
    factors = {round(recipe.lr_factor(step, total), 9) for step in range(total // 2, total)}
    assert factors == {1.0, 0.1, 0.01}
    devices = int(given.get("--devices", 1)) * int(given.get("--nodes", 1))
    assert recipe.batch_norm == "frozen" or recipe.batch_size >= 2 * devices
