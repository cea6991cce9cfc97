import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sotr.learning import dice
from sotr.learning.dice import dice_losses, dice_sum


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 30), st.integers(0, 10**6))
def test_dice_is_the_formula(count, objects, pixels, seed):
    torch.manual_seed(seed)
    logits, masks = torch.randn(count, pixels) * 3, torch.rand(objects, pixels)
    index = torch.randint(0, objects, (count,))
    found = dice_losses(logits, masks, index, masks.square().sum(1))
    for i in range(count):
        p, q = logits[i].double().sigmoid(), masks[index[i]].double()
        expected = 1 - 2 * (p * q).sum() / ((p**2).sum() + (q**2).sum())
        torch.testing.assert_close(found[i].double(), expected, rtol=1e-4, atol=1e-6)


def scene(cells, objects, height, width, scale, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    kernels = torch.randn(cells, 4, generator=generator, dtype=dtype).requires_grad_()
    features = torch.randn(4, height, width, generator=generator, dtype=dtype).requires_grad_()
    masks = torch.randint(0, 256, (objects, height * scale, width * scale), generator=generator, dtype=torch.uint8)
    return kernels, features, masks, torch.randint(0, objects, (cells,), generator=generator), scale


def plainly(kernels, features, masks, index, scale):
    logits = (kernels @ features.flatten(1)).unflatten(1, features.shape[1:])
    logits = F.interpolate(logits[None], scale_factor=float(scale), mode="bilinear", align_corners=False)[0]
    flat = masks.flatten(1).to(logits.dtype) / 255
    return dice_losses(logits.flatten(1), flat, index, flat.square().sum(1)).sum()


@settings(max_examples=40, deadline=None)
@given(
    cells=st.integers(1, 9),
    objects=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    scale=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 10**6),
)
def test_sum_and_gradients_equal_the_plain_formula(cells, objects, height, width, scale, seed):
    arguments = scene(cells, objects, height, width, scale, seed)
    results = []
    for function in (plainly, dice_sum):
        loss = function(*arguments)
        results.append((loss.detach(), *torch.autograd.grad(3 * loss, arguments[:2])))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_gradients_match_finite_differences(scale):
    kernels, features, *rest = scene(5, 2, 3, 4, scale, seed=1)
    assert torch.autograd.gradcheck(lambda k, f: dice_sum(k, f, *rest), (kernels, features))


def test_a_mask_and_a_target_of_nothing_give_no_gradient():
    """The denominator then is its least value, a constant."""
    kernels = torch.full((1, 1), -1.0).requires_grad_()
    features = torch.full((1, 2, 2), 60.0)
    loss = dice_sum(kernels, features, torch.zeros(1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.long), 1)
    loss.backward()
    assert loss == 1
    assert kernels.grad == 0


def test_chunks_change_nothing(monkeypatch):
    arguments = scene(20, 3, 8, 8, 2, seed=2, dtype=torch.float32)
    whole = torch.autograd.grad(dice_sum(*arguments), arguments[:2])
    monkeypatch.setattr(dice, "CELLS_AT_ONCE", 7)
    monkeypatch.setattr(dice, "_CACHED", 600)  # two masks
    for one, other in zip(whole, torch.autograd.grad(dice_sum(*arguments), arguments[:2]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_without_gradients_the_sum_is_the_same():
    arguments = scene(6, 2, 8, 8, 2, seed=3)
    with torch.no_grad():
        loss = dice_sum(*arguments)
    assert not loss.requires_grad
    assert loss == dice_sum(*arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_product_has_the_precision_of_the_surroundings(dtype):
    kernels, features, *rest = scene(6, 2, 16, 16, 2, seed=4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        loss = dice_sum(kernels, features, *rest)
    assert loss.dtype == torch.float32
    of_kernels, of_features = torch.autograd.grad(loss, (kernels, features))
    assert of_kernels.dtype == of_features.dtype == torch.float32
    exact = plainly(kernels, features, *rest)
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=0)
    for found, expected in zip((of_kernels, of_features), torch.autograd.grad(exact, (kernels, features)), strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()
