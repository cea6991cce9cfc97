from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sotr.config import SOTRConfig
from sotr.errors import SOTRError
from sotr.learning import LossOptions, assign, dice, sotr_losses
from sotr.learning.losses import focal_loss_sum
from sotr.network import DensePredictions
from tests.scenes import make_targets, random_masks

CONFIG = replace(
    SOTRConfig.preset("sotr-nano", num_classes=3),
    grids=(6, 5, 4, 3, 2),
    scale_ranges=((1, 16), (8, 32), (16, 64), (32, 96), (64, 2048)),
)


def random_predictions(batch, height, width, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, CONFIG.num_cells, 3), (batch, CONFIG.num_cells, 8), (batch, 8, height // 4, width // 4)]
    return DensePredictions(
        *(torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes)
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 10**6))
def test_focal_loss_is_the_formula(cells, classes, seed):
    torch.manual_seed(seed)
    logits = torch.randn(2, cells, classes) * 4
    labels = torch.randint(0, classes + 1, (2, cells))
    expected = 0.0
    for picture in range(2):
        for cell in range(cells):
            for label in range(classes):
                p = torch.sigmoid(logits[picture, cell, label].double())
                positive = labels[picture, cell] == label
                p_t, alpha_t = (p, 0.25) if positive else (1 - p, 0.75)
                expected += -alpha_t * (1 - p_t) ** 2 * torch.log(p_t)
    found = focal_loss_sum(logits, labels, LossOptions())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask_stride", [4, 2, 1])
def test_losses_equal_a_loop_over_cells(mask_stride):
    height, width = 64, 96
    options = LossOptions(mask_stride=mask_stride)
    targets = [
        make_targets(random_masks(count, height, width, count), torch.arange(count) % 3, mask_stride)
        for count in (4, 0, 7)
    ]
    assignment = assign(targets, CONFIG, (height, width))
    predictions = random_predictions(3, height, width)
    found = sotr_losses(predictions, targets, assignment, options)

    dice, position = [], 0
    for picture, count in enumerate(assignment.counts):
        for _ in range(count):
            kernel = predictions.kernels_BKD[picture, assignment.cells_P[position]]
            features = predictions.mask_features_BEhw[picture]
            logits = F.conv2d(features[None], kernel[None, :, None, None])
            logits = F.interpolate(logits, scale_factor=4 // mask_stride, mode="bilinear", align_corners=False)
            p = logits[0, 0].double().sigmoid()
            q = targets[picture].masks_Ihw[assignment.objects_P[position]].double() / 255
            dice.append(1 - 2 * (p * q).sum() / ((p**2).sum() + (q**2).sum()))
            position += 1
    assert position > 20
    torch.testing.assert_close(found["loss_mask"].double(), 3 * torch.stack(dice).mean(), rtol=1e-5, atol=1e-6)
    focal = focal_loss_sum(predictions.class_logits_BKM, assignment.labels_BK, options) / (position + 1)
    torch.testing.assert_close(found["loss_class"], focal)


def test_pictures_without_objects_give_finite_connected_losses():
    targets = [make_targets(random_masks(0, 64, 64, 0), torch.zeros(0, dtype=torch.int64), 4)] * 2
    predictions = random_predictions(2, 64, 64)
    found = sotr_losses(predictions, targets, assign(targets, CONFIG, (64, 64)), LossOptions())
    assert found["loss_mask"] == 0
    assert torch.isfinite(found["loss_class"])
    sum(found.values()).backward()
    assert predictions.class_logits_BKM.grad.abs().sum() > 0
    assert predictions.kernels_BKD.grad.abs().sum() == 0
    assert predictions.mask_features_BEhw.grad.abs().sum() == 0


def test_chunks_change_neither_losses_nor_gradients(monkeypatch):
    targets = [make_targets(random_masks(12, 64, 64, 1), torch.arange(12) % 3, 4)]
    assignment = assign(targets, CONFIG, (64, 64))
    results = []
    for masks_at_once in (10_000, 7):
        monkeypatch.setattr(dice, "CELLS_AT_ONCE", masks_at_once)
        predictions = random_predictions(1, 64, 64)
        loss = sotr_losses(predictions, targets, assignment, LossOptions())["loss_mask"]
        loss.backward()
        results.append((loss.detach(), predictions.kernels_BKD.grad, predictions.mask_features_BEhw.grad))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=1e-5, atol=1e-6)


def test_gradients_match_finite_differences():
    targets = [make_targets(random_masks(3, 32, 32, 5), torch.arange(3), 4)]
    assignment = assign(targets, CONFIG, (32, 32))
    predictions = random_predictions(1, 32, 32, dtype=torch.float64)

    def masked(kernels, features):
        # float32 inside Dice limits the accuracy of the comparison, not of the gradients.
        made = DensePredictions(predictions.class_logits_BKM.detach(), kernels, features)
        return sotr_losses(made, targets, assignment, LossOptions())["loss_mask"]

    kernels, features = predictions.kernels_BKD, predictions.mask_features_BEhw
    loss = masked(kernels, features)
    (gradient,) = torch.autograd.grad(loss, kernels)
    direction = torch.randn_like(kernels)
    step = 1e-2
    with torch.no_grad():
        difference = masked(kernels + step * direction, features) - masked(kernels - step * direction, features)
    expected = difference.double() / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=2e-2, atol=1e-4)


def saved_bytes(function):
    """Bytes of distinct tensors that the forward pass keeps for the backward pass."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(storages.values())


def test_memory_with_300_objects_is_bounded_by_the_objects_not_their_cells():
    height = width = 128
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(300, height, width, dtype=torch.bool)
    for mask in masks:
        y, x = torch.randint(0, height - 24, (2,), generator=generator)
        mask[y : y + 24, x : x + 24] = True
    config = replace(CONFIG, grids=(40, 36, 24, 16, 12), scale_ranges=((1, 2048),) * 5, center_fraction=0.5)
    targets = [make_targets(masks, torch.zeros(300, dtype=torch.int64), 4)]
    assignment = assign(targets, config, (height, width))
    predictions = DensePredictions(
        torch.randn(1, config.num_cells, 3),
        torch.randn(1, config.num_cells, 8, requires_grad=True),
        torch.randn(1, 8, height // 4, width // 4, requires_grad=True),
    )
    positives = assignment.counts[0]
    pixels = (height // 4) * (width // 4)
    assert positives > 1000
    kept = saved_bytes(lambda: sotr_losses(predictions, targets, assignment, LossOptions())["loss_mask"])
    assert kept < positives * pixels * 4  # less than one float mask for each cell


def test_mask_stride_is_checked():
    with pytest.raises(SOTRError, match="choose 4, 2 or 1"):
        LossOptions(mask_stride=3)


def test_full_size_features_are_compared_at_full_size():
    """Upsampling before a 1 x 1 convolution or after it gives the same losses against masks of every pixel."""
    targets = [make_targets(random_masks(3, 64, 96, 3), torch.arange(3), 1)]
    assignment = assign(targets, CONFIG, (64, 96))
    late = random_predictions(1, 64, 96)
    features = F.interpolate(late.mask_features_BEhw, scale_factor=4, mode="bilinear", align_corners=False)
    early = late._replace(mask_features_BEhw=features)
    options = LossOptions(mask_stride=1)
    found = [sotr_losses(each, targets, assignment, options) for each in (early, late)]
    torch.testing.assert_close(*found)
