"""From arguments to the settings of a run, `run.json`, and back when a run is resumed."""

import json
import platform
import re
import shlex
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sotr.config import PRESETS, SOTRConfig
from sotr.curation.advice import fitting_batch_size, mirroring, suggest
from sotr.data.coco import CocoDataset
from sotr.data.scaling import PERCENTILES
from sotr.errors import SOTRError
from sotr.files import LOCK, atomic_write
from sotr.model.files import read_architecture
from sotr.model.segmenter import load
from sotr.training.arguments import Means, RunArguments, usual_values
from sotr.training.backbone_weights import IMAGENET, backbone_weights, only_cached
from sotr.training.checkpoints import has_checkpoint
from sotr.training.devices import Devices
from sotr.training.recipe import RECIPES, Recipe
from sotr.training.verdict import looks_like_microscopy


def new_run(
    folder: Path,
    data: str,
    arguments: RunArguments,
    means: Means,
    train_data: CocoDataset,
    val_data: CocoDataset | None,
    used: Devices,
) -> dict[str, Any]:
    """The full settings of a new run: plain values, ready for `run.json`.

    A preset is adapted to the data, and the batch to the device, unless arguments say otherwise; "advice" says what
    and why.

    Raises:
        SOTRError: an argument, the recipe or the model cannot be used.
    """
    config, origin = architecture(arguments.model, train_data)
    if (size := arguments.image_size) is not None:
        # The cap of the longest edge keeps its proportion to the shortest.
        longest = round(config.max_image_size * size / config.image_size)
        config = replace(config, image_size=size, max_image_size=longest)
    if arguments.normalize:
        config = replace(config, intensity_percentiles=PERCENTILES)
    config, recipe, reasons = _advised(arguments, config, train_data, used)
    return {
        "name": folder.name,
        "command": _command(data, {**asdict(arguments), "out": str(folder), **asdict(means)}),
        "arguments": asdict(arguments),
        "config": config.to_dict(),
        "recipe": recipe.to_dict(),
        "advice": list(reasons),
        "seed": arguments.seed,
        "max_dets": arguments.max_dets,
        "max_seconds": seconds_of(arguments.max_time),
        "weights": origin,
        "data": {
            "name": Path(data).resolve().name,
            "folder": str(Path(data).resolve()),
            "class_names": list(train_data.class_names),
            "category_ids": list(train_data.category_ids),
            "train_pictures": len(train_data),
            "train_objects": _objects(train_data),
            "val_pictures": 0 if val_data is None else len(val_data),
        },
    }


def _advised(
    arguments: RunArguments, config: SOTRConfig, train_data: CocoDataset, used: Devices
) -> tuple[SOTRConfig, Recipe, tuple[str, ...]]:
    """Architecture and recipe as `suggest` would have them, and its reasons; what was chosen by hand stays."""
    recipe, model = resolved_recipe(arguments), arguments.model
    if not arguments.suggest:
        return config, recipe, ()
    reasons: tuple[str, ...] = ()
    # Several processes would each look at the memory of their own device, and might not agree.
    usual = default_recipe(model, arguments.backbone_weights)
    chosen = arguments.batch_size is not None or arguments.recipe != usual or used.total > 1
    batch_size = None if chosen else recipe.batch_size
    if model in PRESETS:
        fixed_size = arguments.image_size is not None
        advice = suggest(train_data, config, batch_size, used.device, fixed_size=fixed_size)
        config, batch_size, reasons = advice.config, advice.batch_size, advice.reasons
    elif batch_size is not None:
        lines: list[str] = []
        batch_size, reasons = fitting_batch_size(train_data, config, batch_size, used.device, lines), tuple(lines)
    if batch_size is not None:
        recipe = replace(recipe, batch_size=batch_size)
    if arguments.recipe in RECIPES and recipe.augmentation.mirrors and (reason := mirroring(train_data.class_names)):
        unmirrored = replace(recipe.augmentation, horizontal_flip=False, vertical_flip=False)
        recipe, reasons = replace(recipe, augmentation=unmirrored), (*reasons, reason)
    return config, recipe, reasons


def seconds_of(duration: str | None) -> float:
    """Seconds of a time such as "90s", "45m", "8h" or "1h30m"; 0 for None.

    Raises:
        SOTRError: it is no such time, or none at all.
    """
    if duration is None:
        return 0.0
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", duration.strip())
    hours, minutes, seconds = (float(part or 0) for part in parts.groups()) if parts else (0.0, 0.0, 0.0)
    if not (total := 3600 * hours + 60 * minutes + seconds):
        raise SOTRError(f"max_time is {duration!r}; give a time such as 90s, 45m, 8h or 1h30m")
    return total


def default_recipe(model: str, backbone_weights: str | None) -> str:
    """The bundled recipe that suits a model that has been trained before, or its backbone, or nothing of it."""
    if model not in PRESETS and not Path(model).is_file():
        return "finetune"
    return "scratch" if backbone_weights in (None, "none") else "pretrained"


def with_start(arguments: RunArguments, data: CocoDataset, offline: bool, console: Console) -> RunArguments:
    """The arguments with first weights of the backbone and a recipe, where the user left them open; says which."""
    model = arguments.model
    untrained = model in PRESETS or Path(model).is_file()
    if arguments.backbone_weights is None and arguments.recipe is None and untrained:
        arguments = replace(arguments, backbone_weights=_open_start(model, data, offline, console))
    if arguments.recipe is None:
        arguments = replace(arguments, recipe=default_recipe(model, arguments.backbone_weights))
    return arguments


def _open_start(model: str, data: CocoDataset, offline: bool, console: Console) -> str:
    config, _ = architecture(model, data)
    if looks_like_microscopy(data):
        console.print("many small objects of one class, as in microscopy: --model nuclei may be the better start")
    try:
        with only_cached() if offline else nullcontext():
            _, origin = backbone_weights(config, IMAGENET)
    except SOTRError as error:
        console.print(
            f"starts from random weights, the worst start there is: {error}. From {len(data)} images such a network "
            "learns slowly, and often little; --model MODEL starts from a trained one"
        )
        return "none"
    console.print(f"the backbone starts from ImageNet: {origin}, fetched once and kept in the cache")
    return IMAGENET


def _objects(data: CocoDataset) -> int:
    return int((~data.iscrowd).sum())


def resolved_recipe(arguments: RunArguments) -> Recipe:
    """The recipe with the arguments that overrule parts of it."""
    assert arguments.recipe is not None  # `with_start` has chosen one
    recipe = Recipe.load(arguments.recipe)
    if arguments.epochs is not None:
        recipe = replace(recipe, epochs=arguments.epochs, iterations=None)
    for name in ("batch_size", "lr", "early_stop"):
        if (value := getattr(arguments, name)) is not None:
            recipe = replace(recipe, **{name: value})
    return recipe


def architecture(model: str, data: CocoDataset) -> tuple[SOTRConfig, str]:
    """The architecture that `model` names, for the classes of `data`, and where its first weights come from."""
    classes = len(data.class_names)
    path = Path(model)
    if model in PRESETS:
        return SOTRConfig.preset(model, classes), "random weights"
    if path.is_file():
        return replace(read_architecture(path), num_classes=classes), "random weights"
    try:
        config = load(model).config
    except SOTRError as error:
        raise SOTRError(f"{error}; or start from random weights: {', '.join(PRESETS)}, or a YAML file") from None
    return replace(config, num_classes=classes), f"the weights of {model}"


def first_weights(run: dict[str, Any], data: CocoDataset, console: Console) -> dict[str, torch.Tensor] | None:
    """The weights that a new run starts from, of a trained model or for the backbone alone; None means random ones.

    Other classes than the folder's need a new class head, which is said on the console and left out here.

    Raises:
        SOTRError: the weights cannot be had or do not fit, or both a trained model and backbone weights are named.
    """
    model, source = run["arguments"]["model"], run["arguments"]["backbone_weights"]
    untrained = model in PRESETS or Path(model).is_file()
    if source not in (None, "none"):
        if not untrained:
            raise SOTRError(f"{model} has weights of its own; leave out --backbone-weights, or name an architecture")
        tensors, origin = backbone_weights(SOTRConfig.from_dict(run["config"]), source)
        run["weights"] = f"random weights, the backbone's are {origin}"
        return tensors
    if untrained:
        return None
    segmenter = load(model)
    weights: dict[str, torch.Tensor] = segmenter.network.state_dict()
    if segmenter.class_names != data.class_names:
        # Class k of the one is not class k of the other: its scores mean nothing here.
        weights = {name: value for name, value in weights.items() if not name.startswith("class_head.")}
        console.print(
            f"{model} knows {_classes(segmenter.class_names)}, the data have {_classes(data.class_names)}: "
            "the class head starts anew"
        )
    return weights


def _classes(names: tuple[str, ...]) -> str:
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} class{'es' if len(names) != 1 else ''} ({some})"


def new_folder(out: str | None, data: str, model: str, main: bool) -> Path:
    """The folder of a new run; the main process may have made it already for the others.

    Raises:
        SOTRError: `out` is there already, and not empty.
    """
    if out is not None:
        if main:
            refuse_used(Path(out))
        return Path(out)
    stem = f"{Path(data).resolve().name}-{Path(model).stem}"
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return folder


def refuse_used(folder: Path) -> None:
    """Refuse a folder for a new run that holds something, other than what a run left that died before it saved.

    Raises:
        SOTRError: names it.
    """
    if folder.exists() and not folder.is_dir():
        raise SOTRError(f"{folder} is a file; give a folder with --out")
    died_at_once = (folder / "run.json").is_file() and not has_checkpoint(folder)
    if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()) and not died_at_once:
        raise SOTRError(f"{folder} is not empty; continue that run with --resume, or give another folder with --out")


def existing_run(out: str | None, data: str | None, given: RunArguments) -> tuple[Path, dict[str, Any], RunArguments]:
    """The folder, settings and arguments of a run to be resumed: `out`, or the newest of this data in the folder runs.

    Raises:
        SOTRError: there is no such run, or an argument contradicts it.
    """
    if out is None and data is None:
        raise SOTRError("there is no run to go on with; name its folder with --out")
    folder = Path(out) if out is not None else _newest_run(str(data))
    path = folder / "run.json"
    if not path.is_file() or not has_checkpoint(folder):
        raise SOTRError(f"{folder} holds no run to resume (run.json and checkpoints/last.ckpt); train without --resume")
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        recorded = RunArguments(**run["arguments"])  # an older version knew fewer
        run.setdefault("max_seconds", 0.0)
        recipe, _ = Recipe.from_dict(run["recipe"]), SOTRConfig.from_dict(run["config"])
    except (ValueError, KeyError, TypeError, SOTRError):
        raise SOTRError(f"{path} is damaged; restore it, or train anew in another folder") from None

    changed = given.changes(recorded)
    differences = [f"{name} was {getattr(recorded, name)!r}, now {value!r}" for name, value in changed.items()]
    if not changed and recorded.recipe is not None and Path(recorded.recipe).is_file():
        # The same file, but perhaps not the same contents.
        now, before = resolved_recipe(recorded).to_dict(), recipe.to_dict()
        differences += [f"recipe {key} was {before[key]!r}, now {now[key]!r}" for key in now if now[key] != before[key]]
    _refuse(folder, differences)
    return folder, run, recorded


def check_same_data(
    folder: Path, run: Mapping[str, Any], train_data: CocoDataset, val_data: CocoDataset | None
) -> None:
    """Refuse to resume a run with other data.

    Raises:
        SOTRError: classes or the number of images or objects differ.
    """
    now = {
        "class_names": list(train_data.class_names),
        "train_pictures": len(train_data),
        "train_objects": _objects(train_data),
        "val_pictures": 0 if val_data is None else len(val_data),
    }
    before = run["data"]
    _refuse(folder, [f"{key} was {before[key]!r}, now {now[key]!r}" for key in now if now[key] != before[key]])


def check_same_sharing(folder: Path, run: Mapping[str, Any], devices: Devices) -> None:
    """Refuse to resume a run whose devices shared out the weights with some that do not, or the other way round: an
    optimizer's state is kept in another order.

    Raises:
        SOTRError: they differ.
    """
    both = (run.get("shares_weights", False), devices.strategy == "fsdp")  # runs of before have no such key
    before, now = ("fsdp" if shares else "ddp or auto" for shares in both)
    _refuse(folder, [f"strategy was {before}, now {now}"] if before != now else [])


def _refuse(folder: Path, differences: list[str]) -> None:
    if differences:
        raise SOTRError(
            f"{folder} was started with other settings ({'; '.join(differences)}); resume it without changing them, "
            "or train anew in another folder"
        )


def _newest_run(data: str) -> Path:
    name = Path(data).resolve().name
    found = [path for path in Path("runs").glob(f"{name}-*/checkpoints/*.ckpt") if has_checkpoint(path.parents[1])]
    if not found:
        raise SOTRError(f"there is no run of {name} in the folder runs to resume; name it with --out")
    return max(found, key=lambda path: path.stat().st_mtime).parents[1]


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Write `run.json`."""
    with atomic_write(folder / "run.json", "w") as file:
        json.dump(run, file, indent=2, ensure_ascii=False)


def _command(data: str, settings: Mapping[str, Any]) -> str:
    """The command line that does the same."""
    words, defaults = ["sotr", "train", data], usual_values()
    for name, value in settings.items():
        flag = name.replace("max_dets", "max_objects").replace("_", "-")
        if isinstance(value, bool) and value != defaults.get(name):
            words.append(f"--{'' if value else 'no-'}{flag}")
        elif value != defaults.get(name):
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


def surroundings(devices: Devices, precision: str) -> dict[str, Any]:
    """What a run runs on, for the record: device, precision and versions."""
    device = devices.device
    name = f"{platform.machine()} {device.type}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    if devices.total > 1:
        name = f"{devices.total} x {name}"
    versions = {package: version(package) for package in ("sotr", "torch", "torchvision", "timm", "lightning")}
    return {
        "device": name,
        "precision": precision,
        "shares_weights": devices.strategy == "fsdp",
        "versions": versions | {"python": platform.python_version()},
    }
