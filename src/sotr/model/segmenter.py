"""A trained model: network, class names and decoding in one object, kept in one folder.

A model folder holds `config.json` (architecture, class names, original category ids, decoding), `model.safetensors` and
usually `README.md`, the model card. Nothing else is needed to use it, and nothing in it is ever executed.
"""

import hashlib
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from threading import RLock
from typing import NamedTuple

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError

from sotr.acceleration.accelerate import Steps, accelerate, plain_steps
from sotr.acceleration.plain import undisturbed
from sotr.building import build_network
from sotr.config import PRESETS
from sotr.data.choice import Choice
from sotr.data.images import MAX_PIXELS, load_image
from sotr.data.scaling import IntensityRange
from sotr.data.sources import ImageSource
from sotr.data.traits import Domain
from sotr.data.transforms import pad_batch
from sotr.decoding import DecodeOptions, Found, find, finish
from sotr.errors import SOTRError, first_line
from sotr.model.files import (
    CARD_FILE,
    CONFIG_FILE,
    TRAITS_FILE,
    WEIGHTS_FILE,
    Description,
    load_weights,
    read_description,
    write_model,
)
from sotr.model.hub_card import hub_card
from sotr.model.predictor import ENGINE_AFTER, Predictor
from sotr.network import SOTR, DensePredictions
from sotr.results.instances import Instances

BUNDLED_MODELS = Path(__file__).parent.parent / "weights"
"""Model folders that travel with the package, one per name."""


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""In which a network may predict, by name."""


class Prepared(NamedTuple):
    """An image as the network takes it; made by `Segmenter.prepare`."""

    input_3hw: torch.Tensor
    """float32, resized and normalized, not padded; on the host."""
    original_size: tuple[int, int]
    """(H, W) of the upright image in pixels, the size of its results."""


ENGINES = ("auto", "pytorch")
"""What `Segmenter.engine` may be."""


class _Weights(NamedTuple):
    """What tells that a network's tensors are others or were written to."""

    dtype: torch.dtype
    tensors: tuple[tuple[int, int], ...]


def _state_of(network: SOTR) -> _Weights:
    tensors = list(chain(network.parameters(), network.buffers()))
    # Tensors made in inference mode count no versions, for nothing outside it can write to them.
    state = tuple((each.data_ptr(), 0 if each.is_inference() else each._version) for each in tensors)
    return _Weights(tensors[0].dtype, state)


class _Quick:
    """The quick steps of a model, if they were made, and what they were made of. Copies begin without."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.images = 0
        self.weights: _Weights | None = None
        self.steps: Steps | None = None

    def __reduce__(self) -> tuple[type["_Quick"], tuple[()]]:
        return _Quick, ()


class Segmenter(Predictor[Prepared], ModelHubMixin):
    """A network with all it takes to segment images. Get one from `sotr.load`.

    `push_to_hub("org/name")` publishes it; `sotr.load("org/name")` gets it back.

    Attributes:
        network: the SOTR module, in eval mode, on `device`.
        config: its architecture.
        class_names: M names.
        category_ids: M original ids, as the training data numbered them.
        decode_options: thresholds and limits that `predict` uses.
        name: what to call the model in reports.
        card: text of the model card, Markdown, or None.
        device: where the network is.
        precision: of convolutions and matrix products in prediction, "float32" or "bfloat16"; the weights stay.
        engine: "auto" takes the quickest way that proves itself on the device, "pytorch" plain PyTorch alone, which
            starts at once and needs half the memory on CPUs.
        domain: how its training images look, or None.
    """

    def __init__(
        self,
        network: SOTR,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int] = (),
        decode_options: DecodeOptions | None = None,
        name: str = "sotr",
        device: str | torch.device = "cpu",
        card: str | None = None,
        precision: str = "float32",
        engine: str = "auto",
        domain: Domain | None = None,
    ) -> None:
        """Wrap `network`, which is moved to `device` and put in eval mode.

        Raises:
            SOTRError: names, ids and the network's classes do not match, or a device, precision or engine is unknown.
        """
        if isinstance(network, (str, Path)):
            raise SOTRError(f"Segmenter wraps a network; for a trained model call sotr.load({str(network)!r})")
        self.config = network.config
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        classes = self.config.num_classes
        if not len(self.class_names) == len(self.category_ids) == classes:
            raise SOTRError(
                f"the network has {classes} classes, but there are {len(self.class_names)} class names and "
                f"{len(self.category_ids)} category ids; give one of each per class"
            )
        if len(set(self.category_ids)) != classes:
            raise SOTRError("two classes have the same category id; ids must differ")
        self.decode_options = decode_options or DecodeOptions()
        if precision not in PRECISIONS:
            raise SOTRError(f"there is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
        self.name = name
        self.card = card
        self.domain = domain
        if engine not in ENGINES:
            raise SOTRError(f"there is no engine {engine!r}; choose one of {', '.join(ENGINES)}")
        self.precision = precision
        self.device = choose_device(device)
        self.network = network.eval().to(self.device)
        self.engine = engine
        self._quick = _Quick()

    def digest(self) -> str:
        """See `Predictor`."""
        digest = hashlib.blake2b(repr(self.network.config).encode(), digest_size=20)
        if self.precision != "float32":
            digest.update(self.precision.encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def __repr__(self) -> str:
        parameters = sum(tensor.numel() for tensor in self.network.parameters()) / 1e6
        return f"Segmenter({self.name!r}, {len(self.class_names)} classes, {parameters:.1f}M parameters, {self.device})"

    @property
    def edges(self) -> tuple[int, int]:
        """See `Predictor`."""
        return self.config.image_size, self.config.max_image_size

    @property
    def intensity(self) -> IntensityRange | None:
        """See `Predictor`."""
        return IntensityRange.of(self.config.intensity_percentiles)

    def prepare(self, picture: ImageSource, *, max_pixels: int = MAX_PIXELS, as_is: bool = False) -> Prepared:
        """See `Predictor`."""
        choice = Choice(intensity=None if as_is else self.intensity)
        image = load_image(picture, max_pixels=max_pixels, choice=choice)
        with undisturbed(self.device):
            return Prepared(self._steps().preprocess(image, *self.edges), (image.shape[0], image.shape[1]))

    @torch.inference_mode()
    def segment(
        self, batch: Sequence[Prepared], *, score: float | None = None, max_objects: int | None = None
    ) -> list[Instances]:
        """See `Predictor`."""
        options = self.options_for(score, max_objects)
        with undisturbed(self.device):
            inputs_B3HW = pad_batch([prepared.input_3hw for prepared in batch])
            return finish(
                self.find(inputs_B3HW.to(self.device), options),
                [(prepared.input_3hw.shape[1], prepared.input_3hw.shape[2]) for prepared in batch],
                [prepared.original_size for prepared in batch],
                options,
                class_names=self.class_names,
                category_ids=self.category_ids,
                compress=self._steps().compress,
            )

    @torch.inference_mode()
    def find(self, inputs_B3HW: torch.Tensor, options: DecodeOptions) -> list[Found]:
        """What may be an object in each of B padded inputs on the network's device, for `sotr.decoding.finish`."""
        return find(self.forward(inputs_B3HW), options, self.config)

    def forward(self, inputs_B3HW: torch.Tensor) -> DensePredictions:
        """The network's raw predictions for B padded inputs on its device, at this model's precision.

        Raises:
            SOTRError: the network's weights are not in float32.
        """
        return self._steps(len(inputs_B3HW)).forward(inputs_B3HW)

    def accelerate(self) -> None:
        """Take the quickest way that gives the same predictions, now; it is dropped when the weights change.

        On CPUs that is OpenVINO, if it is installed: making its graph takes some seconds to a minute the first time
        for some weights, so `predict` does it by itself only for the image number `ENGINE_AFTER`. On GPUs it happens at
        the first image. What differs from plain PyTorch by more than rounding is not taken, and a warning says so.
        """
        with self._quick.lock:
            self._quick.steps = None
            self._quick.images = ENGINE_AFTER
        self._steps()

    def _steps(self, images: int = 0) -> Steps:
        """The steps to predict with, given that so many images come."""
        quick, dtype = self._quick, PRECISIONS[self.precision]
        weights = _state_of(self.network)
        if weights.dtype != torch.float32:
            raise SOTRError(f"the network's weights are {weights.dtype}; keep float32, and choose precision='bfloat16'")
        with quick.lock:
            if quick.weights != weights:
                quick.weights, quick.steps = weights, None
            quick.images += images
            wanted = self.device.type == "cuda" or quick.images >= ENGINE_AFTER
            if quick.steps is None and self.engine == "auto" and wanted:
                quick.steps = accelerate(self.network, self.device, dtype)
            return quick.steps or plain_steps(self.network, dtype)

    def save(self, folder: str | Path, *, card: str | None = None, half: bool = False) -> None:
        """Write the model folder; its files are replaced only when all of them have been written.

        Args:
            folder: made if absent; other files in it stay.
            card: Markdown for README.md; None writes the card that the model has, if any.
            half: store weights as float16, half the size. BatchNorm's running statistics stay float32, for variances
                can leave float16's range; so does any tensor that would overflow.

        Raises:
            SOTRError: the folder cannot be written.
        """
        folder = Path(folder)
        text = card if card is not None else self.card
        try:
            description = Description(
                self.config, self.class_names, self.category_ids, self.decode_options, self.domain
            )
            write_model(folder, description, self.network, half, text)
        except OSError as error:
            raise SOTRError(f"cannot write the model folder {folder}: {error.strerror or error}") from error

    @classmethod
    def load_folder(
        cls, folder: str | Path, device: str | torch.device = "cpu", precision: str = "float32", engine: str = "auto"
    ) -> "Segmenter":
        """Read a model folder; every tensor must be there with its shape, and no other.

        Raises:
            SOTRError: a file is absent, damaged, of a newer format, or does not fit the architecture.
        """
        folder, device = Path(folder), choose_device(device)
        config, class_names, category_ids, options, domain = read_description(folder / CONFIG_FILE)
        card = folder / CARD_FILE
        try:
            text = card.read_text(encoding="utf-8") if card.is_file() else None
        except (OSError, UnicodeDecodeError) as error:
            raise SOTRError(f"cannot read {card}: {error}; it must be UTF-8 text") from error
        name = folder.resolve().name
        try:
            with undisturbed(torch.device("cpu")):
                network = build_network(config).float()
            segmenter = cls(network, class_names, category_ids, options, name, device, text, precision, engine, domain)
        except SOTRError as error:  # what the file describes cannot be built
            raise SOTRError(f"{folder / CONFIG_FILE}: {error}") from error
        load_weights(segmenter.network, folder / WEIGHTS_FILE)
        return segmenter

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name_or_folder: str | Path,
        device: str | torch.device = "cpu",
        precision: str = "float32",
        engine: str = "auto",
    ) -> "Segmenter":
        """The same as `sotr.load`."""
        return load(name_or_folder, device, precision, engine)

    def _save_pretrained(self, save_directory: Path) -> None:
        # What huggingface_hub's save_pretrained and push_to_hub call.
        self.save(save_directory, card=hub_card(self))


def load(
    name_or_folder: str | Path, device: str | torch.device = "cpu", precision: str = "float32", engine: str = "auto"
) -> Segmenter:
    """A trained model, ready to predict.

    Args:
        name_or_folder: tried in this order: the name of a bundled model ("nuclei"; write "./nuclei" for a folder of
            that name); a model folder; a training run's folder, whose model is in RUN/model; a model on the Hugging
            Face hub, "org/name", which is downloaded once and kept in its cache.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best there is.
        precision: of convolutions and matrix products, "float32" or "bfloat16".
        engine: "auto" or "pytorch", see `Segmenter`.

    Raises:
        SOTRError: there is no such model, or it cannot be used.
    """
    text = str(name_or_folder)
    if text in bundled_models():
        return Segmenter.load_folder(BUNDLED_MODELS / text, device, precision, engine)

    folder = Path(text).expanduser()
    if folder.is_dir():
        for candidate in (folder, folder / "model"):
            if (candidate / CONFIG_FILE).is_file():
                segmenter = Segmenter.load_folder(candidate, device, precision, engine)
                segmenter.name = folder.resolve().name
                return segmenter
        raise SOTRError(f"{folder} holds no model: neither {CONFIG_FILE} nor model/{CONFIG_FILE} is there")
    if folder.exists():
        raise SOTRError(f"{folder} is a file; give the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}")

    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text):
        segmenter = Segmenter.load_folder(_download(text), device, precision, engine)
        segmenter.name = text
        return segmenter
    if text in PRESETS:
        raise SOTRError(f"{text} is an architecture without weights; train it first: sotr train DATA --model {text}")
    raise SOTRError(
        f"there is no model {text!r}: neither a folder nor one of the bundled models "
        f"({', '.join(bundled_models()) or 'none in this installation'})"
    )


def bundled_models() -> tuple[str, ...]:
    """Names of the models that travel with the package."""
    return tuple(sorted(config.parent.name for config in BUNDLED_MODELS.glob(f"*/{CONFIG_FILE}")))


def choose_device(device: str | torch.device) -> torch.device:
    """The named device, or with "auto" the best there is: CUDA, else Apple's MPS, else the CPU.

    Raises:
        SOTRError: this machine has no such device.
    """
    if device == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    chosen: torch.device | None
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda", "mps"):
        raise SOTRError(f"there is no device {str(device)!r}; use auto, cpu, cuda, cuda:1 or mps")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise SOTRError(
            f"device {chosen} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices; use auto"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise SOTRError("device mps is not there on this machine; use auto")
    return chosen


def _download(hub_id: str) -> Path:
    """Fetch a model folder from the hub (or its cache)."""
    try:
        return Path(snapshot_download(hub_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, TRAITS_FILE]))
    # HTTP errors, time-outs and an unreachable hub without a cached copy are all OSError.
    except (OSError, HFValidationError) as error:
        reason = first_line(error)
        raise SOTRError(
            f"{hub_id} is no folder here, nor could it be had from the Hugging Face hub: {reason}"
        ) from error
