"""Pictures to objects: our presets against peers of the same backbone, all with random weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

from sotr.benchmarks.measure import Parts, Stopwatch, alternate, peak_memory
from sotr.benchmarks.report import Row, timed
from sotr.config import SOTRConfig
from sotr.data.transforms import pad_batch, preprocess
from sotr.decoding import DecodeOptions, decode
from sotr.network import SOTR, prepare_for_inference
from sotr.network.onednn import product

WHAT = (
    "Objects of one picture of 480 x 640 after another, batch 1, weights random; each turn begins with a picture that "
    "does not count. Pre-processing: to the network's input. Network: for Mask R-CNN with its proposals and their "
    "suppression. Decoding: to masks at the picture's size; ours includes Matrix NMS and compression to RLE, the "
    "peers' does not. Thresholds let 100 objects through on every side that decodes. Memory: what a process of its "
    "own needs at most for building and one picture, beyond its imports."
)

PICTURE = (480, 640)
CLASSES = 80
OBJECTS = 100
PROPOSALS = 1000
"""Box candidates that Mask R-CNN's suppression gets, as a trained one has after its threshold, or more."""

SIZED_ALIKE = SOTRConfig()
"""MaskFormer and Mask2Former were published at the sizes of pictures that our baseline has."""

MATRIX = 4096
"""Rows and columns of the matrices whose product shows what the machine can do."""

PEAK = "matrix products"
"""The side that multiplies them."""

Work = Callable[[], Parts]


def _linear_flops(x: torch.Size, second: torch.Size, third: Any, *_: Any, **__: Any) -> int:
    weight = third if third is not None and len(third) == 2 else second  # second may be what is added to the result
    return 2 * x.numel() * weight[0]


def _convolution_flops(_: Any, second: torch.Size, third: Any, *__: Any, out_shape: torch.Size, **___: Any) -> int:
    weight = third if third is not None and len(third) == 4 else second  # the same here
    return 2 * out_shape.numel() * weight[1:].numel()


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


CPU_FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.mkldnn._linear_pointwise: _linear_flops,
    torch.ops.mkldnn._convolution_pointwise: _convolution_flops,
    torch.ops.mkldnn._convolution_pointwise_: _convolution_flops,
}
"""Operations of what PyTorch's counter does not know: fused attention on CPUs, and what a prepared network runs."""


@dataclass(frozen=True)
class Conditions:
    """What all sides have in common."""

    picture_HW3: NDArray[np.uint8]
    device: torch.device
    dtype: torch.dtype

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.picture_HW3.shape[0], self.picture_HW3.shape[1]

    def autocast(self) -> AbstractContextManager[Any]:
        """Of the peers; ours is prepared for the type."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def inference(
    device: torch.device, dtype: torch.dtype, quick: bool, on_run: Callable[[str], object]
) -> tuple[list[Row], list[str]]:
    """Rows and findings of the sub-benchmark."""
    chosen = [name for name in SIDES if not (quick and name in LONG)]
    if find_spec("transformers") is None:
        chosen = [name for name in chosen if "Former" not in name]
    return measure(chosen, PICTURE, device, dtype, 3 if quick else 7, on_run)


def measure(
    names: list[str],
    size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    on_run: Callable[[str], object],
) -> tuple[list[Row], list[str]]:
    """The named sides on a picture of a size, and what each needs of memory."""
    conditions = _conditions(size, device, dtype)
    works, findings, macs = {}, [], {}
    for name in names:
        on_run(f"building {name}")
        try:
            work = SIDES[name](conditions)
            macs[name] = macs_of(work)
        except RuntimeError as error:
            if name.startswith("sotr"):
                raise
            findings.append(f"{name} does not run under these conditions: {str(error).splitlines()[0]}.")
        else:
            works[name] = work
    names = list(works)
    times = alternate(works | {PEAK: _matrix_products(conditions)}, runs, on_run, settle=True)
    memory = {}
    for name in names:
        on_run(f"memory of {name}")
        memory[name] = memory_of(name, size, device, dtype)
    case = f"{size[0]} x {size[1]}"
    rows = [
        timed(case, name, part, times[name][part], peak_mib=round(memory[name]) if part == "total" else None)
        for name in names
        for part in times[name]
    ]
    totals = {name: times[name]["total"].median for name in names}
    findings += [
        f"{name} does {totals[peer] / totals[name]:.2f} times as many pictures per second as {peer}."
        for peer in names
        if not peer.startswith("sotr")
        for name in names
        if name.startswith("sotr")
    ]
    findings += [
        f"Decoding is {times[name]['decoding'].median / totals[name]:.1%} of {name}'s total." for name in names
    ]
    peak = MATRIX**3 / times[PEAK]["total"].median
    findings.append(f"Products of {MATRIX} x {MATRIX} matrices do {peak / 1e9:.0f} GMAC/s.")
    findings += [
        f"{name}'s network takes {macs[name] / 1e9:.0f} GMAC and does {macs[name] / seconds / 1e9:.0f} GMAC/s, "
        f"{macs[name] / seconds / peak:.0%} of that."
        for name in names
        for seconds in [times[name]["network"].median]
    ]
    return rows, findings


def macs_of(work: Work) -> float:
    """Multiply-accumulates of convolutions, matrix products and attention inside modules, which decoding is not."""
    with FlopCounterMode(display=False, custom_mapping=CPU_FLOPS) as counter:
        work()
    counts = counter.get_flop_counts()
    return sum(sum(of.values()) for module, of in counts.items() if module != "Global" and "." not in module) / 2


def _matrix_products(conditions: Conditions) -> Work:
    """A side: one product of large square matrices, by the quickest way there is."""
    a, b = torch.randn(2, MATRIX, MATRIX, device=conditions.device, dtype=conditions.dtype)

    @torch.inference_mode()
    def work() -> Parts:
        watch = Stopwatch(conditions.device)
        product(a, b)
        watch.lap("product")
        return watch.parts

    return work


def memory_of(name: str, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> float:
    """MiB that a side needs at most: of the card's memory on CUDA, else of a process of its own."""
    if device.type != "cuda":
        return peak_memory(_once, name, size, device, dtype)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    _once(name, size, device, dtype)
    return torch.cuda.max_memory_allocated(device) / 2**20


def _once(name: str, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> None:
    SIDES[name](_conditions(size, device, dtype))()


def _conditions(size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Conditions:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    return Conditions(picture, device, dtype)


def _sotr(preset: str, shortest: int | None = None, plain: bool = False) -> Callable[[Conditions], Work]:
    """A side: one of our presets, at its own size or another, as `Segmenter.predict` runs it or as it stands."""

    def side(conditions: Conditions) -> Work:
        config = SOTRConfig.preset(preset, CLASSES)
        if shortest is not None:
            config = replace(config, image_size=shortest, max_image_size=2 * shortest)
        return _sotr_work(config, conditions, plain)

    return side


def _sotr_work(config: SOTRConfig, conditions: Conditions, plain: bool) -> Work:
    torch.manual_seed(0)
    network = SOTR(config).eval().to(conditions.device)
    if not plain:
        network = prepare_for_inference(network, conditions.dtype)
    options = DecodeOptions(cell_threshold=0.0, score_threshold=0.0, max_objects=OBJECTS)
    names = tuple(str(label) for label in range(config.num_classes))

    @torch.inference_mode()
    def work() -> Parts:
        watch = Stopwatch(conditions.device)
        image = preprocess(conditions.picture_HW3, config.image_size, config.max_image_size)
        batch = pad_batch([image]).to(conditions.device)
        watch.lap("pre-processing")
        if plain:
            with conditions.autocast():
                dense = network(batch)
        else:
            dense = network(batch)
        watch.lap("network")
        found = decode(
            dense,
            [(image.shape[1], image.shape[2])],
            [conditions.size],
            options,
            config=config,
            class_names=names,
            category_ids=range(config.num_classes),
        )
        watch.lap("decoding")
        assert len(found[0]) > 0
        return watch.parts

    return work


def _mask_rcnn(build: Callable[..., nn.Module], **settings: Any) -> Callable[[Conditions], Work]:
    """A side: torchvision's Mask R-CNN."""

    def side(conditions: Conditions) -> Work:
        torch.manual_seed(0)
        model: Any = build(
            weights=None, weights_backbone=None, num_classes=CLASSES + 1, box_detections_per_img=OBJECTS, **settings
        )
        model = model.eval().to(conditions.device)
        image = torch.from_numpy(conditions.picture_HW3)

        @torch.inference_mode()
        def work() -> Parts:
            watch = Stopwatch(conditions.device)
            own = image.permute(2, 0, 1).float().div(255).to(conditions.device)
            images, _ = model.transform([own])
            watch.lap("pre-processing")
            with conditions.autocast():
                features = model.backbone(images.tensors)
                proposals, _ = model.rpn(images, features)
                found, _ = model.roi_heads(features, proposals, images.image_sizes)
            watch.lap("network")
            [result] = model.transform.postprocess(found, images.image_sizes, [tuple(own.shape[-2:])])
            _ = result["masks"] > 0.5
            watch.lap("decoding")
            return watch.parts

        _let_through(model, image.permute(2, 0, 1).float().div(255).to(conditions.device))
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


def _former(kind: str, config: SOTRConfig = SIZED_ALIKE) -> Callable[[Conditions], Work]:
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
            image = preprocess(conditions.picture_HW3, config.image_size, config.max_image_size)
            batch = pad_batch([image]).to(conditions.device)
            watch.lap("pre-processing")
            with conditions.autocast():
                found = model(pixel_values=batch)
            watch.lap("network")
            _masks_of_queries(found, conditions.size, (image.shape[1], image.shape[2]), batch)
            watch.lap("decoding")
            return watch.parts

        return work

    return side


def _masks_of_queries(found: Any, size: tuple[int, int], image_size: tuple[int, int], batch: Tensor) -> Tensor:
    """The best hundred pairs of query and class, their masks at the picture's size, and mean probabilities: what both
    papers' decoding does, in few passes over the masks."""
    scores, index = found.class_queries_logits[0].float().softmax(-1)[:, :-1].flatten().topk(OBJECTS)
    logits = found.masks_queries_logits[0].float()[index // CLASSES][None]
    logits = nn.functional.interpolate(logits, batch.shape[-2:], mode="bilinear", align_corners=False)
    logits = logits[..., : image_size[0], : image_size[1]]
    logits = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
    masks = logits > 0
    return scores * (logits.sigmoid() * masks).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1)


SIDES: dict[str, Callable[[Conditions], Work]] = {
    "sotr-r50": _sotr("sotr-r50"),
    "sotr-rt-r50": _sotr("sotr-rt-r50"),
    "sotr-rt-r50 at 800": _sotr("sotr-rt-r50", 800),
    "sotr-r101": _sotr("sotr-r101"),
    "sotr-r50 as it stands": _sotr("sotr-r50", plain=True),
    "Mask R-CNN R50-FPN": _mask_rcnn(maskrcnn_resnet50_fpn),
    "Mask R-CNN R50-FPN v2": _mask_rcnn(maskrcnn_resnet50_fpn_v2),
    "MaskFormer R50": _former("MaskFormer"),
    "Mask2Former R50": _former("Mask2Former"),
}
"""What can be compared; "as it stands" is the network without `prepare_for_inference`."""

LONG = ("sotr-r101", "sotr-r50 as it stands", "Mask R-CNN R50-FPN v2", "Mask2Former R50")
"""Sides that a quick run leaves out."""
