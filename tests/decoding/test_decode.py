import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from sotr.config import SOTRConfig
from sotr.decoding import DecodeOptions, decode
from sotr.decoding.decode import points_nms
from sotr.errors import SOTRError
from sotr.network import DensePredictions

CONFIG = replace(
    SOTRConfig.preset("sotr-nano", num_classes=2),
    grids=(6, 4, 3, 2, 1),
    mask_channels=32,
    mask_stage_channels=32,
    position_waves=0,
)
NAMES, IDS = ("cat", "dog"), (17, 18)


def scene(objects, height=64, width=96, background=-12.0):
    """Predictions of given objects: (cell, class, logit, (x0, y0, x1, y1) in feature pixels).

    Feature channel i is +1 inside object i and -1 outside; its cell's kernel picks that channel, times 20.
    """
    logits = torch.full((1, CONFIG.num_cells, 2), background)
    kernels = torch.zeros(1, CONFIG.num_cells, CONFIG.kernel_parameters)
    features = -torch.ones(1, CONFIG.mask_channels, height // 4, width // 4)
    for channel, (cell, label, logit, (x0, y0, x1, y1)) in enumerate(objects):
        logits[0, cell, label] = logit
        kernels[0, cell, channel % CONFIG.mask_channels] = 20.0
        features[0, channel % CONFIG.mask_channels, y0:y1, x0:x1] = 1.0
    return DensePredictions(logits, kernels, features)


def run(predictions, image=(64, 96), original=(64, 96), **options):
    batch = len(predictions.class_logits_BKM)
    settings = DecodeOptions(**options)
    return decode(
        predictions, [image] * batch, [original] * batch, settings, config=CONFIG, class_names=NAMES, category_ids=IDS
    )


def test_objects_come_out_where_they_are():
    (found,) = run(scene([(3, 0, 3.0, (2, 3, 8, 9)), (20, 1, 1.0, (12, 6, 20, 14))]))
    assert found.labels_I.tolist() == [0, 1]
    assert found.class_names == NAMES
    assert found.category_ids == IDS
    # Mean probability inside is sigmoid(20) = 1, so scores are the cells'.
    np.testing.assert_allclose(found.scores_I, torch.tensor([3.0, 1.0]).sigmoid(), rtol=1e-5)
    # A step between feature pixels falls in their middle after bilinear upsampling: at 4 times the index.
    np.testing.assert_array_equal(found.boxes_I4, [[8, 12, 32, 36], [48, 24, 80, 56]])


def test_nothing_found():
    (found,) = run(scene([]))
    assert len(found) == 0
    assert found.image_size == (64, 96)
    assert found.masks_IHW.shape == (0, 64, 96)


def test_original_size_without_padding():
    """The network saw 48 x 80 of an image of 96 x 160; the rest of its 64 x 96 input is padding."""
    (found,) = run(
        scene([(3, 0, 3.0, (2, 3, 8, 9)), (9, 1, 2.0, (21, 13, 24, 16))]), image=(48, 80), original=(96, 160)
    )
    assert found.image_size == (96, 160)
    np.testing.assert_array_equal(found.boxes_I4, [[16, 24, 64, 72]])  # the second lies in the padding alone


def test_certainty_lowers_the_score():
    predictions = scene([(3, 0, 3.0, (2, 3, 8, 9))])
    predictions.kernels_BKD.mul_(0.05)  # mask logits of +-1
    (found,) = run(predictions)
    np.testing.assert_allclose(found.scores_I, torch.sigmoid(torch.tensor(3.0)) * torch.sigmoid(torch.tensor(1.0)))


def test_thresholds():
    predictions = scene([(3, 0, 3.0, (2, 3, 8, 9)), (20, 1, -1.5, (12, 6, 20, 14))])  # scores 0.95 and 0.18
    assert len(run(predictions)[0]) == 2
    assert len(run(predictions, cell_threshold=0.2)[0]) == 1
    assert len(run(predictions, score_threshold=0.2)[0]) == 1
    assert len(run(predictions, score_threshold=0.96)[0]) == 0


def test_duplicates_are_suppressed():
    box = (2, 3, 8, 9)
    (found,) = run(scene([(3, 0, 3.0, box), (37, 0, 2.9, box)]), score_threshold=0.2)
    assert len(found) == 1


def test_limits_keep_the_best():
    boxes = [(4 * i, 2, 4 * i + 3, 6) for i in range(6)]
    cells = [0, 2, 4, 12, 14, 16]
    predictions = scene([(cell, 0, 1.0 + i, box) for i, (cell, box) in enumerate(zip(cells, boxes, strict=True))])
    best = torch.sigmoid(torch.tensor([6.0, 5.0, 4.0]))
    for limits in ({"max_objects": 3}, {"max_candidates": 3}):
        (found,) = run(predictions, **limits)
        np.testing.assert_allclose(found.scores_I, best, rtol=1e-5)


def test_hundreds_of_objects():
    torch.manual_seed(0)
    config = replace(CONFIG, grids=(40, 24, 16, 12, 8))
    predictions = DensePredictions(
        torch.randn(2, config.num_cells, 2) + 2,
        torch.randn(2, config.num_cells, 32),
        torch.randn(2, 32, 32, 32),
    )
    options = replace(DecodeOptions(), score_threshold=0.0).with_max_objects(700)
    assert (options.max_objects, options.max_candidates, options.max_nms) == (700, 1400, 1400)
    found = decode(
        predictions, [(128, 128)] * 2, [(100, 90)] * 2, options, config=config, class_names=NAMES, category_ids=IDS
    )
    for instances in found:
        assert len(instances) == 700
        assert (np.diff(instances.scores_I) <= 0).all()
        assert (instances.areas_I > 0).all()


def test_chunks_change_nothing(monkeypatch):
    torch.manual_seed(0)
    predictions = scene(
        [(cell, cell % 2, 2.0, (cell % 12, cell % 9, cell % 12 + 5, cell % 9 + 4)) for cell in range(36)]
    )
    (whole,) = run(predictions, original=(90, 130), points_nms=False)
    for name in ("decoding.decode.HELD_LOGITS", "masks.compress.CACHED_PIXELS", "masks.compress.RUNS_TOGETHER"):
        module, _, constant = f"sotr.{name}".rpartition(".")
        monkeypatch.setattr(sys.modules[module], constant, 1)
    (chunked,) = run(predictions, original=(90, 130), points_nms=False)
    assert len(whole) > 5
    assert whole.rles == chunked.rles


def test_points_nms_keeps_the_best_of_each_two_by_two():
    torch.manual_seed(0)
    grids = (5, 3)
    scores = torch.rand(2, 34, 3)
    found = points_nms(scores, grids)
    start = 0
    for grid in grids:
        for row in range(grid):
            for column in range(grid):
                block = [
                    start + r * grid + c for r in (row - 1, row) for c in (column - 1, column) if r >= 0 and c >= 0
                ]
                cell = start + row * grid + column
                keep = scores[:, cell] == scores[:, block].amax(1)
                assert torch.equal(found[:, cell], scores[:, cell] * keep)
        start += grid * grid


def test_points_nms_is_a_switch():
    box, other = (2, 3, 8, 9), (12, 6, 20, 14)
    predictions = scene([(7, 0, 3.0, box), (8, 0, 2.0, other)])  # neighbors in one row
    assert len(run(predictions)[0]) == 2
    assert len(run(predictions, points_nms=True)[0]) == 1
    assert DecodeOptions.released().points_nms


@pytest.mark.parametrize(("nms", "kept"), [("gaussian", 2), ("linear", 1), ("mask", 1)])
def test_kinds_of_nms(nms, kept):
    box = (2, 3, 8, 9)
    (found,) = run(scene([(3, 0, 3.0, box), (37, 0, 2.9, box)]), nms=nms, score_threshold=0.05)
    assert len(found) == kept


def test_small_masks_can_be_dropped():
    # Cell 3 is of the first level, of stride 8; cell 37 of the second, too; cell 55 of the last, of stride 32.
    predictions = scene([(3, 0, 3.0, (2, 3, 5, 6)), (37, 1, 3.0, (12, 6, 16, 8)), (65, 1, 3.0, (8, 10, 13, 15))])
    assert len(run(predictions)[0]) == 3
    (found,) = run(predictions, min_area_strides=1.0)  # 9 > 8, 8 <= 8, 25 <= 32 pixels
    assert found.labels_I.tolist() == [0]


def test_probabilities_upsample_to_other_edges_than_logits():
    predictions = scene([(3, 0, 3.0, (2, 3, 8, 9))])
    predictions.mask_features_BEhw.clamp_(min=-0.05)  # logits of 20 inside and -1 outside
    (logits,) = run(predictions)
    (probabilities,) = run(predictions, upsample="probabilities")
    assert logits.areas_I[0] > probabilities.areas_I[0] > 0


@pytest.mark.parametrize("candidates_at_once", [1, 3])
def test_candidates_in_chunks_change_nothing(monkeypatch, candidates_at_once):
    predictions = scene(
        [(cell, cell % 2, 2.0, (cell % 12, cell % 9, cell % 12 + 5, cell % 9 + 4)) for cell in range(9)]
    )
    (whole,) = run(predictions, points_nms=False)
    monkeypatch.setattr(sys.modules["sotr.decoding.decode"], "CANDIDATES_AT_ONCE", candidates_at_once)
    (chunked,) = run(predictions, points_nms=False)
    assert len(whole) > 3
    assert whole.rles == chunked.rles
    np.testing.assert_array_equal(whole.scores_I, chunked.scores_I)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cell_threshold": 1.5},
        {"score_threshold": -0.1},
        {"mask_threshold": 1.0},
        {"max_objects": 0},
        {"max_nms": 0},
        {"nms": "soft"},
        {"upsample": "twice"},
        {"nms_sigma": 0.0},
        {"min_area_strides": -1.0},
    ],
)
def test_options_are_checked(wrong):
    with pytest.raises(SOTRError, match=next(iter(wrong))):
        DecodeOptions(**wrong)


def test_features_of_full_size_give_the_same_objects():
    """Masks of a 1 x 1 kernel are the same, whether features or masks are upsampled."""
    small = scene([(3, 0, 3.0, (2, 3, 8, 9)), (20, 1, 1.0, (12, 6, 20, 14))])
    features = torch.nn.functional.interpolate(small.mask_features_BEhw, scale_factor=4, mode="bilinear")
    (quarter,) = run(small, original=(50, 80), image=(60, 96), min_area_strides=1.0)
    (full,) = decode(
        small._replace(mask_features_BEhw=features),
        [(60, 96)],
        [(50, 80)],
        DecodeOptions(min_area_strides=1.0),
        config=replace(CONFIG, mask_feature_stride=1),
        class_names=NAMES,
        category_ids=IDS,
    )
    assert len(full) == 2
    # Scores are means over pixels, of which the full size has some on each edge.
    np.testing.assert_allclose(full.scores_I, quarter.scores_I, rtol=0.02)
    overlap = (full.masks_IHW & quarter.masks_IHW).sum((1, 2)) / (full.masks_IHW | quarter.masks_IHW).sum((1, 2))
    assert overlap.min() > 0.99
