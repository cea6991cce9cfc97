"""The released variant against numbers recorded from the authors' network, and its converter."""

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from safetensors.torch import load_file

from sotr.config import SOTRConfig
from sotr.data import load_image, preprocess
from sotr.decoding import DecodeOptions, decode
from sotr.errors import SOTRError
from sotr.learning import LossOptions, Targets, assign, sotr_losses
from sotr.network import SOTR, DensePredictions
from sotr.network.released import released_to_ours

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
    ("name", "picture", "tolerance", "score_tolerance", "least_iou"),
    [
        # 55 of 56 masks are equal; in one of 629 pixels, one pixel lies on the threshold to the seventh digit.
        ("R50", "photo", 1e-5, 1e-5, 0.998),
        ("R50", "noise", 1e-5, 1e-5, 0.998),
        # Thirty deformable blocks amplify rounding.
        ("R101_DCN", "photo", 1e-3, 1e-3, 0.99),
    ],
)
def test_outputs_equal_the_recorded_ones(reference, name, picture, tolerance, score_tolerance, least_iou):
    config, state = released_to_ours(fill(reference, name))
    network = SOTR(config).eval()
    network.load_state_dict(state)
    image = load_image(reference / f"{picture}.png")
    images = preprocess(image, image.shape[0], image.shape[1])[None]
    assert images.shape[-2:] == image.shape[:2]
    recorded = load_file(reference / f"{name}_seed0_{picture}.safetensors")
    with torch.no_grad():
        features = network.fpn(network.backbone(images))
        predictions = network(images)
        assert relative(features[3][0], recorded["fpn.p5"]) < tolerance
        assert relative(network.transformer(features[3])[0], recorded["p5_from_transformer"]) < tolerance
    norms = torch.stack([feature.norm() for feature in features])
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
def test_r101_converts_whole(reference):
    config, state = released_to_ours(fill(reference, "R101"))
    assert (config.backbone, config.deformable_stages, config.depth) == ("resnet101", (), 12)
    with torch.device("meta"):
        network = SOTR(config)
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }


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
