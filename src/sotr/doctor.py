"""The `doctor` command: what a bug report should contain, and whether quick ways prove themselves on this machine."""

import json as jsonlib
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from sotr.acceleration.accelerate import accelerate, plain_steps
from sotr.acceleration.proof import difference
from sotr.building import build_network
from sotr.config import SOTRConfig
from sotr.files import cache_folder

PACKAGES = ("sotr", "torch", "torchvision", "timm", "numpy", "pillow", "faster-coco-eval", "lightning", "openvino")
"""Whose versions decide results or speed."""

USER_EXTRAS = ("train", "export", "onnx", "openvino", "serve", "video", "microscopy", "ray", "demo")
"""Extras for users, not for developers."""


@dataclass(frozen=True)
class Extra:
    """An extra of the package, and which of its packages are not there, or too old."""

    name: str
    missing: list[str]

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return f"pip install 'sotr[{self.name}]'"


@dataclass(frozen=True)
class Proof:
    """How a device predicts in a precision."""

    device: str
    precision: str
    way: str
    """"plain PyTorch", or the quick way that proved equal to it."""
    difference: float
    """Largest relative difference from plain PyTorch's predictions of one small image."""
    seconds: float
    warnings: list[str]
    """Why a quick way was not taken."""


@dataclass(frozen=True)
class Diagnosis:
    """All that `doctor` found."""

    versions: dict[str, str]
    machine: dict[str, Any]
    devices: dict[str, str]
    extras: list[Extra]
    caches: dict[str, dict[str, Any]]
    proofs: list[Proof]

    @property
    def failures(self) -> list[str]:
        """Quick ways that did not prove themselves; they make the exit code 1."""
        return [f"{proof.device}, {proof.precision}: {text}" for proof in self.proofs for text in proof.warnings]


def doctor(json: bool = False) -> Diagnosis:
    """Show versions, devices, extras and caches, and prove the quick ways of prediction on every device.

    A bug report should contain what this prints. Nothing is sent anywhere, and nothing is changed.

    Args:
        json: print one JSON object instead of tables.

    Returns:
        All that was found. Where a quick way gave way to plain PyTorch, the exit code is 1.
    """
    diagnosis = Diagnosis(
        versions={name: version for name in PACKAGES if (version := version_of(name)) is not None},
        machine=_machine(),
        devices=_devices(),
        extras=list(extras()),
        caches={
            "sotr": _folder(cache_folder()),
            "backbone weights": _folder(Path(torch.hub.get_dir())),
        },
        proofs=[proof(device, dtype) for device in _devices() for dtype in (torch.float32, torch.bfloat16)],
    )
    if json:
        sys.stdout.write(jsonlib.dumps(asdict(diagnosis) | {"failures": diagnosis.failures}) + "\n")
    else:
        show(diagnosis, Console(highlight=False, markup=False))
    return diagnosis


def version_of(package: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def extras() -> Iterator[Extra]:
    """The extras for users, each with the packages that it lacks."""
    wanted: dict[str, list[Requirement]] = {name: [] for name in USER_EXTRAS}
    for text in metadata.requires("sotr") or []:
        requirement = Requirement(text)
        for name, requirements in wanted.items():
            always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if not always and requirement.marker is not None and requirement.marker.evaluate({"extra": name}):
                requirements.append(requirement)
    for name, requirements in wanted.items():
        lacking = [each for each in requirements if each.name != "sotr" and not _satisfied(each)]
        yield Extra(name, [f"{each.name}{each.specifier}" for each in lacking])


def _satisfied(requirement: Requirement) -> bool:
    version = version_of(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def proof(device: str, dtype: torch.dtype) -> Proof:
    """Predict with the quick way of a device, if it has one that proves itself, and compare with plain PyTorch."""
    torch.manual_seed(0)
    place = torch.device(device)
    network = build_network(SOTRConfig.preset("sotr-nano", num_classes=3)).eval().to(place)
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps = accelerate(network, place, dtype, keep=False)
    plain = plain_steps(network, dtype)
    found = difference(steps.forward, plain.forward, place)
    seconds = time.perf_counter() - started
    said = [str(each.message) for each in caught if each.category is RuntimeWarning]
    return Proof(device, str(dtype).removeprefix("torch."), steps.name, found, seconds, said)


def _machine() -> dict[str, Any]:
    capabilities = torch.cpu.get_capabilities()
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": str(capabilities.get("cpu_name") or platform.processor() or platform.machine()),
        "instructions": sorted(name for name, there in capabilities.items() if there is True),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _devices() -> dict[str, str]:
    """Device as `--device` takes it -> what it is."""
    devices = {"cpu": f"{torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def _folder(path: Path) -> dict[str, Any]:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    return {"path": str(path), "files": len(files), "megabytes": round(sum(f.stat().st_size for f in files) / 1e6, 1)}


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print tables."""
    console.print(", ".join(f"{name} {version}" for name, version in diagnosis.versions.items()), soft_wrap=True)
    machine = diagnosis.machine
    console.print(f"{machine['system']}, Python {machine['python']}", soft_wrap=True)
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads "
        f"({', '.join(machine['instructions'])})",
        soft_wrap=True,
    )
    for device, what in diagnosis.devices.items():
        console.print(f"device {device}: {what}", soft_wrap=True)
    for name, cache in diagnosis.caches.items():
        console.print(
            f"cache of {name}: {cache['path']}, {cache['files']} files, {cache['megabytes']} MB", soft_wrap=True
        )
    table = Table("extra", "missing", "remedy")
    for extra in diagnosis.extras:
        table.add_row(extra.name, ", ".join(extra.missing) or "nothing", extra.remedy if extra.missing else "")
    console.print(table)
    table = Table("device", "precision", "predicts with", "difference", "seconds")
    for each in diagnosis.proofs:
        table.add_row(each.device, each.precision, each.way, f"{each.difference:.1g}", f"{each.seconds:.1f}")
    console.print(table)
    for failure in diagnosis.failures:
        console.print(failure, soft_wrap=True)
