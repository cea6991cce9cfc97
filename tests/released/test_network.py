"""The released variant against numbers recorded from the authors' network, and its converter."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from safetensors.torch import load_file

from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.data import load_image, preprocess
from sotr.decoding import DecodeOptions, decode
from sotr.errors import SOTRError
from sotr.learning import LossOptions, Targets, assign, sotr_losses
from sotr.network import DensePredictions
from sotr.released.checkpoint import released_to_ours
from sotr.released.network import WrappedConv

STEM = "backbone.bottom_up.stem.conv1.weight"
"""The one tensor whose values change on the way."""

NAMES = tuple(str(label) for label in range(80))


@pytest.fixture(scope="module")
def reference(shared_dir: Path) -> Path:
    return shared_dir / "reference"


def fill(reference: Path, name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    spec = importlib.util.spec_from_file_location("reference_weights", reference / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fill(name, seed)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def detections(predictions: DensePredictions, size: list[int]):
    (found,) = decode(
        predictions,
        [(size[0], size[1])],
        [(size[0], size[1])],
        DecodeOptions.released(),
        config=SOTRConfig(variant="released"),
        class_names=NAMES,
        category_ids=range(80),
    )
    return found


def check_detections(found, recorded, score_tolerance, least_iou):
    assert found.labels_I.tolist() == recorded["labels"]
    np.testing.assert_allclose(found.scores_I, recorded["scores"], atol=score_tolerance)
    if not recorded["scores"]:
        return
    theirs = coco_mask.decode(recorded["masks_rle"]).transpose(2, 0, 1).astype(bool)
    ours = found.masks_IHW
    iou = (ours & theirs).sum((1, 2)) / (ours | theirs).sum((1, 2))
    assert iou.min() >= least_iou


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "picture", "dtype", "tolerance", "score_tolerance", "least_iou"),
    [
        # Of one mask of 629 pixels one lies on the threshold to the seventh digit: which side it falls on depends on
        # how float32 convolutions are summed up. Without rounding all masks are the recorded ones, pixel by pixel.
        ("R50", "photo", torch.float32, 1e-5, 1e-5, 0.998),
        ("R50", "photo", torch.float64, 1e-6, 1e-6, 1.0),
        ("R50", "noise", torch.float32, 1e-5, 1e-5, 0.998),
        # Thirty deformable blocks amplify rounding.
        ("R101_DCN", "photo", torch.float32, 1e-3, 1e-3, 0.99),
    ],
)
def test_outputs_equal_the_recorded_ones(reference, name, picture, dtype, tolerance, score_tolerance, least_iou):
    config, state = released_to_ours(fill(reference, name))
    network = build_network(config).eval()
    network.load_state_dict(state)
    network.to(dtype)
    image = load_image(reference / f"{picture}.png")
    images = preprocess(image, image.shape[0], image.shape[1])[None].to(dtype)
    assert images.shape[-2:] == image.shape[:2]
    recorded = load_file(reference / f"{name}_seed0_{picture}.safetensors")
    features, transformed = [], []  # after the five levels the transformer has P5 for the masks
    network.fpn.register_forward_hook(lambda *call: features.extend(call[2]))
    network.transformer.register_forward_hook(lambda *call: transformed.extend(call[2]))
    with torch.no_grad():
        predictions = DensePredictions(*(output.float() for output in network(images)))
    assert relative(features[3][0], recorded["fpn.p5"]) < tolerance
    assert relative(transformed[5][0], recorded["p5_from_transformer"]) < tolerance
    norms = torch.stack([feature.norm() for feature in features]).float()
    torch.testing.assert_close(norms, recorded["fpn_norms"], rtol=1e-4, atol=0)
    for found, key in zip(predictions, ("class_logits", "kernels", "mask_features"), strict=True):
        assert relative(found[0], recorded[key]) < tolerance, key
    result = json.loads((reference / f"{name}_seed0_{picture}.json").read_text())
    check_detections(detections(predictions, result["size"]), result, score_tolerance, least_iou)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["R50_seed0_photo", "R50_seed0_noise", "R101_DCN_seed0_photo"])
def test_decoding_of_recorded_predictions(reference, name):
    recorded = load_file(reference / f"{name}.safetensors")
    keys = ("class_logits", "kernels", "mask_features")
    result = json.loads((reference / f"{name}.json").read_text())
    predictions = DensePredictions(*(recorded[key][None] for key in keys))
    check_detections(detections(predictions, result["size"]), result, 1e-6, 0.9999)


@pytest.mark.shared
def test_targets_and_losses_equal_the_recorded_ones(reference):
    recorded = json.loads((reference / "R50_seed0_photo_train.json").read_text())
    outputs = load_file(reference / "R50_seed0_photo.safetensors")
    predictions = DensePredictions(*(outputs[key][None] for key in ("class_logits", "kernels", "mask_features")))
    objects = recorded["objects"]
    masks = coco_mask.decode([item["mask_rle"] for item in objects]).transpose(2, 0, 1)
    centers = [[np.nonzero(mask)[1].mean() + 0.5, np.nonzero(mask)[0].mean() + 0.5] for mask in masks]
    # The authors' code shrinks masks with OpenCV, in 8 bits.
    small = np.stack([cv2.resize(mask, (80, 56), interpolation=cv2.INTER_LINEAR) for mask in masks])
    target = Targets(
        torch.tensor([item["label"] for item in objects]),
        torch.tensor([item["box_xyxy"] for item in objects]),
        torch.tensor(centers, dtype=torch.float32),
        torch.from_numpy(small * 255),
    )
    config = SOTRConfig(variant="released")
    assignment = assign([target], config, (224, 320))
    labels = torch.cat([torch.tensor(level).flatten() for level in recorded["cell_labels"]])
    assert torch.equal(assignment.labels_BK[0], labels)
    starts = np.cumsum([0] + [grid * grid for grid in config.grids])
    supervised = sorted(
        start + cell for start, level in zip(starts, recorded["grid_order"], strict=False) for cell in level
    )
    assert sorted(assignment.cells_P.tolist()) == supervised

    losses = sotr_losses(predictions, [target], assignment, LossOptions())
    assert losses["loss_class"].item() == pytest.approx(recorded["losses"]["loss_cate"], abs=1e-5)
    assert losses["loss_mask"].item() == pytest.approx(recorded["losses"]["loss_ins"], abs=1e-5)


@pytest.mark.shared
def test_r101_with_idle_blocks_is_r50(reference):
    """R101 has 17 more blocks in stage 4. Where these add nothing it must give what R50 was recorded to give."""
    r50, r101 = fill(reference, "R50"), fill(reference, "R101")
    # R50's six blocks in their order, the first in its place, the others anywhere.
    places = (0, 3, 4, 11, 17, 22)
    stage = "backbone.bottom_up.res4."
    blocks = {f"{place}": f"{source}" for source, place in enumerate(places)}
    for name in r101:
        if name.startswith(stage):
            block, _, rest = name.removeprefix(stage).partition(".")
            if block in blocks:
                r101[name] = r50[f"{stage}{blocks[block]}.{rest}"]
            elif rest in ("conv3.norm.weight", "conv3.norm.bias"):
                r101[name] = torch.zeros_like(r101[name])
        else:
            r101[name] = r50[name]
    config, state = released_to_ours(r101)
    assert (config.backbone, config.deformable_stages, config.depth) == ("resnet101", (), 12)
    network = build_network(config).eval()
    network.load_state_dict(state)
    image = load_image(reference / "photo.png")
    recorded = load_file(reference / "R50_seed0_photo.safetensors")
    with torch.no_grad():
        features = network.fpn(network.backbone(preprocess(image, image.shape[0], image.shape[1])[None]))
        p5 = network.transformer([features[3]])[0]
    assert relative(features[3][0], recorded["fpn.p5"]) < 1e-5
    assert relative(p5[0], recorded["p5_from_transformer"]) < 1e-5


@pytest.mark.shared
@pytest.mark.parametrize("name", ["R50", "R101", "R101_DCN"])
def test_every_released_value_has_one_place(reference, name):
    """Each tensor is filled with its own number; each must be found again, in one place, and whole."""
    shapes = json.loads((reference / f"keys_{name}.json").read_text())
    numbers = {key: float(number) for number, key in enumerate(shapes, 1)}
    _, state = released_to_ours({key: torch.tensor(numbers[key]).expand(shapes[key]) for key in shapes})
    assert state["backbone.body.conv1.weight"].shape == tuple(shapes[STEM])
    counts: dict[float, int] = {}
    for ours, value in state.items():
        if not ours.endswith("num_batches_tracked") and ours != "backbone.body.conv1.weight":
            found, lengths = value.flatten().unique_consecutive(return_counts=True)
            for number, length in zip(found.tolist(), lengths.tolist(), strict=True):
                assert number not in counts, ours
                counts[number] = length
    assert counts == {numbers[key]: math.prod(shape) for key, shape in shapes.items() if key != STEM}


def test_wrapped_convolution_is_the_mean_of_the_two_halves():
    torch.manual_seed(0)
    wrapped = WrappedConv(3, 5, 3, padding=1).double()
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64)
    beside_its_copy = torch.nn.functional.conv2d(torch.cat([x, x], -1), wrapped.weight, wrapped.bias, padding=1)
    first, second = beside_its_copy.chunk(2, -1)
    torch.testing.assert_close(wrapped(x), (first + second) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("picture", ["photo", "noise"])
def test_quicker_modes_are_as_near_as_documented(reference, picture):
    """Prints what docs/results.md shows: `pytest -m slow -s -k quicker_modes tests/released/test_network.py`."""
    config, state = released_to_ours(fill(reference, "R50"))
    image = load_image(reference / f"{picture}.png")
    images = preprocess(image, image.shape[0], image.shape[1])[None]
    outputs = {}
    for mode in ("exact", "wrapped", "none"):
        network = build_network(replace(config, width_duplication=mode)).eval()
        network.load_state_dict(state)
        with torch.no_grad():
            predictions = network(images)
            p5 = network.transformer([network.fpn(network.backbone(images))[3]])[0]
        outputs[mode] = (predictions, p5, detections(predictions, list(image.shape[:2])))
    predictions, p5, found = outputs["exact"]
    print(f"\n{picture}: relative L2 of kernels, logits, P5, mask features; detections")
    distance = {}
    for mode in ("wrapped", "none"):
        others, other_p5, other_found = outputs[mode]
        distances = [
            relative(others.kernels_BKD, predictions.kernels_BKD),
            relative(others.class_logits_BKM, predictions.class_logits_BKM),
            relative(other_p5, p5),
            relative(others.mask_features_BEhw, predictions.mask_features_BEhw),
        ]
        distance[mode] = distances[0]
        ious = found_again(found, other_found)
        print(
            mode,
            *(f"{100 * value:.2f} %" for value in distances),
            f"{(ious >= 0.9).sum()} of {len(found)} at IoU 0.9, {(ious >= 0.5).sum()} at 0.5, "
            f"{len(other_found)} in all",
        )
    assert distance["wrapped"] < 0.02
    assert 2 * distance["wrapped"] < distance["none"] < 0.07


def found_again(found, others) -> np.ndarray:
    """The IoU of each object with the most alike of the others that has its class; 0 where there is none."""
    best = np.zeros(len(found))
    masks, other_masks = found.masks_IHW, others.masks_IHW
    for i, label in enumerate(found.labels_I):
        for j in np.flatnonzero(others.labels_I == label):
            union = (masks[i] | other_masks[j]).sum()
            best[i] = max(best[i], (masks[i] & other_masks[j]).sum() / union)
    return best


@pytest.mark.shared
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("cate_head.kernel_pred.bias"), "kernel_pred.bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra is unexpected"),
        (
            lambda state: state.update({"cate_head.kernel_pred.bias": torch.zeros(3)}),
            r"shape \(3,\) instead of \(256,\)",
        ),
    ],
)
def test_conversion_refuses_what_does_not_fit(reference, change, message):
    state = fill(reference, "R50")
    change(state)
    with pytest.raises(SOTRError, match=message):
        released_to_ours(state)


def test_another_networks_checkpoint_is_refused():
    with pytest.raises(SOTRError, match="not a released SOTR checkpoint"):
        released_to_ours({"model.conv.weight": torch.zeros(1)})
