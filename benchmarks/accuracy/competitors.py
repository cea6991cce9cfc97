"""The models that are compared: each learns from the same batches and gives COCO results."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torchvision
from pycocotools import mask as coco_masks
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator

from sotr.config import SOTRConfig
from sotr.data.batches import Batch, load_picture
from sotr.data.coco import CocoDataset
from sotr.data.transforms import preprocess
from sotr.decoding import DecodeOptions
from sotr.errors import SOTRError
from sotr.evaluation.evaluate import detect
from sotr.files import read_settings
from sotr.model.files import read_architecture
from sotr.model.segmenter import Segmenter
from sotr.network.backbone import Backbone
from sotr.training.backbone_weights import backbone_weights
from sotr.training.module import SOTRModule, parameter_groups, stage_parameters
from sotr.training.quick_layers import QuickLayers
from sotr.training.recipe import Recipe

BACKBONE = "mobilenetv2_100"
"""timm's name of the backbone that all have."""


class Competitor(Protocol):
    """A model under training."""

    network: nn.Module
    mask_stride: int
    """Pixels per side of the cells in which it wants the masks of its batches."""
    lr: float
    """Its usual learning rate."""
    clip_norm: float
    """Upper limit of its gradient's norm, 0 for none."""

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameters with their rates, for AdamW."""

    def loss(self, batch: Batch) -> Tensor:
        """What is minimized."""

    def results(self, data: CocoDataset, max_dets: int) -> list[dict[str, Any]]:
        """COCO results on the images of a data set, with the weights that the network has."""


class Ours:
    """SOTR; without a file `sotr-nano` with the common backbone."""

    def __init__(self, data: CocoDataset, config: SOTRConfig, recipe: Recipe, weights: str | None, seed: int) -> None:
        torch.manual_seed(seed)
        self.module = SOTRModule(config, recipe, total_iterations=1, seed=seed)
        self.network, self.mask_stride = self.module.network, recipe.loss.mask_stride
        self.lr, self.clip_norm = recipe.lr, recipe.clip_norm
        if weights:
            self.network.load_state_dict(backbone_weights(config, weights)[0], strict=False)

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """As `sotr train` has them."""
        return parameter_groups(self.network, replace(self.module.recipe, lr=lr))

    def loss(self, batch: Batch) -> Tensor:
        """As in `sotr train`."""
        return torch.stack(list(self.module.losses(batch).values())).sum()

    def results(self, data: CocoDataset, max_dets: int) -> list[dict[str, Any]]:
        """As `sotr evaluate --engine pytorch` gets them."""
        options = DecodeOptions().with_max_objects(max_dets)
        segmenter = Segmenter(self.network, data.class_names, data.category_ids, options, engine="pytorch")
        found = detect(segmenter, data, data.category_ids, max_dets=max_dets)
        self.module.train()
        return found


class MaskRCNNOfTorchvision:
    """torchvision's Mask R-CNN with the common backbone and a feature pyramid of 128 channels."""

    mask_stride = 1
    lr, clip_norm = 4e-4, 5.0
    BACKBONE_LR_FACTOR = 0.25
    """With `lr` the backbone's rate is that of the recipe `pretrained`; the rest learns best at less than ours."""
    WIDTH, HIDDEN = 128, 512
    ANCHORS = (16, 32, 64, 128, 256)
    STAGES = ("3", "6", "13", "17")
    """Layers of torchvision's MobileNetV2 that end at strides 4, 8, 16 and 32."""

    def __init__(self, data: CocoDataset, config: SOTRConfig, recipe: Recipe, weights: str | None, seed: int) -> None:
        torch.manual_seed(seed)
        self.config, self.recipe = config, recipe
        body = torchvision.models.mobilenet_v2(weights=None)
        if weights:
            _copy_weights(config, weights, body.features)
        backbone = BackboneWithFPN(
            body.features[:18],
            {layer: str(level) for level, layer in enumerate(self.STAGES)},
            [24, 32, 96, 320],
            self.WIDTH,
        )
        self.network = MaskRCNN(
            backbone,
            num_classes=None,
            rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in self.ANCHORS), ((0.5, 1.0, 2.0),) * 5),
            rpn_pre_nms_top_n_train=1000,
            rpn_post_nms_top_n_train=500,
            rpn_pre_nms_top_n_test=600,
            rpn_post_nms_top_n_test=300,
            box_batch_size_per_image=128,
            box_score_thresh=0.001,
            box_head=TwoMLPHead(self.WIDTH * 49, self.HIDDEN),
            box_predictor=FastRCNNPredictor(self.HIDDEN, config.num_classes + 1),
            mask_head=MaskRCNNHeads(self.WIDTH, (self.WIDTH,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(self.WIDTH, self.WIDTH, config.num_classes + 1),
        )
        # Images come resized, normalized and padded, as all competitors get them.
        self.network.transform.resize = lambda image, target=None: (image, target)
        self.network.transform.normalize = lambda image: image
        if recipe.batch_norm == "frozen":
            for module in self.network.backbone.body.modules():
                if isinstance(module, _BatchNorm):
                    module.requires_grad_(False)
        # What makes our backbone's steps quicker makes its backbone's, too.
        self._quick = QuickLayers(_Body(backbone.body), recipe.batch_norm == "frozen")
        self._train()

    def _train(self) -> None:
        self.network.train()
        if self.recipe.batch_norm == "frozen":
            for module in self.network.backbone.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """The backbone at a share of the rate; frozen stages as in ours."""
        body = self.network.backbone.body
        for parameter in stage_parameters(_Maps(body), self.recipe.frozen_stages):
            parameter.requires_grad_(False)
        own = {id(parameter) for parameter in body.parameters()}
        learned = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        decay, backbone_lr = self.recipe.weight_decay, lr * self.BACKBONE_LR_FACTOR
        return [
            {"params": [p for p in learned if id(p) in own], "lr": backbone_lr, "weight_decay": decay},
            {"params": [p for p in learned if id(p) not in own], "lr": lr, "weight_decay": decay},
        ]

    def loss(self, batch: Batch) -> Tensor:
        """The sum of its five losses."""
        targets = []
        for target in batch.targets:
            boxes = target.boxes_I4
            wide = (boxes[:, 2] > boxes[:, 0] + 1) & (boxes[:, 3] > boxes[:, 1] + 1)
            masks = (target.masks_Ihw >= 128).to(torch.uint8)
            targets.append({"boxes": boxes[wide], "labels": target.labels_I[wide] + 1, "masks": masks[wide]})
        with self._quick.active():
            return torch.stack(list(self.network(list(batch.images_B3HW), targets).values())).sum()

    @torch.inference_mode()
    def results(self, data: CocoDataset, max_dets: int) -> list[dict[str, Any]]:
        """COCO results; masks are pasted at the file's own size."""
        self.network.eval()
        self.network.roi_heads.detections_per_img = max_dets
        results: list[dict[str, Any]] = []
        for index in range(len(data)):
            image = load_picture(data, index)
            pixels = preprocess(image, self.config.image_size, self.config.max_image_size)
            height, width = image.shape[:2]
            scale = torch.tensor([width / pixels.shape[2], height / pixels.shape[1]] * 2)
            features = self.network.transform([pixels])[0]
            found = self._found(features, (height, width), scale)
            for score, label, mask in zip(found["scores"].tolist(), found["labels"].tolist(), found["masks"]):
                inside = (mask[0] > 0.5).numpy()
                if inside.any():
                    rle = coco_masks.encode(np.asfortranarray(inside.astype(np.uint8)))
                    results.append(
                        {
                            "image_id": int(data.image_ids[index]),
                            "category_id": data.category_ids[label - 1],
                            "score": score,
                            "segmentation": {**rle, "counts": rle["counts"].decode("ascii")},
                        }
                    )
        self._train()
        return results

    def _found(self, images: Any, size: tuple[int, int], scale: Tensor) -> dict[str, Tensor]:
        maps = self.network.backbone(images.tensors)
        proposals, _ = self.network.rpn(images, maps)
        found, _ = self.network.roi_heads(maps, proposals, images.image_sizes)
        found[0]["boxes"] = found[0]["boxes"] * scale
        paste = torchvision.models.detection.roi_heads.paste_masks_in_image
        found[0]["masks"] = paste(found[0]["masks"], found[0]["boxes"], size)
        return found[0]


class _Body(nn.Module):
    """What `QuickLayers` looks into: a network that has torchvision's body as its backbone."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.backbone = _Maps(body)


class _Maps(nn.Module):
    """C2..C5 of torchvision's body as a list."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        return list(self.body(images_B3HW).values())


def _copy_weights(config: SOTRConfig, weights: str, features: nn.Module) -> None:
    """Give torchvision's MobileNetV2 the weights that ours starts from; both have the same layers in the same order."""
    ours = Backbone(config.backbone)
    prefix = "backbone."
    state = {name.removeprefix(prefix): value for name, value in backbone_weights(config, weights)[0].items()}
    ours.load_state_dict(state, strict=False)
    for kind in (nn.Conv2d, _BatchNorm):
        given = [module for module in ours.modules() if isinstance(module, kind)]
        taken = [module for module in features.modules() if isinstance(module, kind)]
        for source, target in zip(given, taken):  # torchvision's last layer has no counterpart
            target.load_state_dict(source.state_dict())


def body_weights(config: SOTRConfig, weights: str) -> dict[str, Tensor]:
    """The first weights under the names of `torchvision.models.mobilenet_v2().features`, its last layer left out."""
    features = torchvision.models.mobilenet_v2(weights=None).features[:18]
    _copy_weights(config, weights, features)
    return features.state_dict()


@dataclass(frozen=True)
class Entry:
    """A competitor before it is built."""

    name: str
    config: SOTRConfig
    """The architecture, or of a peer the classes and the image size alone."""
    lr: float
    """Its usual learning rate."""
    build: type[Ours] | type[MaskRCNNOfTorchvision] | None
    """None: it is trained by another process (`yolo.py`)."""


def entries(words: Sequence[str], class_names: Sequence[str], image_size: int, recipe: Recipe) -> list[Entry]:
    """The competitors that the words name.

    Args:
        words: names in `NAMES`, or YAML files of architectures as `sotr train --model` takes them, with a name before
            them or not: waves=FILE.yaml. A file that names no backbone gets the common one.

    Raises:
        SOTRError: there is no such competitor, or two have one name.
    """
    found: list[Entry] = []
    for word in words:
        name, _, path = word.rpartition("=")
        config = _common(SOTRConfig.preset("sotr-nano"), image_size, len(class_names))
        if word in YOLO:
            entry = Entry(word, config, yolo_lr(len(class_names)), None)
        elif word == "mask-rcnn":
            entry = Entry(word, config, MaskRCNNOfTorchvision.lr, MaskRCNNOfTorchvision)
        elif word == "sotr":
            entry = Entry(word, config, recipe.lr, Ours)
        elif Path(path).suffix in (".yaml", ".yml") and Path(path).is_file():
            named = "backbone" in read_settings(Path(path), ("backbone",))
            own = _common(read_architecture(Path(path)), image_size, len(class_names), keep_backbone=named)
            entry = Entry(name or Path(path).stem, own, recipe.lr, Ours)
        else:
            raise SOTRError(f"there is no competitor {word!r}; choose among {', '.join(NAMES)}, or give a YAML file")
        if not re.fullmatch(r"[\w.-]+", entry.name):
            raise SOTRError(f"a competitor is called {entry.name!r}; use letters, digits, points and hyphens")
        if entry.name in [other.name for other in found]:
            raise SOTRError(f"two competitors are called {entry.name}; give one another name with NAME=FILE.yaml")
        found.append(entry)
    return found


def _common(config: SOTRConfig, image_size: int, classes: int, keep_backbone: bool = False) -> SOTRConfig:
    return replace(
        config,
        num_classes=classes,
        backbone=config.backbone if keep_backbone else BACKBONE,
        image_size=image_size,
        max_image_size=round(image_size * 5 / 3),
    )


def yolo_lr(classes: int) -> float:
    """The rate that ultralytics chooses for AdamW by the number of classes."""
    return round(0.002 * 5 / (4 + classes), 6)


YOLO = {"yolo11n": "yolo11n-seg.yaml", "yolo26n": "yolo26n-seg.yaml"}
"""Of the competitors that ultralytics trains in a process of its own, the file of their architecture."""

NAMES = ("sotr", "mask-rcnn", *YOLO)
"""Competitors that the command knows by name."""
