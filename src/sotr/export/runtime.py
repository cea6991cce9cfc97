"""Exported models at work, with ONNX Runtime or OpenVINO. Nothing here needs PyTorch."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sotr.data.choice import Choice
from sotr.data.images import MAX_PIXELS, load_image
from sotr.data.scaling import IntensityRange
from sotr.data.sizes import padded_side, resized_size
from sotr.data.sources import ImageSource
from sotr.decode_options import DecodeOptions
from sotr.errors import SOTRError, first_line
from sotr.export.description import INPUT, METADATA_KEY, OBJECT_OUTPUTS, ExportDescription
from sotr.export.masks import full_size_rles
from sotr.export.resize import resize
from sotr.model.predictor import Predictor
from sotr.results.instances import Instances

Graph = Callable[[NDArray[np.float32]], Sequence[NDArray[Any]]]
"""Input B x 3 x H x W -> the outputs, in order."""


class Prepared(NamedTuple):
    """An image as the network takes it; made by `ExportedSegmenter.prepare`."""

    input_3hw: NDArray[np.float32]
    """Resized and normalized, not padded."""
    original_size: tuple[int, int]
    """(H, W) of the upright image in pixels, the size of its results."""


class ExportedSegmenter(Predictor[Prepared]):
    """A model that `sotr export` wrote. Get one from `sotr.load("MODEL.onnx")` or `sotr.load("MODEL.xml")`.

    Attributes:
        description: what the file says of itself.
        device: where it runs, "cpu" or "cuda".
    """

    def __init__(self, graph: Graph, description: ExportDescription, device: str, files: Sequence[Path]) -> None:
        self._graph = graph
        self._files = files
        self.description = description
        self.class_names = description.class_names
        self.category_ids = description.category_ids
        self.decode_options = description.decode_options
        self.name = description.name
        self.domain = description.domain
        self.device = device

    def __repr__(self) -> str:
        return f"ExportedSegmenter({self.name!r}, {len(self.class_names)} classes, {self.device})"

    @classmethod
    def load_file(cls, path: Path, device: str = "cpu") -> "ExportedSegmenter":
        """Open an exported file.

        Args:
            device: "cpu", "cuda", "cuda:1", or "auto" for the best that the installed runtime has, "auto:1" for that of
                the second GPU.

        Raises:
            SOTRError: the file is absent, damaged, another program's, or without decoding; or the runtime is missing.
        """
        if path.is_dir():
            raise SOTRError(f"{path} is a folder; give the file that sotr export wrote")
        if not path.is_file():
            raise SOTRError(f"{path}: no such file")
        opened = _open_openvino(path, device) if path.suffix.lower() == ".xml" else _open_onnx(path, device)
        graph, text, device = opened
        if text is None:
            raise SOTRError(f"{path} does not say that it is a SOTR model; write one with sotr export")
        try:
            description = ExportDescription.from_json(text)
        except SOTRError as error:
            raise SOTRError(f"{path} {error}") from error
        if description.content == "raw":
            raise SOTRError(f"{path} has no decoding inside, only raw predictions; export the model without --raw")
        # OpenVINO's weights lie beside its graph.
        files = [path, path.with_suffix(".bin")] if path.suffix.lower() == ".xml" else [path]
        return cls(graph, description, device, files)

    def change_decoding(self, text: str) -> None:
        """See `Predictor`."""
        raise SOTRError(f"{self.name} was exported with its decoding inside; change it in the model, and export again")

    def digest(self) -> str:
        """See `Predictor`."""
        digest = hashlib.blake2b(digest_size=20)
        for path in self._files:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    @property
    def edges(self) -> tuple[int, int]:
        """See `Predictor`."""
        return self.description.image_size, self.description.max_image_size

    def options_for(self, score: float | None, max_objects: int | None) -> DecodeOptions:
        """See `Predictor`; decoding is inside the file, so it can only be narrowed.

        Raises:
            SOTRError: the file does not give objects of such low scores, or so many.
        """
        options, kept = super().options_for(score, max_objects), self.decode_options
        if score is not None and score < kept.score_threshold:
            raise SOTRError(
                f"score is {score}, but {self.name} was exported for scores from {kept.score_threshold}; "
                f"export it again with --score {score}"
            )
        if options.max_objects > kept.max_objects:
            raise SOTRError(
                f"max_objects is {max_objects}, but {self.name} was exported for {kept.max_objects}; "
                f"export it again with --max-objects {max_objects}"
            )
        return options

    @property
    def intensity(self) -> IntensityRange | None:
        """See `Predictor`."""
        return IntensityRange.of(self.description.intensity_percentiles)

    def prepare(self, picture: ImageSource, *, max_pixels: int = MAX_PIXELS, as_is: bool = False) -> Prepared:
        """See `Predictor`; the same as `sotr.data.preprocess`, without PyTorch."""
        choice = Choice(intensity=None if as_is else self.intensity)
        image = load_image(picture, max_pixels=max_pixels, choice=choice)
        description = self.description
        size = (image.shape[0], image.shape[1])
        height, width = resized_size(*size, description.image_size, description.max_image_size)
        unit_hw3 = resize(image, height, width) / np.float32(255)
        normal_hw3 = (unit_hw3 - np.array(description.mean, np.float32)) / np.array(description.std, np.float32)
        return Prepared(normal_hw3.transpose(2, 0, 1).astype(np.float32, copy=False), size)

    def segment(
        self, batch: Sequence[Prepared], *, score: float | None = None, max_objects: int | None = None
    ) -> list[Instances]:
        """See `Predictor`."""
        options = self.options_for(score, max_objects)
        images_B3HW = pad_batch(batch)
        height, width = images_B3HW.shape[2:]
        scores_BI, labels_BI, logits_BIhw, count_B = self._graph(images_B3HW)
        results = []
        for b, (input_3hw, original_size) in enumerate(batch):
            over = int((scores_BI[b, : count_B[b]] > options.score_threshold).sum())
            found = min(over, options.max_objects)
            image_size = (input_3hw.shape[1], input_3hw.shape[2])
            rles = full_size_rles(logits_BIhw[b, :found], (height, width), image_size, original_size, options)
            # A mask of the features' resolution may hold no pixel of a smaller original.
            kept = [i for i, rle in enumerate(rles) if rle is not None]
            results.append(
                Instances.from_rles(
                    scores_BI[b][kept],
                    labels_BI[b][kept],
                    [rle for rle in rles if rle is not None],
                    self.class_names,
                    self.category_ids,
                    original_size,
                )
            )
        return results


def pad_batch(batch: Sequence[Prepared]) -> NDArray[np.float32]:
    """Input of the graph, B x 3 x H x W, padded like `sotr.data.pad_batch`."""
    height, width = (padded_side(max(prepared.input_3hw.shape[d] for prepared in batch)) for d in (1, 2))
    images_B3HW = np.zeros((len(batch), 3, height, width), np.float32)
    for image_3HW, (input_3hw, _) in zip(images_B3HW, batch, strict=True):
        image_3HW[:, : input_3hw.shape[1], : input_3hw.shape[2]] = input_3hw
    return images_B3HW


def _open_onnx(path: Path, device: str) -> tuple[Graph, str | None, str]:
    """The graph, its description if it has one, and where it runs."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise SOTRError(f"{path} needs ONNX Runtime; install it with: pip install 'sotr[onnx]'") from error
    available = onnxruntime.get_available_providers()
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "auto") or not (number or "0").isdecimal():
        raise SOTRError(f"ONNX models do not run on {device!r}; use auto, cpu, cuda or cuda:1")
    if kind == "cuda" and "CUDAExecutionProvider" not in available:
        raise SOTRError("this ONNX Runtime has no CUDA; install onnxruntime-gpu in its place, or use cpu")
    cuda = kind != "cpu" and "CUDAExecutionProvider" in available
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors, which are raised, too; warnings concern the exporter
    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
    if cuda:
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(number or "0")}))
    try:
        session = onnxruntime.InferenceSession(path, settings, providers)
    except Exception as error:  # ONNX Runtime's own errors have no common base below it
        raise SOTRError(f"{path} is not a sound ONNX file ({first_line(error)}); export the model again") from error
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    return lambda images: session.run(list(OBJECT_OUTPUTS), {INPUT: images}), text, "cuda" if cuda else "cpu"


def _open_openvino(path: Path, device: str) -> tuple[Graph, str | None, str]:
    """The graph, its description if it has one, and where it runs."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise SOTRError(f"{path} needs OpenVINO; install it with: pip install 'sotr[openvino]'") from error
    if device.partition(":")[0] not in ("cpu", "auto"):
        raise SOTRError(f"OpenVINO models run on cpu here, not on {device!r}")
    try:
        model = openvino.Core().read_model(path)
        described = model.has_rt_info([METADATA_KEY])
        text = str(model.get_rt_info([METADATA_KEY]).value) if described else None
        # Throughput hints and bf16 would change results.
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except Exception as error:  # OpenVINO raises RuntimeError and its own kinds
        raise SOTRError(f"{path} is not a sound OpenVINO model ({first_line(error)}); export it again") from error

    def run(images_B3HW: NDArray[np.float32]) -> list[NDArray[Any]]:
        # A request of its own for each call: several threads may call.
        results = compiled.create_infer_request().infer({INPUT: images_B3HW})
        return [results[name] for name in OBJECT_OUTPUTS]

    return run, text, "cpu"
