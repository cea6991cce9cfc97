"""Decoding against the same steps done in the plainest way: whole maps, one mask at a time, nothing kept in pieces."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from torch.nn import functional as F

from sotr.acceleration.cuda.compress import compress_on_gpu
from sotr.config import SOTRConfig
from sotr.decoding import DecodeOptions, decode
from sotr.decoding.decode import LEVEL_STRIDES, points_nms
from sotr.decoding.matrix_nms import intersections, mask_iou, mask_nms, matrix_nms
from sotr.masks import compress
from sotr.network import DensePredictions, mask_logits

DECODE = sys.modules["sotr.decoding.decode"]
CLASSES = 3
CONFIG = replace(
    SOTRConfig.preset("sotr-nano", num_classes=CLASSES),
    grids=(9, 6, 4, 3, 2),
    mask_channels=32,
    mask_stage_channels=32,
    position_waves=0,
)
IMAGE, ORIGINAL = (44, 80), (61, 97)


def predictions(kernel_size=1, batch=2):
    """Random predictions of eighths, of which products and sums are exact in whatever order they are taken."""
    generator = torch.Generator().manual_seed(0)

    def eighths(*shape):
        return torch.randint(-16, 17, shape, generator=generator) / 8

    features = F.interpolate(eighths(batch, 32, 3, 6), size=(12, 24)).mul(8).round().div(8)
    return DensePredictions(
        torch.randn(batch, CONFIG.num_cells, CLASSES, generator=generator),
        eighths(batch, CONFIG.num_cells, 32 * kernel_size**2),
        features,
    )


def plain_decode(class_logits_KM, kernels_KD, features_Ehw, options):
    """[(score, label, mask)] of one image, best first."""
    scores_KM = class_logits_KM.sigmoid()
    if options.points_nms:
        scores_KM = points_nms(scores_KM[None], CONFIG.grids)[0]
    strides = [stride for stride, grid in zip(LEVEL_STRIDES, CONFIG.grids, strict=True) for _ in range(grid * grid)]
    order = scores_KM.flatten().argsort(descending=True)[: options.max_candidates]
    candidates = []
    for index in order.tolist():
        cell, label = divmod(index, CLASSES)
        score = scores_KM[cell, label]
        logits = mask_logits(kernels_KD[cell][None], features_Ehw)[0]
        inside = logits > options.threshold_logit
        if score > options.cell_threshold and inside.sum() > options.min_area_strides * strides[cell]:
            candidates.append((score * logits.sigmoid()[inside].mean(), label, logits))
    candidates.sort(key=lambda candidate: -candidate[0])
    candidates = candidates[: options.max_nms]
    if not candidates:
        return []
    scores_I = torch.stack([score for score, _, _ in candidates])
    labels_I = torch.tensor([label for _, label, _ in candidates])
    logits_Ihw = torch.stack([logits for _, _, logits in candidates])
    masks_IL = logits_Ihw.flatten(1) > options.threshold_logit
    if options.nms == "mask":
        scores_I = mask_nms(mask_iou(masks_IL), labels_I, scores_I, options.nms_threshold)
    else:
        scores_I = matrix_nms(mask_iou(masks_IL), labels_I, scores_I, options.nms_sigma, options.nms)
    objects = []
    for i in scores_I.argsort(descending=True, stable=True).tolist()[: options.max_objects]:
        if scores_I[i] <= options.score_threshold:
            continue
        maps, level = logits_Ihw[i][None, None], options.threshold_logit
        if options.upsample == "probabilities":
            maps, level = maps.sigmoid(), options.mask_threshold
        maps = F.interpolate(maps, scale_factor=4.0, mode="bilinear", align_corners=False)
        maps = F.interpolate(maps[..., : IMAGE[0], : IMAGE[1]], size=ORIGINAL, mode="bilinear", align_corners=False)
        mask = (maps[0, 0] > level).numpy()
        if mask.any():
            objects.append((scores_I[i].item(), int(labels_I[i]), mask))
    return objects


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_candidates": 40, "max_nms": 20, "nms": "linear", "max_objects": 5},
        {"nms": "mask", "upsample": "probabilities", "min_area_strides": 2.0, "points_nms": False},
        {"cell_threshold": 1.0},
        {"cell_threshold": 0.7},
    ],
)
@pytest.mark.parametrize("compress_with", [compress.compress_on_host, compress_on_gpu])
def test_equals_the_plain_steps(monkeypatch, kernel_size, channels_last, settings, compress_with):
    options = DecodeOptions(**({"mask_threshold": 0.6} | settings))
    dense = predictions(kernel_size)
    if channels_last:
        features = dense.mask_features_BEhw.to(memory_format=torch.channels_last)
        dense = dense._replace(mask_features_BEhw=features)
    names, ids = ("a", "b", "c"), (1, 2, 3)
    for small in (False, True):
        if small:  # every kind of piece is small, so that there are many of each
            sizes = {"CANDIDATES_AT_ONCE": 7, "LOGITS_AT_ONCE": 500, "HELD_LOGITS": 900}
            for name, value in sizes.items():
                monkeypatch.setattr(DECODE, name, value)
            monkeypatch.setattr(compress, "CACHED_PIXELS", 9000)
            monkeypatch.setattr("sotr.acceleration.cuda.compress.UPSAMPLED_PIXELS", 9000)
        found = decode(
            dense,
            [IMAGE] * 2,
            [ORIGINAL] * 2,
            options,
            config=CONFIG,
            class_names=names,
            category_ids=ids,
            compress=compress_with,
        )
        for picture, instances in enumerate(found):
            expected = plain_decode(*(tensor[picture] for tensor in dense), options)
            assert len(instances) == len(expected)
            assert len(expected) > 4 or settings.get("cell_threshold") == 1.0
            np.testing.assert_allclose(instances.scores_I, [score for score, _, _ in expected], rtol=1e-5)
            assert instances.labels_I.tolist() == [label for _, label, _ in expected]
            for rle, (_, _, mask) in zip(instances.rles, expected, strict=True):
                assert rle["size"] == list(ORIGINAL)
                np.testing.assert_array_equal(coco_mask.decode([rle])[..., 0], mask)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # eighths are exact in both
@pytest.mark.parametrize("settings", [{}, {"nms": "mask", "upsample": "probabilities", "min_area_strides": 2.0}])
def test_a_gpu_finds_the_same(dtype, settings):
    options = DecodeOptions(**settings)
    dense = DensePredictions(*(tensor.to(dtype) for tensor in predictions()))
    found = {}
    for device in ("cpu", "cuda"):
        on_device = DensePredictions(*(tensor.to(device) for tensor in dense))
        found[device] = decode(
            on_device,
            [IMAGE] * 2,
            [ORIGINAL] * 2,
            options,
            config=CONFIG,
            class_names=("a", "b", "c"),
            category_ids=(1, 2, 3),
        )
    for one, other in zip(found["cuda"], found["cpu"], strict=True):
        np.testing.assert_allclose(one.scores_I, other.scores_I, rtol=1e-4)
        assert one.labels_I.tolist() == other.labels_I.tolist()
        assert one.rles == other.rles
        np.testing.assert_array_equal(one.boxes_I4, other.boxes_I4)


@pytest.mark.gpu
def test_overlaps_are_exact_on_a_gpu():
    torch.manual_seed(0)
    masks = torch.rand(301, 67_200, device="cuda") < torch.rand(301, 1, device="cuda")
    as_numbers = masks.double()
    assert torch.equal(intersections(masks).double(), as_numbers @ as_numbers.T)


@pytest.mark.parametrize(("count", "pixels"), [(0, 5), (1, 1), (3, 1000), (130, 777)])
def test_overlaps_are_exact(count, pixels):
    torch.manual_seed(0)
    masks = torch.rand(count, pixels) < torch.rand(count, 1)
    both = (masks[:, None] & masks[None]).sum(2).double()
    either = (masks[:, None] | masks[None]).sum(2).double()
    torch.testing.assert_close(mask_iou(masks).double(), both / either.clamp(min=1), rtol=1e-6, atol=0)
