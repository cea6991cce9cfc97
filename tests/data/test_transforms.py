"""Preprocessing and augmentation, checked against dense masks that go through plain array operations."""

import math

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sotr.data.transforms import (
    MEAN,
    STD,
    Augmentation,
    Augmented,
    Objects,
    augment,
    pad_batch,
    preprocess,
    resized_size,
)
from sotr.errors import SOTRError
from sotr.masks import run_lengths as rle

STILL = Augmentation(horizontal_flip=False)


def objects_of(masks_IHW: np.ndarray, labels: list[int] | None = None) -> Objects:
    strings = []
    for mask in masks_IHW:
        counts = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
        strings.append(counts.encode() if isinstance(counts, str) else bytes(counts))
    boxes = rle.boxes(rle.runs_of(strings, masks_IHW.shape[1]))
    return Objects(np.array(labels or range(len(strings)), np.int64), boxes, strings)


def scene(height: int, width: int, count: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noise image and random, overlapping ellipses."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        ry, rx = rng.uniform(2, height / 3), rng.uniform(2, width / 3)
        mask |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
        mask[int(min(cy, height - 1)), int(min(cx, width - 1))] = True
    return rng.integers(0, 256, (height, width, 3), np.uint8), masks


def run(
    image: np.ndarray,
    objects: Objects,
    augmentation: Augmentation,
    image_size: int = 64,
    max_image_size: int = 96,
    *,
    stride: int = 4,
    seed: int = 0,
) -> Augmented:
    rng = np.random.default_rng(seed)
    return augment(image, objects, augmentation, image_size, max_image_size, mask_stride=stride, generator=rng)


def shown(image_3hw: torch.Tensor) -> torch.Tensor:
    """A normalized image as 0..255."""
    return (image_3hw * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255


def test_resized_size() -> None:
    assert resized_size(480, 640, 800, 1333) == (800, 1067)
    assert resized_size(640, 480, 800, 1333) == (1067, 800)
    assert resized_size(500, 2000, 800, 1333) == (333, 1333)
    assert resized_size(100, 100, 100, 100) == (100, 100)
    assert resized_size(1, 20_000, 800, 1333) == (1, 1333)
    assert resized_size(1, 1, 800, 1333) == (800, 800)


@settings(deadline=None)
@given(*[st.integers(1, 5000)] * 2, st.integers(1, 1000), st.integers(0, 1000))
def test_resized_size_keeps_bounds_and_aspect(height: int, width: int, size: int, extra: int) -> None:
    new = resized_size(height, width, size, size + extra)
    assert 1 <= min(new) <= size
    assert max(new) <= size + extra
    assert min(new) == size or max(new) == size + extra
    scale = max(new) / max(height, width)
    assert abs(min(new) - min(height, width) * scale) <= 1 + min(height, width) / max(height, width)


def test_preprocess_normalises_and_keeps_pixels_at_native_size() -> None:
    image, _ = scene(40, 56)
    tensor = preprocess(image, 40, 100)
    assert tensor.shape == (3, 40, 56)
    assert tensor.dtype == torch.float32
    expected = (image.astype(np.float64) / 255 - MEAN) / STD
    np.testing.assert_allclose(tensor.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_preprocess_shrinks_with_antialias() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    grey = shown(preprocess(stripes, 16, 16))
    assert grey.shape == (3, 16, 16)
    # At the border the filter sees half its support, an odd number of stripes.
    assert (grey[..., 1:-1] - 127.5).abs().max() < 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1)])
def test_preprocess_of_extreme_shapes(shape: tuple[int, int]) -> None:
    tensor = preprocess(np.full((*shape, 3), 255, np.uint8), 32, 64)
    assert tensor.shape[1:] == resized_size(*shape, 32, 64)
    assert torch.allclose(shown(tensor), torch.tensor(255.0))


def test_pad_batch_pads_with_zeros_after_normalisation() -> None:
    small, wide = torch.full((3, 20, 30), 2.0), torch.full((3, 10, 65), 3.0)
    batch = pad_batch([small, wide])
    assert batch.shape == (2, 3, 32, 96)
    assert torch.equal(batch[0, :, :20, :30], small)
    assert torch.equal(batch[1, :, :10, :65], wide)
    assert batch.sum() == small.sum() + wide.sum()
    assert pad_batch([small], divisor=1).shape == (1, 3, 20, 30)
    with pytest.raises(SOTRError, match="at least one image"):
        pad_batch([])


def test_without_variation_augment_is_preprocess() -> None:
    image, masks = scene(80, 60)
    result = run(image, objects_of(masks), STILL)
    assert result.size == (85, 64)
    assert torch.equal(result.image_3hw, preprocess(image, 64, 96))
    assert result.targets.labels_I.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_targets_at_native_size_are_those_of_the_dense_masks(stride: int) -> None:
    image, masks = scene(48, 66)
    targets = run(image, objects_of(masks), STILL, 48, 66, stride=stride).targets
    dense = torch.from_numpy(masks).float()
    padded = F.pad(dense, (0, -66 % stride, 0, -48 % stride))
    coverage = F.avg_pool2d(padded[None], stride)[0]
    assert targets.masks_Ihw.dtype == torch.uint8
    assert (targets.masks_Ihw.float() - coverage * 255).abs().max() <= 0.51
    for i, mask in enumerate(masks):
        y, x = np.nonzero(mask)
        np.testing.assert_allclose(targets.boxes_I4[i], [x.min(), y.min(), x.max() + 1, y.max() + 1])
        np.testing.assert_allclose(targets.centers_I2[i], [x.mean() + 0.5, y.mean() + 0.5], rtol=1e-5)


def test_enlarging_by_whole_factors_repeats_pixels() -> None:
    image, masks = scene(24, 32)
    targets = run(image, objects_of(masks), STILL, 72, 96, stride=4).targets
    large = torch.from_numpy(masks.repeat(3, 1).repeat(3, 2)).float()
    assert (targets.masks_Ihw.float() - F.avg_pool2d(large[None], 4)[0] * 255).abs().max() <= 0.51


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 60), st.integers(8, 60), st.integers(1, 70), st.sampled_from([1, 2, 4]))
def test_coverage_keeps_area_and_centre_at_any_scale(
    seed: int, height: int, width: int, size: int, stride: int
) -> None:
    image, masks = scene(height, width, 3, seed)
    result = run(image, objects_of(masks), STILL, size, 2 * size, stride=stride)
    h, w = result.size
    scale_y, scale_x = h / height, w / width
    areas = masks.sum((1, 2)) * scale_y * scale_x
    kept = result.targets.labels_I.numpy()
    assert kept.tolist() == np.flatnonzero(areas >= 1).tolist()
    covered = result.targets.masks_Ihw.double().sum((1, 2)).numpy() / 255 * stride**2
    blocks = result.targets.masks_Ihw.shape[1] * result.targets.masks_Ihw.shape[2]
    assert result.targets.masks_Ihw.shape[1:] == (math.ceil(h / stride), math.ceil(w / stride))
    np.testing.assert_allclose(covered, areas[kept], atol=blocks * stride**2 * 0.51 / 255)
    boxes, centers = result.targets.boxes_I4.numpy(), result.targets.centers_I2.numpy()
    assert (boxes[:, :2] <= centers).all()
    assert (centers <= boxes[:, 2:]).all()
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= np.array([w, h]) + 1e-3).all()


def orient(array: np.ndarray, horizontal: bool, vertical: bool, turns: int) -> np.ndarray:
    """The reference, on the last two axes."""
    array = array[..., ::-1] if horizontal else array
    array = array[..., ::-1, :] if vertical else array
    return np.rot90(array, turns, (-2, -1))


def test_flips_and_turns_move_picture_and_masks_together() -> None:
    height, width = 36, 50
    image, masks = scene(height, width)
    augmentation = Augmentation(vertical_flip=True, rotate90=True)
    seen = set()
    for seed in range(60):
        result = run(image, objects_of(masks), augmentation, 36, 50, stride=1, seed=seed)
        picture = shown(result.image_3hw).round().numpy()
        for way in [(h, v, k) for h in (False, True) for v in (False, True) for k in range(4)]:
            if np.array_equal(orient(image.transpose(2, 0, 1), *way), picture):
                np.testing.assert_array_equal(result.targets.masks_Ihw.numpy(), orient(masks, *way) * np.uint8(255))
                seen.add(tuple(orient(np.arange(4).reshape(2, 2), *way).ravel()))
                break
        else:
            pytest.fail("the image is none of the eight orientations")
        for mask, box in zip(result.targets.masks_Ihw.numpy(), result.targets.boxes_I4.numpy(), strict=True):
            y, x = np.nonzero(mask)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("augmentation", "ways"),
    [
        (Augmentation(), 2),
        (Augmentation(vertical_flip=True), 4),
        (STILL, 1),
        (Augmentation(horizontal_flip=False, rotate90=True), 4),
    ],
)
def test_each_flip_is_a_switch(augmentation: Augmentation, ways: int) -> None:
    image, masks = scene(32, 32)
    results = [run(image, objects_of(masks), augmentation, 32, 32, seed=seed).image_3hw for seed in range(40)]
    assert len({tensor.numpy().tobytes() for tensor in results}) == ways


def test_a_crop_shows_picture_and_objects_of_the_same_window() -> None:
    image, masks = scene(90, 120, 8)
    # Numbered pixels tell where the window is.
    image[..., 0], image[..., 1] = np.arange(90)[:, None], np.arange(120)
    corners = set()
    for seed in range(20):
        result = run(
            image, objects_of(masks), Augmentation(crop=48, horizontal_flip=False), 90, 120, stride=1, seed=seed
        )
        assert result.size == (48, 48)
        top, left = (int(v) for v in shown(result.image_3hw)[:2, 0, 0].round())
        corners.add((top, left))
        window = masks[:, top : top + 48, left : left + 48]
        visible = np.flatnonzero(window.any((1, 2)))
        assert result.targets.labels_I.tolist() == visible.tolist()
        np.testing.assert_array_equal(result.targets.masks_Ihw.numpy(), window[visible] * np.uint8(255))
        for mask, box, center in zip(window[visible], result.targets.boxes_I4, result.targets.centers_I2, strict=True):
            y, x = np.nonzero(mask)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            np.testing.assert_allclose(center, [x.mean() + 0.5, y.mean() + 0.5], rtol=1e-5)
    assert len(corners) > 15


def test_a_crop_larger_than_the_picture_is_padded_with_the_mean() -> None:
    image, masks = scene(40, 30)
    result = run(image, objects_of(masks), Augmentation(crop=64, horizontal_flip=False), 30, 40)
    assert result.size == (40, 30)
    assert result.image_3hw.shape == (3, 64, 64)
    assert torch.equal(result.image_3hw[:, :40, :30], preprocess(image, 30, 40))
    assert result.image_3hw[:, 40:].abs().sum() == result.image_3hw[:, :, 30:].abs().sum() == 0


def test_scale_is_spread_over_its_range_in_logarithm_and_the_longest_edge_stays_capped() -> None:
    image, masks = scene(20, 30)
    few = objects_of(masks[:1])
    sides = [run(image, few, Augmentation((0.5, 2.0)), 64, 10_000, seed=seed).size[0] for seed in range(200)]
    assert min(sides) < 36
    assert max(sides) > 118
    assert 54 < np.exp(np.mean(np.log(sides))) < 74
    capped = [run(image, few, Augmentation((0.5, 2.0)), 64, 100, seed=seed).size for seed in range(50)]
    assert max(max(size) for size in capped) == 100


def test_a_cropped_window_widens_as_the_scale_falls() -> None:
    image = np.tile(np.linspace(0, 255, 200).astype(np.uint8)[:, None, None], (1, 200, 3))
    for factor in (0.5, 1.0, 2.0):
        result = run(image, objects_of(np.zeros((0, 200, 200), bool)), Augmentation((factor,) * 2, 50, False), 100, 200)
        rows = shown(result.image_3hw).mean((0, 2))
        assert result.size == (50, 50)
        # 50 pixels of input at scale `factor` / 2 of the file.
        assert float(rows[-1] - rows[0]) == pytest.approx(255 * 100 / factor / 200, rel=0.06)


def test_objects_that_show_less_than_a_pixel_vanish() -> None:
    masks = np.zeros((4, 64, 64), bool)
    masks[0, 10, 10] = True  # 1/4 px at half size
    masks[1, 20, 20:24] = True  # exactly 1 px
    masks[2, :, :] = True
    result = run(np.zeros((64, 64, 3), np.uint8), objects_of(masks), STILL, 32, 32)  # the last has no pixels at all
    assert result.targets.labels_I.tolist() == [1, 2]
    assert result.targets.masks_Ihw.shape == (2, 8, 8)
    assert (result.targets.masks_Ihw[1] == 255).all()


@pytest.mark.parametrize("augmentation", [STILL, Augmentation((0.5, 2.0), 32, True, True, True, 1.0, 0.5, 0.5)])
def test_no_objects(augmentation: Augmentation) -> None:
    image, _ = scene(30, 40)
    for seed in range(8):
        targets = run(image, objects_of(np.zeros((0, 30, 40), bool)), augmentation, seed=seed).targets
        assert targets.labels_I.shape == (0,)
        assert targets.boxes_I4.shape == (0, 4)
        assert targets.centers_I2.shape == (0, 2)
        assert targets.masks_Ihw.shape[0] == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99), st.sampled_from([0, 16, 100]))
@example(1, 20_000, 0, 0)
@example(20_000, 1, 1, 64)
def test_any_shape_of_picture(height: int, width: int, seed: int, crop: int) -> None:
    masks = np.ones((1, height, width), bool)
    augmentation = Augmentation((0.5, 2.0), crop, True, True, True)
    result = run(np.zeros((height, width, 3), np.uint8), objects_of(masks), augmentation, seed=seed)
    h, w = result.size
    assert result.image_3hw.shape == ((3, crop, crop) if crop else (3, h, w))
    np.testing.assert_allclose(result.targets.boxes_I4, [[0, 0, w, h]], rtol=1e-5)
    np.testing.assert_allclose(result.targets.centers_I2, [[w / 2, h / 2]], rtol=1e-5)


def test_the_generator_is_all_the_chance_there_is() -> None:
    image, masks = scene(60, 60)
    augmentation = Augmentation((0.5, 2.0), 40, True, True, True, 1.0, 0.3, 0.3)
    first, second, other = (run(image, objects_of(masks), augmentation, seed=seed) for seed in (3, 3, 4))
    torch.manual_seed(0)
    third = run(image, objects_of(masks), augmentation, seed=3)
    for again in (second, third):
        assert torch.equal(first.image_3hw, again.image_3hw)
        assert torch.equal(first.targets.masks_Ihw, again.targets.masks_Ihw)
    assert not torch.equal(first.image_3hw, other.image_3hw)


def test_the_input_stays_as_it_was() -> None:
    image, masks = scene(32, 32)
    before = image.copy()
    run(image, objects_of(masks), Augmentation((1, 1), 0, True, True, True, 2.0, 1.0, 1.0), 32, 32)
    np.testing.assert_array_equal(image, before)


def recolored(image: np.ndarray, augmentation: Augmentation, seed: int) -> torch.Tensor:
    none = objects_of(np.zeros((0, *image.shape[:2]), bool))
    return shown(run(image, none, augmentation, *image.shape[:2], seed=seed).image_3hw)


def test_color_varies_brightness_contrast_and_hue_within_its_strength() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :16], image[:, 16:] = (120, 60, 40), (60, 100, 120)
    for strength in (0.2, 1.0):
        means, channels = [], set()
        for seed in range(40):
            result = recolored(image, Augmentation(horizontal_flip=False, color=strength), seed)
            means.append(float(result.mean() / image.mean()))
            channels.add(float((result[0] / result[1])[0, 0].round(decimals=2)))
            assert 0 <= result.min() + 1e-3
            assert result.max() <= 255 + 1e-3
        assert 1 - 0.45 * strength < min(means) < 1 - 0.2 * strength
        assert 1 + 0.2 * strength < max(means) < 1 + 0.45 * strength
        assert len(channels) > 10


def test_color_leaves_grey_pictures_grey() -> None:
    image = np.repeat(np.random.default_rng(0).integers(0, 256, (32, 32, 1), np.uint8), 3, 2)
    for seed in range(10):
        result = recolored(image, Augmentation(horizontal_flip=False, color=1.0), seed)
        assert (result[0] - result[2]).abs().max() < 1e-3
        assert not torch.allclose(result[0], torch.from_numpy(image[..., 0]).float(), atol=1)


def test_greyscale_and_invert_are_probabilities() -> None:
    image, _ = scene(32, 32)
    original = torch.from_numpy(image).permute(2, 0, 1).float()
    grey = [recolored(image, Augmentation(horizontal_flip=False, greyscale=0.3), seed) for seed in range(100)]
    is_grey = [bool((picture[0] - picture[1]).abs().max() < 1e-3) for picture in grey]
    assert 15 <= sum(is_grey) <= 45
    luma = 0.299 * original[0] + 0.587 * original[1] + 0.114 * original[2]
    assert torch.allclose(grey[is_grey.index(True)][0], luma, atol=0.2)
    inverted = [recolored(image, Augmentation(horizontal_flip=False, invert=0.3), seed) for seed in range(100)]
    is_inverted = [torch.allclose(picture, 255 - original, atol=1e-2) for picture in inverted]
    assert 15 <= sum(is_inverted) <= 45
    assert torch.allclose(inverted[is_inverted.index(False)], original, atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"scale": (1.0,)}, "scale"),
        ({"crop": -1}, "crop"),
        ({"color": -0.1}, "color"),
        ({"color": 2.1}, "color"),
        ({"greyscale": 1.5}, "greyscale"),
        ({"invert": -1}, "invert"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, object], word: str) -> None:
    with pytest.raises(SOTRError, match=f"augmentation {word} is "):
        Augmentation(**settings)  # type: ignore[arg-type]
