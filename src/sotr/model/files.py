"""The files of a model folder, `config.json` and `model.safetensors`: written atomically, read strictly."""

import json
import re
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sotr.config import SOTRConfig
from sotr.data.traits import Domain
from sotr.decoding import DecodeOptions
from sotr.errors import SOTRError, first_line
from sotr.files import atomic_write, read_settings

FORMAT = 1
"""Version of the model folder; to be raised when older software could no longer read it."""

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, TRAITS_FILE = "config.json", "model.safetensors", "README.md", "traits.json"


class Description(NamedTuple):
    """What config.json says."""

    config: SOTRConfig
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    decode_options: DecodeOptions
    domain: Domain | None = None
    """How the training images look, which traits.json says where it is there."""


def write_model(folder: Path, description: Description, network: nn.Module, half: bool, card: str | None) -> None:
    """Write config.json, model.safetensors with floats as float16 if `half` and it holds them, and the card, if any.

    No file is replaced before all have been written: a full disk leaves the old model whole.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if half:
        tensors = {name: _halved(name, tensor) for name, tensor in tensors.items()}
    with ExitStack() as files:
        for name, content in (
            (CARD_FILE, card.encode() if card is not None else None),
            (CONFIG_FILE, _describe(description).encode()),
            (TRAITS_FILE, json.dumps(description.domain.to_dict(), indent=2).encode() if description.domain else None),
            (WEIGHTS_FILE, save(tensors, metadata={"format": "pt"})),
        ):
            if content is not None:
                file = files.enter_context(atomic_write(folder / name))
                file.write(content)
                file.flush()


def _describe(description: Description) -> str:
    plain = {
        "format": FORMAT,
        "architecture": description.config.to_dict(),
        "class_names": list(description.class_names),
        "category_ids": list(description.category_ids),
        "decoding": asdict(description.decode_options),
    }
    # Indented, with lists of numbers on one line each.
    text = json.dumps(plain, indent=2, ensure_ascii=False)
    number_list = re.compile(r"\[\s+(-?[\d.e+-]+(?:,\s+-?[\d.e+-]+)*)\s+\]")
    return number_list.sub(lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text) + "\n"


def read_description(path: Path) -> Description:
    """Architecture, class names, category ids and decoding of a model's config.json, all checked."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SOTRError(f"{path} is missing; a model folder holds {CONFIG_FILE} and {WEIGHTS_FILE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SOTRError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(description, dict) or type(description.get("format")) is not int or description["format"] < 1:
        raise SOTRError(f'{path} does not describe a SOTR model: it has no "format" number')
    if description["format"] > FORMAT:
        raise SOTRError(
            f"{path} has format {description['format']}, this version reads up to {FORMAT}; "
            "install a newer sotr (pip install --upgrade sotr)"
        )
    keys = {"format", "architecture", "class_names", "category_ids", "decoding"}
    if keys != set(description):
        difference = ", ".join(sorted(keys ^ set(description)))
        raise SOTRError(f"{path} should have exactly the keys {', '.join(sorted(keys))}; look at {difference}")
    for key, kind in (("class_names", str), ("category_ids", int)):
        values = description[key]
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise SOTRError(f"{path}: {key} must be a list of {'texts' if kind is str else 'whole numbers'}")
    for key in ("architecture", "decoding"):
        if not isinstance(description[key], dict):
            raise SOTRError(f"{path}: {key} must be an object with named settings")
    try:
        config = SOTRConfig.from_dict(description["architecture"])
        decode_options = DecodeOptions.from_dict(description["decoding"])
    except SOTRError as error:
        raise SOTRError(f"{path}: {error}") from error
    names, ids = tuple(description["class_names"]), tuple(description["category_ids"])
    return Description(config, names, ids, decode_options, _read_domain(path.with_name(TRAITS_FILE)))


def _read_domain(path: Path) -> Domain | None:
    if not path.is_file():
        return None
    try:
        return Domain.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise SOTRError(f"{path} cannot be read: {first_line(error)}; remove it, or copy the model again") from error
    except SOTRError as error:
        raise SOTRError(f"{path} {error}; remove it, or copy the model again") from error


def _halved(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or name.endswith(("running_mean", "running_var")):
        return tensor
    half = tensor.half()
    return half if bool(half.isfinite().all()) else tensor


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill `network` from a safetensors file that must hold exactly its tensors; any float precision is cast."""
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise SOTRError(f"{path} is missing; a model folder holds {CONFIG_FILE} and {WEIGHTS_FILE}") from None
    except (SafetensorError, OSError) as error:
        raise SOTRError(f"{path} is not a sound safetensors file ({error}); copy or download it again") from error

    expected = network.state_dict()
    problems = {
        "missing": sorted(set(expected) - set(tensors)),
        "unexpected": sorted(set(tensors) - set(expected)),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
        "of another type": [
            f"{name} {tensors[name].dtype} instead of {tensor.dtype}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].is_floating_point() != tensor.is_floating_point()
        ],
        "with values that are not finite": [
            name for name in sorted(tensors) if name in expected and not bool(tensors[name].float().isfinite().all())
        ],
    }
    if any(problems.values()):
        lists = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for kind, names in problems.items()
            if names
        )
        raise SOTRError(
            f"{path} does not fit the architecture in {CONFIG_FILE} beside it, or is damaged: {lists}; "
            "copy or download both again"
        )
    network.load_state_dict({name: tensors[name].to(tensor.dtype) for name, tensor in expected.items()})


def read_architecture(path: Path) -> SOTRConfig:
    """The architecture that a YAML or JSON file describes by settings of `SOTRConfig`; absent ones are the paper's.

    Raises:
        SOTRError: the file cannot be read, or its settings cannot be used; names the file.
    """
    values = read_settings(path, [field.name for field in fields(SOTRConfig)])
    try:
        return SOTRConfig.from_dict(values)
    except SOTRError as error:
        raise SOTRError(f"{path}: {error}") from None
