"""How to train: one frozen value, read strictly from a YAML file."""

import contextlib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from sotr.data.transforms import Augmentation
from sotr.errors import SOTRError
from sotr.files import read_settings
from sotr.learning import LossOptions

_BUNDLED = Path(__file__).parent / "recipes"

RECIPES = tuple(sorted(path.stem for path in _BUNDLED.glob("*.yaml")))
"""Names of the recipes that come with the package."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a network is trained, apart from the data, the network and the seed.

    Raises:
        SOTRError: on construction, if a value is out of its range; the message says the remedy.
    """

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Norm layers are never decayed; with "adamw" biases and position embeddings are not either."""
    lr: float = 1e-4
    """Learning rate after the warm-up, for the batch size below; it is not scaled when only the latter changes."""
    momentum: float = 0.9
    """Momentum of "sgd", and the first beta of "adamw"."""
    weight_decay: float = 0.05
    """Decay of the weights per step, times the learning rate."""
    backbone_lr_factor: float = 1.0
    """The backbone's learning rate as a multiple of `lr`; 0 keeps its weights as they are."""
    frozen_stages: int = 0
    """The backbone's stages that are not trained, from the first: 2 keeps the weights of all that C2 is made from, 3
    those of C3 and so on; 0 trains all. The finest maps cost most and, from ImageNet, change least. Any other number
    than 0 needs `batch_norm` "frozen"."""
    class_head_scale: float = 1.0
    """Train the class head's weights as this multiple of what a common start and the common rate give them: both are
    multiplied by it. The head starts from scores of 1 % and few cells tell it about an object; at a common rate it
    lags behind the features that it reads."""
    batch_norm: Literal["batch", "sync", "frozen"] = "batch"
    """Statistics of BatchNorm layers: "batch" of each device's own images, "sync" of all devices' together, "frozen"
    those of the first weights, whose scale and shift are then not trained either; for a few images per device."""
    batch_size: int = 8
    """Images per iteration, over all devices together."""
    epochs: int | None = None
    """Passes over the training images; give either this or `iterations`."""
    iterations: int | None = None
    """Optimizer steps; give either this or `epochs`."""
    schedule: Literal["steps", "cosine"] = "cosine"
    """After the warm-up: "steps" divides the rate by 10 at each milestone, "cosine" lowers it to 1 % of `lr`."""
    milestones: tuple[float, ...] = ()
    """For "steps": a number below 1 is a fraction of the run, any other an iteration."""
    warmup: Literal["constant", "linear"] = "linear"
    """"constant" holds `warmup_factor * lr`, "linear" rises from there to `lr`."""
    warmup_iterations: int = 500
    """Length of the warm-up; a run shorter than ten times this warms up for a tenth of its iterations."""
    warmup_factor: float = 0.01
    """Learning rate at the start, as a multiple of `lr`."""
    clip_norm: float = 0.0
    """Upper limit of the gradient's norm; 0 is none."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """"auto" takes bf16-mixed where the device computes bfloat16 in hardware, else 32-true."""
    channels_last: bool = True
    """Keep images and convolution weights in channels-last memory order, which most hardware runs faster."""
    quick_layers: bool = True
    """On CPUs, train with layers that compute the same in less time, up to rounding (`training.quick_layers`)."""
    ema_decay: float = 0.999
    """Decay of the weights' moving average, which is what is validated and saved; 0 is none."""
    validate_every: int = 1
    """Epochs from one validation to the next; the last epoch is always validated."""
    choose_decoding: bool = False
    """After the training, compare settings of Matrix NMS on some training images, and give the model the best."""
    early_stop: int = 0
    """Stop after this many validations without a better AP; 0 is never."""
    repeat_below: float = 0.0
    """Share of the images below which a class is rare: images with such a class occur more often in an epoch, by
    the square root of this share over the class's; 0 shows every image once."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of the training images."""
    loss: LossOptions = field(default_factory=LossOptions)
    """Weights and constants of the losses."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.iterations is None):
            raise SOTRError("a recipe needs exactly one of epochs and iterations")
        for name in ("epochs", "iterations", "batch_size", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SOTRError(f"{name} is {value}; it must be at least 1")
        for name in ("weight_decay", "backbone_lr_factor", "warmup_iterations", "clip_norm", "early_stop"):
            if getattr(self, name) < 0:
                raise SOTRError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.frozen_stages not in (0, 2, 3, 4, 5):
            raise SOTRError(f"frozen_stages is {self.frozen_stages}; choose 2, 3, 4 or 5, or 0 for none")
        if self.frozen_stages and self.batch_norm != "frozen":
            raise SOTRError(f"frozen_stages is {self.frozen_stages}, which needs batch_norm: frozen")
        if not 0 < self.class_head_scale < math.inf:
            raise SOTRError(f"class_head_scale is {self.class_head_scale}; it must be positive")
        if not 0 < self.lr < math.inf:
            raise SOTRError(f"lr is {self.lr}; it must be positive")
        if not 0 <= self.repeat_below <= 1:
            raise SOTRError(f"repeat_below is {self.repeat_below}; it is a share in 0..1")
        for name in ("momentum", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise SOTRError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if not 0 <= self.warmup_factor <= 1:
            raise SOTRError(f"warmup_factor is {self.warmup_factor}; it must lie in [0, 1]")
        if self.schedule == "steps" and not self.milestones:
            raise SOTRError(
                "schedule is 'steps' without milestones; give their fractions or iterations, or use 'cosine'"
            )
        if any(milestone <= 0 for milestone in self.milestones):
            raise SOTRError(f"milestones are {list(self.milestones)}; each must be positive")

    def total_iterations(self, per_epoch: int) -> int:
        """Optimizer steps of the whole run, with `per_epoch` iterations in an epoch."""
        return self.iterations if self.iterations is not None else (self.epochs or 0) * per_epoch

    def lr_factor(self, step: float, total: int) -> float:
        """The learning rate of step `step` (from 0) of `total`, as a multiple of `lr`; it may lie between two steps."""
        warmup = min(self.warmup_iterations, total // 10)
        if step < warmup:
            if self.warmup == "constant":
                return self.warmup_factor
            return self.warmup_factor + (1 - self.warmup_factor) * step / warmup
        if self.schedule == "steps":
            passed = sum(step >= (m * total if m < 1 else m) for m in self.milestones)
            return float(0.1**passed)
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON or YAML; `from_dict` reads them back."""
        return typing.cast(dict[str, Any], _plain(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_dict` described; absent keys keep their defaults.

        Raises:
            SOTRError: for a key that does not exist or a value of the wrong type or range; names both.
        """
        recipe: Recipe = _build(cls, values, "")
        return recipe

    @classmethod
    def load(cls, name_or_file: str | Path) -> "Recipe":
        """A bundled recipe by its name, or one from a YAML file.

        Raises:
            SOTRError: if there is no such recipe or file, it is not YAML, or `from_dict` refuses it; names the file.
        """
        path = _BUNDLED / f"{name_or_file}.yaml" if str(name_or_file) in RECIPES else Path(name_or_file)
        if not path.is_file():
            raise SOTRError(
                f"there is no recipe {str(name_or_file)!r}; choose one of {', '.join(RECIPES)} or give a YAML file"
            )
        values = read_settings(path, [item.name for item in fields(cls)])
        try:
            return cls.from_dict(values)
        except SOTRError as error:
            raise SOTRError(f"{path}: {error}") from None


def _names(cls: type) -> str:
    return ", ".join(item.name for item in fields(cls))


def _plain(value: Any) -> Any:
    """Tuples as lists, so that a value equals itself after a trip through JSON or YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _build(cls: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """A dataclass from plain values, each checked against its field's type."""
    hints = typing.get_type_hints(cls)
    known = [item.name for item in fields(cls)]
    checked = {}
    for key, value in values.items():
        if key not in known:
            where = f" in {prefix[:-1]}" if prefix else ""
            raise SOTRError(f"unknown key {str(key)!r}{where}; the keys are {', '.join(known)}")
        checked[key] = _checked(value, hints[key], f"{prefix}{key}")
    try:
        return cls(**checked)
    except ValueError as error:
        raise SOTRError(f"{prefix[:-1] or 'recipe'}: {error}") from None


def _checked(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type `hint`; refuses what would need a guess."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in arguments and isinstance(value, str):
            return value
        raise SOTRError(f"{name} is {value!r}; it must be one of {', '.join(arguments)}")
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _checked(value, next(argument for argument in arguments if argument is not type(None)), name)
    if is_dataclass(hint):
        if isinstance(value, dict):
            return _build(hint, value, f"{name}.")
        raise SOTRError(f"{name} is {value!r}; it must hold keys of {_names(typing.cast(type, hint))}")
    if origin is tuple:
        endless = arguments[-1] is Ellipsis
        if isinstance(value, (list, tuple)) and (endless or len(value) == len(arguments)):
            kinds = [arguments[0]] * len(value) if endless else arguments
            return tuple(_checked(item, kind, name) for item, kind in zip(value, kinds, strict=True))
        raise SOTRError(f"{name} is {value!r}; it must be a list of {'' if endless else f'{len(arguments)} '}numbers")
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4, without a point, as a string.
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint is not float and type(value) is hint:
        return value
    kinds_of = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
    raise SOTRError(f"{name} is {value!r}; it must be {kinds_of[hint]}")
