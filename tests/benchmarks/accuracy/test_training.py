"""Training within a budget, and what an interruption leaves."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.accuracy.competitors import entries
from benchmarks.accuracy.study import Plan
from benchmarks.accuracy.training import Stopped, Training, schedule

from sotr.data.coco import find_data
from sotr.errors import SOTRError
from sotr.training.recipe import Recipe

PLAN = Plan("any", math.inf, 1e-3, 3)
"""No budget ends it, and the time that a step takes has no part in its learning rate."""


def _training(folder: Path, name: str, checkpoint: Path | None, steps: int, lr: float = 1e-3) -> Training:
    data = find_data(folder).train
    assert data is not None
    recipe = replace(Recipe.load("pretrained"), batch_size=3)
    (entry,) = entries([name], data.class_names, 64, recipe)
    assert entry.build is not None
    competitor = entry.build(data, entry.config, recipe, None, PLAN.seed)
    return Training(competitor, data, entry.config, recipe, replace(PLAN, lr=lr), checkpoint, steps)


def _weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in training.competitor.network.state_dict().items()}


def test_the_rate_rises_and_comes_down_in_the_budget() -> None:
    assert schedule(0.0) == pytest.approx(0.01)
    assert schedule(0.1) == pytest.approx(1.0)
    assert schedule(1.0) == pytest.approx(0.01)
    rates = [schedule(0.1 + 0.09 * step) for step in range(11)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("name", ["sotr", "mask-rcnn"])
def test_a_training_that_goes_on_ends_as_one_that_never_stopped(coco_folder: Path, tmp_path: Path, name: str) -> None:
    whole = _training(coco_folder, name, None, 4)
    assert whole.run().step == 4

    path = tmp_path / "checkpoint"
    first = _training(coco_folder, name, path, 4)
    with pytest.raises(Stopped):  # after the third step: the second epoch has begun
        first.run(stopped=lambda: first.progress.step == 3)
    second = _training(coco_folder, name, path, 4)
    assert (second.progress.step, second.progress.epoch, second.progress.position) == (3, 1, 3)
    used = second.progress.used_s
    assert used > 0
    progress = second.run()
    assert progress.used_s > used
    assert [loss for _, loss in progress.losses] == [loss for _, loss in whole.progress.losses]
    expected = _weights(whole)
    for key, value in _weights(second).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-8, msg=key)


def test_measuring_costs_no_budget_and_changes_nothing(coco_folder: Path) -> None:
    plain, measured = (_training(coco_folder, "sotr", None, 4) for _ in range(2))
    plain.run()
    seen: list[float] = []

    def measure() -> tuple[float, float]:
        torch.rand(3)
        seen.append(float(measured.competitor.network.class_head.weight.detach().sum()))
        return 0.25, 0.5

    progress = measured.run(measure)
    assert [point["steps"] for point in progress.curve] == [1, 2, 3]
    assert [point["AP"] for point in progress.curve] == [0.25] * 3
    assert len(set(seen)) == 3
    expected = _weights(plain)
    assert all(torch.equal(value, expected[key]) for key, value in _weights(measured).items())


def test_a_gradient_that_is_not_finite_is_left_out(coco_folder: Path) -> None:
    training = _training(coco_folder, "sotr", None, 2)
    with torch.no_grad():
        training.competitor.network.class_head.weight[0, 0] = torch.nan
    assert training.run().skipped == 2


def test_a_damaged_checkpoint_is_named(coco_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(SOTRError, match="checkpoint cannot be read"):
        _training(coco_folder, "sotr", path, 2)
