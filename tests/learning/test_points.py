from dataclasses import replace

import pytest
import torch

from sotr.config import SOTRConfig
from sotr.errors import SOTRError
from sotr.learning import LossOptions, assign, sotr_losses
from sotr.learning.dice import dice_sum
from sotr.learning.points import dice_sum_of_points, draw_points
from sotr.network import DensePredictions
from tests.scenes import make_targets, random_masks


def scene(seed=0, cells=12, objects=3, side=16, scale=2):
    torch.manual_seed(seed)
    kernels = torch.randn(cells, 4).requires_grad_()
    features = torch.randn(4, side, side).requires_grad_()
    masks = random_masks(objects, side * scale, side * scale, seed).to(torch.uint8) * 255
    return kernels, features, masks, torch.arange(cells) % objects, scale


def test_half_the_points_are_near_the_outline_and_weights_count_the_pixels():
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, 16:48, 16:48] = 255
    torch.manual_seed(0)
    pixels, weights = draw_points(mask, 4000)
    y, x = pixels // 64, pixels % 64
    distance = torch.stack([(v - edge).abs() for v in (y + 0.5, x + 0.5) for edge in (16, 48)]).amin(0)
    inside_band = (distance <= 2) & (y >= 14) & (y < 50) & (x >= 14) & (x < 50)
    band = (36**2 - 28**2) / 64**2
    # Besides its own half the outline gets what the other two kinds of points leave to chance.
    assert inside_band.float().mean() == pytest.approx(0.5 + 0.25 * band + 0.25 * (32**2 - 28**2) / 32**2, abs=0.01)
    assert float(weights.sum()) == pytest.approx(64**2, rel=0.02)
    assert float((weights * (mask.flatten(1).gather(1, pixels) > 0)).sum()) == pytest.approx(32**2, rel=0.02)


def test_the_estimate_is_that_of_all_pixels_within_its_error():
    arguments = scene()
    exact = dice_sum(*arguments)
    of_kernels, of_features = torch.autograd.grad(exact, arguments[:2])
    estimates, kernel_gradients, feature_gradients = [], [], []
    for seed in range(30):
        torch.manual_seed(seed)
        loss = dice_sum_of_points(*arguments, points=256)
        gradients = torch.autograd.grad(loss, arguments[:2])
        estimates.append(loss.detach())
        kernel_gradients.append(gradients[0])
        feature_gradients.append(gradients[1])
    assert abs(torch.stack(estimates).mean() - exact) < 0.01 * exact
    for found, expected in ((kernel_gradients, of_kernels), (feature_gradients, of_features)):
        assert (torch.stack(found).mean(0) - expected).norm() < 0.15 * expected.norm()


def test_points_are_a_function_of_the_seed_and_chunks_change_nothing(monkeypatch):
    arguments = scene()

    def loss_and_gradients():
        torch.manual_seed(5)
        loss = dice_sum_of_points(*arguments, points=50)
        return loss.detach(), *torch.autograd.grad(loss, arguments[:2])

    first, again = loss_and_gradients(), loss_and_gradients()
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    monkeypatch.setattr("sotr.learning.points.CELLS_AT_ONCE", 5)
    for one, other in zip(first, loss_and_gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_objects_that_fill_the_picture_or_none_of_it_are_finite():
    kernels, features, masks, objects, scale = scene(objects=2)
    masks[0], masks[1] = 255, 0
    loss = dice_sum_of_points(kernels, features, masks, objects, scale, points=20)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(kernels.grad).all()


def test_the_losses_take_points_by_option():
    config = replace(SOTRConfig.preset("sotr-nano", num_classes=3), grids=(6, 5, 4, 3, 2))
    targets = [make_targets(random_masks(count, 64, 64, 1), torch.arange(count) % 3, 2) for count in (5, 0)]
    assignment = assign(targets, config, (64, 64))
    torch.manual_seed(0)
    predictions = DensePredictions(
        torch.randn(2, config.num_cells, 3), torch.randn(2, config.num_cells, 8), torch.randn(2, 8, 16, 16)
    )
    dense = sotr_losses(predictions, targets, assignment, LossOptions(mask_stride=2))
    sampled = sotr_losses(predictions, targets, assignment, LossOptions(mask_stride=2, points=400))
    assert sampled["loss_class"] == dense["loss_class"]
    assert sampled["loss_mask"] != dense["loss_mask"]
    assert float(sampled["loss_mask"]) == pytest.approx(float(dense["loss_mask"]), rel=0.05)
    with pytest.raises(SOTRError, match=r"points is -1; give a number"):
        LossOptions(points=-1)
