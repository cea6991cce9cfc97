"""A trained model: network, class names and decoding in one object, kept in one folder.

A model folder holds `config.json` (architecture, class names, original category ids, decoding), `model.safetensors` and
usually `README.md`, the model card. Nothing else is needed to use it, and nothing in it is ever executed.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from PIL import Image

from sotr.config import PRESETS
from sotr.data.images import ImageSource, load_image
from sotr.data.transforms import pad_batch, preprocess
from sotr.decoding import DecodeOptions, decode
from sotr.errors import SOTRError
from sotr.instances import Instances
from sotr.model_files import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    Description,
    load_weights,
    read_description,
    write_model,
)
from sotr.network import SOTR
from sotr.tiling import OVERLAP, check_tiles, open_picture, segment_tiles

BUNDLED_MODELS = Path(__file__).parent / "weights"
"""Model folders that travel with the package, one per name."""


HUB_CARD = """---
{{ card_data }}
---

An instance segmentation model made with SOTR. In Python: `sotr.load("ORGANISATION/NAME").predict("picture.png")`.
"""
"""README.md of a published model that has no card of its own."""


class Segmenter(
    ModelHubMixin,
    model_card_template=HUB_CARD,
    library_name="sotr",
    pipeline_tag="image-segmentation",
    tags=["instance-segmentation"],
):
    """A network with all it takes to segment pictures. Get one from `sotr.load`.

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
    """

    def __init__(
        self,
        network: SOTR,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        decode_options: DecodeOptions | None = None,
        name: str = "sotr",
        device: str | torch.device = "cpu",
        card: str | None = None,
    ) -> None:
        """Wrap `network`, which is moved to `device` and put in eval mode.

        Raises:
            SOTRError: if names, ids and the network's classes do not match, or there is no such device.
        """
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
        self.name = name
        self.card = card
        self.device = choose_device(device)
        self.network = network.eval().to(self.device)

    def __repr__(self) -> str:
        parameters = sum(tensor.numel() for tensor in self.network.parameters()) / 1e6
        return f"Segmenter({self.name!r}, {len(self.class_names)} classes, {parameters:.1f}M parameters, {self.device})"

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is also a sequence; the first signature takes it
        self,
        pictures: ImageSource,
        *,
        score: float | None = None,
        max_objects: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = OVERLAP,
    ) -> Instances: ...

    @overload
    def predict(
        self,
        pictures: Sequence[ImageSource],
        *,
        score: float | None = None,
        max_objects: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = OVERLAP,
    ) -> list[Instances]: ...

    def predict(
        self,
        pictures: ImageSource | Sequence[ImageSource],
        *,
        score: float | None = None,
        max_objects: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = OVERLAP,
    ) -> Instances | list[Instances]:
        """Segment one picture, or a list of them.

        Args:
            pictures: a file name, a file's bytes, a PIL picture or an HW3 uint8 RGB array; or a list of these, which
                may be empty.
            score: objects below this score, in 0..1, are left out; None takes the model's `decode_options`.
            max_objects: at most so many objects per picture, best first; None takes the model's `decode_options`.
            batch_size: pictures that go through the network together. Pictures of different sizes are padded to the
                largest of their batch, which changes scores and masks slightly; 1 avoids that.
            tile: segment each picture, of whatever size, in overlapping tiles of so many pixels a side, and merge their
                objects, see `sotr.tiling`; `max_objects` is then the limit of a tile, and `batch_size` counts tiles.
            overlap: part of a tile's side, above 0 and at most 0.5, that it shares with the next one.

        Returns:
            `Instances` at the picture's own size, or a list of them for a list of pictures.

        Raises:
            SOTRError: a picture cannot be read or has the wrong type, or an argument is out of range.
        """
        if batch_size < 1:
            raise SOTRError(f"batch_size is {batch_size}; it must be at least 1")
        options = self._options(score, max_objects)
        if tile is not None:
            check_tiles(tile, overlap)
            if isinstance(pictures, (str, Path, bytes, Image.Image, np.ndarray)):
                return self._predict_tiles(pictures, tile, overlap, batch_size, options)
            return [self._predict_tiles(picture, tile, overlap, batch_size, options) for picture in pictures]
        if isinstance(pictures, (str, Path, bytes, Image.Image, np.ndarray)):
            return self._predict_batch([pictures], options)[0]
        results: list[Instances] = []
        for start in range(0, len(pictures), batch_size):
            results += self._predict_batch(pictures[start : start + batch_size], options)
        return results

    def _options(self, score: float | None, max_objects: int | None) -> DecodeOptions:
        options = self.decode_options
        if score is not None:
            if not 0 <= score <= 1:
                raise SOTRError(f"score is {score}; it must lie in 0..1")
            options = replace(options, score_threshold=score)
        if max_objects is not None:
            if max_objects < 1:
                raise SOTRError(f"max_objects is {max_objects}; it must be at least 1")
            # More candidates than objects, for Matrix NMS weeds some out.
            options = options.with_max_objects(max_objects)
        return options

    def _predict_tiles(
        self, picture: ImageSource, tile: int, overlap: float, batch_size: int, options: DecodeOptions
    ) -> Instances:
        def predict(tiles: Sequence[ImageSource]) -> list[Instances]:
            return self._predict_batch(tiles, options)

        names, ids = self.class_names, self.category_ids
        with open_picture(picture) as opened:
            return segment_tiles(
                predict, opened, tile, overlap, class_names=names, category_ids=ids, batch_size=batch_size
            )

    @torch.inference_mode()
    def _predict_batch(self, pictures: Sequence[ImageSource], options: DecodeOptions) -> list[Instances]:
        images = [load_image(picture) for picture in pictures]
        inputs = [preprocess(image, self.config.image_size, self.config.max_image_size) for image in images]
        predictions = self.network(pad_batch(inputs).to(self.device))
        return decode(
            predictions,
            [(tensor.shape[1], tensor.shape[2]) for tensor in inputs],
            [(image.shape[0], image.shape[1]) for image in images],
            options,
            config=self.config,
            class_names=self.class_names,
            category_ids=self.category_ids,
        )

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
            description = Description(self.config, self.class_names, self.category_ids, self.decode_options)
            write_model(folder, description, self.network, half, text)
        except OSError as error:
            raise SOTRError(f"cannot write the model folder {folder}: {error.strerror or error}") from error

    @classmethod
    def load_folder(cls, folder: str | Path, device: str | torch.device = "cpu") -> "Segmenter":
        """Read a model folder; every tensor must be there with its shape, and no other.

        Raises:
            SOTRError: a file is absent, damaged, of a newer format, or does not fit the architecture.
        """
        folder, device = Path(folder), choose_device(device)
        config, class_names, category_ids, decode_options = read_description(folder / CONFIG_FILE)
        card = folder / CARD_FILE
        try:
            text = card.read_text(encoding="utf-8") if card.is_file() else None
        except (OSError, UnicodeDecodeError) as error:
            raise SOTRError(f"cannot read {card}: {error}; it must be UTF-8 text") from error
        name = folder.resolve().name
        try:
            segmenter = cls(SOTR(config), class_names, category_ids, decode_options, name, device, text)
        except SOTRError as error:  # what the file describes cannot be built
            raise SOTRError(f"{folder / CONFIG_FILE}: {error}") from error
        load_weights(segmenter.network, folder / WEIGHTS_FILE)
        return segmenter

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, device: str | torch.device = "cpu") -> "Segmenter":  # type: ignore[override]
        """The same as `sotr.load`."""
        return load(name_or_folder, device)

    def _save_pretrained(self, save_directory: Path) -> None:
        # What huggingface_hub's save_pretrained and push_to_hub call.
        self.save(save_directory)


def load(name_or_folder: str | Path, device: str | torch.device = "cpu") -> Segmenter:
    """A trained model, ready to predict.

    Args:
        name_or_folder: tried in this order: the name of a bundled model ("nuclei"; write "./nuclei" for a folder of
            that name); a model folder; a training run's folder, whose model is in RUN/model; a model on the Hugging
            Face hub, "org/name", which is downloaded once and kept in its cache.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best there is.

    Raises:
        SOTRError: there is no such model, or it cannot be used.
    """
    text = str(name_or_folder)
    if text in bundled_models():
        return Segmenter.load_folder(BUNDLED_MODELS / text, device)

    folder = Path(text).expanduser()
    if folder.is_dir():
        for candidate in (folder, folder / "model"):
            if (candidate / CONFIG_FILE).is_file():
                segmenter = Segmenter.load_folder(candidate, device)
                segmenter.name = folder.resolve().name
                return segmenter
        raise SOTRError(f"{folder} holds no model: neither {CONFIG_FILE} nor model/{CONFIG_FILE} is there")
    if folder.exists():
        raise SOTRError(f"{folder} is a file; give the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}")

    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text):
        segmenter = Segmenter.load_folder(_download(text), device)
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
        return Path(snapshot_download(hub_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]))
    # HTTP errors, time-outs and an unreachable hub without a cached copy are all OSError.
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SOTRError(
            f"{hub_id} is no folder here, nor could it be had from the Hugging Face hub: {reason}"
        ) from error
