"""What turns images into objects in a benchmark: our presets and peers of the same backbone, with random weights."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

from benchmarks.measure import Parts, Stopwatch
from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.data.sizes import padded_side, resized_size
from sotr.data.transforms import pad_batch, preprocess
from sotr.decoding import DecodeOptions, find, finish
from sotr.info import count_components
from sotr.model.segmenter import Segmenter
from sotr.network import DensePredictions

CLASSES = 80
OBJECTS = 100
PROPOSALS = 1000
"""Box candidates that Mask R-CNN's suppression gets, as a trained one has after its threshold, or more."""

SIZED_ALIKE = SOTRConfig()
"""MaskFormer and Mask2Former were published at the sizes of images that our baseline has."""

Work = Callable[[], Parts]

Size = tuple[int, int]
"""Height and width."""

Way = Literal["auto", "pytorch", "compiled"]
"""How a network of ours runs: as `Segmenter.predict` does it; in plain PyTorch; that through `torch.compile`."""


@dataclass(frozen=True)
class Conditions:
    """What all sides have in common."""

    pictures: Sequence[NDArray[np.uint8]]
    """Of one size, that go through the network together."""
    device: torch.device
    dtype: torch.dtype

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.pictures[0].shape[0], self.pictures[0].shape[1]

    def autocast(self) -> AbstractContextManager[Any]:
        """Of the peers; ours has its own."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def conditions_of(size: Size, device: torch.device, dtype: torch.dtype, batch: int = 1) -> Conditions:
    """With images of noise."""
    generator = np.random.default_rng(0)
    return Conditions([generator.integers(0, 256, (*size, 3), np.uint8) for _ in range(batch)], device, dtype)


@dataclass(frozen=True)
class Ours:
    """A side: one of our presets, at its own size or another."""

    preset: str
    shortest: int | None = None
    way: Way = "auto"

    @property
    def config(self) -> SOTRConfig:
        """The architecture."""
        config = SOTRConfig.preset(self.preset, CLASSES)
        if self.shortest is None:
            return config
        return replace(config, image_size=self.shortest, max_image_size=2 * self.shortest)

    def __call__(self, conditions: Conditions) -> Work:
        """The side's work."""
        return _sotr_work(self.config, conditions, self.way)

    def macs(self, conditions: Conditions) -> int:
        """Multiply-accumulates of a batch through the network, as its formula has them."""
        return len(conditions.pictures) * count_components(self.config, *self.input_size(conditions))["total"].macs

    def input_size(self, conditions: Conditions) -> Size:
        """Height and width of the padded input."""
        size = resized_size(*conditions.size, self.config.image_size, self.config.max_image_size)
        height, width = map(padded_side, size)
        return height, width


def _sotr_work(config: SOTRConfig, conditions: Conditions, way: Way) -> Work:
    torch.manual_seed(0)
    names = tuple(str(label) for label in range(config.num_classes))
    segmenter = Segmenter(
        build_network(config),
        names,
        range(config.num_classes),
        device=conditions.device,
        precision=str(conditions.dtype).removeprefix("torch."),
        engine="auto" if way == "auto" else "pytorch",
    )
    run: Callable[[Tensor], DensePredictions] = segmenter.forward
    if way == "auto":
        segmenter.accelerate()
    if way == "compiled":
        compiled = torch.compile(segmenter.network, dynamic=False)

        def run(batch_B3HW: Tensor) -> DensePredictions:
            with conditions.autocast():
                return compiled(batch_B3HW.contiguous(memory_format=torch.channels_last))

    options = DecodeOptions(cell_threshold=0.0, score_threshold=0.0, max_objects=OBJECTS)

    @torch.inference_mode()
    def work() -> Parts:
        watch = Stopwatch(conditions.device)
        prepared = [segmenter.prepare(picture) for picture in conditions.pictures]
        batch_B3HW = pad_batch([each.input_3hw for each in prepared]).to(conditions.device)
        watch.lap("pre-processing")
        predictions = run(batch_B3HW)
        watch.lap("network")
        objects = finish(
            find(predictions, options, config),
            [(each.input_3hw.shape[1], each.input_3hw.shape[2]) for each in prepared],
            [conditions.size] * len(prepared),
            options,
            class_names=names,
            category_ids=segmenter.category_ids,
        )
        watch.lap("decoding")
        assert all(len(each) > 0 for each in objects)
        return watch.parts

    return work


def mask_rcnn(build: Callable[..., nn.Module], **settings: Any) -> Callable[[Conditions], Work]:
    """A side: torchvision's Mask R-CNN."""

    def side(conditions: Conditions) -> Work:
        torch.manual_seed(0)
        model: Any = build(
            weights=None, weights_backbone=None, num_classes=CLASSES + 1, box_detections_per_img=OBJECTS, **settings
        )
        model = model.eval().to(conditions.device)
        pictures = [torch.from_numpy(picture).permute(2, 0, 1) for picture in conditions.pictures]

        @torch.inference_mode()
        def work() -> Parts:
            watch = Stopwatch(conditions.device)
            images, _ = model.transform([picture.to(conditions.device).float().div(255) for picture in pictures])
            watch.lap("pre-processing")
            with conditions.autocast():
                features = model.backbone(images.tensors)
                proposals, _ = model.rpn(images, features)
                found, _ = model.roi_heads(features, proposals, images.image_sizes)
            watch.lap("network")
            for result in model.transform.postprocess(found, images.image_sizes, [conditions.size] * len(pictures)):
                _ = result["masks"] > 0.5
            watch.lap("decoding")
            return watch.parts

        _let_through(model, pictures[0].to(conditions.device).float().div(255))
        return work

    return side


@torch.inference_mode()
def _let_through(model: Any, image: Tensor) -> None:
    """Set Mask R-CNN's score threshold so that `PROPOSALS` boxes reach its suppression: with random weights its own
    would let none through, and none at all would burden it with ninety thousand."""
    images, _ = model.transform([image])
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features)
    heads = model.roi_heads
    logits, _ = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes)))
    scores = logits.softmax(-1)[:, 1:].flatten()
    heads.score_thresh = float(scores.topk(min(PROPOSALS, len(scores))).values[-1])


FORMERS = {
    "MaskFormer": "MaskFormerForInstanceSegmentation",
    "Mask2Former": "Mask2FormerForUniversalSegmentation",
}
"""Names in transformers of the models that are made from a `...Config`."""


def former(kind: str, config: SOTRConfig = SIZED_ALIKE) -> Callable[[Conditions], Work]:
    """A side: transformers' MaskFormer or Mask2Former with a ResNet-50, made from its configuration."""

    def side(conditions: Conditions) -> Work:
        torch.manual_seed(0)
        transformers: Any = import_module("transformers")
        backbone = transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        settings = getattr(transformers, f"{kind}Config")(backbone_config=backbone, num_labels=CLASSES)
        model = getattr(transformers, FORMERS[kind])(settings).eval().to(conditions.device)

        @torch.inference_mode()
        def work() -> Parts:
            watch = Stopwatch(conditions.device)
            images = [preprocess(picture, config.image_size, config.max_image_size) for picture in conditions.pictures]
            batch_B3HW = pad_batch(images).to(conditions.device)
            watch.lap("pre-processing")
            with conditions.autocast():
                found = model(pixel_values=batch_B3HW)
            watch.lap("network")
            for index, image in enumerate(images):
                of_one = found.class_queries_logits[index], found.masks_queries_logits[index]
                _masks_of_queries(*of_one, conditions.size, _size(image), _size(batch_B3HW))
            watch.lap("decoding")
            return watch.parts

        return work

    return side


def _size(images: Tensor) -> Size:
    return images.shape[-2], images.shape[-1]


def _masks_of_queries(
    class_logits_QM: Tensor, mask_logits_Qhw: Tensor, size: Size, image_size: Size, padded_size: Size
) -> Tensor:
    """The best hundred pairs of query and class, their masks at the image's size, and mean probabilities: what both
    papers' decoding does, in few passes over the masks."""
    scores, index = class_logits_QM.float().softmax(-1)[:, :-1].flatten().topk(OBJECTS)
    logits = mask_logits_Qhw.float()[index // CLASSES][None]
    logits = nn.functional.interpolate(logits, padded_size, mode="bilinear", align_corners=False)
    logits = logits[..., : image_size[0], : image_size[1]]
    logits = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
    masks = logits > 0
    return scores * (logits.sigmoid() * masks).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1)


SIDES: dict[str, Callable[[Conditions], Work]] = {
    "sotr-r50": Ours("sotr-r50"),
    "sotr-rt-r50": Ours("sotr-rt-r50"),
    "sotr-nano": Ours("sotr-nano"),
    "sotr-rt-r50 at 800": Ours("sotr-rt-r50", 800),
    "sotr-r101": Ours("sotr-r101"),
    "sotr-r50, plain PyTorch": Ours("sotr-r50", way="pytorch"),
    "sotr-rt-r50, plain PyTorch": Ours("sotr-rt-r50", way="pytorch"),
    "sotr-nano, plain PyTorch": Ours("sotr-nano", way="pytorch"),
    "sotr-rt-r50, torch.compile": Ours("sotr-rt-r50", way="compiled"),
    "sotr-nano, torch.compile": Ours("sotr-nano", way="compiled"),
    "Mask R-CNN R50-FPN": mask_rcnn(maskrcnn_resnet50_fpn),
    "Mask R-CNN R50-FPN v2": mask_rcnn(maskrcnn_resnet50_fpn_v2),
    "MaskFormer R50": former("MaskFormer"),
    "Mask2Former R50": former("Mask2Former"),
}
"""What can be compared. Ours runs with OpenVINO on CPUs, if it is installed, unless its name says otherwise."""

LONG = (
    "sotr-rt-r50 at 800",
    "sotr-r101",
    "sotr-rt-r50, torch.compile",
    "sotr-nano, torch.compile",
    "Mask R-CNN R50-FPN v2",
    "Mask2Former R50",
)
"""Models that a quick run leaves out."""
