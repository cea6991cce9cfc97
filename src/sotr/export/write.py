"""The `export` command: a trained model as one file for ONNX Runtime or OpenVINO."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from sotr.acceleration.cpu.engine import graph_of
from sotr.data.images import list_images
from sotr.data.transforms import MEAN, STD
from sotr.errors import SOTRError, first_line
from sotr.export.description import INPUT, METADATA_KEY, RAW_OUTPUTS, ExportDescription
from sotr.export.onnx_file import trace
from sotr.files import atomic_write
from sotr.model.segmenter import Segmenter, load

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
"""Format -> how its file's name ends; `sotr.load` goes by it."""

MOST_CANDIDATES = 1000
"""The exported graph holds the masks of all candidates at once, so it makes no more of them than this, or than enter
NMS."""


def export(
    model: str | Path | Segmenter = "nuclei",
    format: Literal["onnx", "openvino"] = "onnx",
    out: str | Path | None = None,
    raw: bool = False,
    score: float | None = None,
    max_objects: int | None = None,
    int8: str | Path | None = None,
    quiet: bool = False,
) -> Path:
    """Write a trained model as one file that needs no PyTorch: network, decoding, classes and preprocessing.

    Batch size, height and width of the input are free (the latter in multiples of 32). `sotr predict --model FILE` and
    `sotr.load(FILE)` use the file with ONNX Runtime or OpenVINO alone.

    Args:
        model: a bundled model, a model or run folder, a hub id, or (in Python) a loaded model.
        format: onnx (one file) or openvino (an .xml with its .bin beside it).
        out: file to write; by default the model's name with the format's ending, here.
        raw: without decoding: outputs are the dense predictions of the network.
        score: objects below this score, 0..1, do not leave the file; by default what the model was saved with.
        max_objects: at most so many objects leave the file per image; by default what the model was saved with.
        int8: images such as the model is meant for, a folder, glob or file: compute convolutions in 8 bits, with
            ranges learned from these; only in the format onnx. Quicker on CPUs, a little less accurate.
        quiet: print nothing.

    Returns:
        The file.

    Raises:
        SOTRError: the model cannot be used or not be exported, or the file cannot be written.
    """
    if format not in SUFFIXES:
        raise SOTRError(f"there is no format {format!r}; choose one of {', '.join(SUFFIXES)}")
    segmenter = model if isinstance(model, Segmenter) else load(model)
    path = Path(out) if out is not None else Path(segmenter.name.rsplit("/", 1)[-1] + SUFFIXES[format])
    if path.suffix != SUFFIXES[format]:
        raise SOTRError(f"{path}: a file in the format {format} has a name that ends in {SUFFIXES[format]}")
    if int8 is not None and (raw or format != "onnx"):
        raise SOTRError("int8 is for the format onnx with decoding inside; leave out --raw and --format")
    calibration = list_images([int8]) if int8 is not None else []
    if format == "openvino":
        _check_openvino(segmenter)
    # Without a score the file gives all that evaluation measures; who predicts with it keeps to the operating score.
    options = segmenter.options_for(segmenter.decode_options.score_threshold if score is None else score, max_objects)
    if not raw and options.nms == "mask":
        raise SOTRError("plain mask NMS decides mask by mask, which no graph can; save the model with Matrix NMS")
    _check_writable(path)
    limited = replace(options, max_candidates=min(options.max_candidates, max(MOST_CANDIDATES, options.max_nms)))
    description = ExportDescription(
        name=segmenter.name,
        content="raw" if raw else "objects",
        class_names=segmenter.class_names,
        category_ids=segmenter.category_ids,
        image_size=segmenter.config.image_size,
        max_image_size=segmenter.config.max_image_size,
        mean=MEAN,
        std=STD,
        decode_options=limited,
        intensity_percentiles=segmenter.config.intensity_percentiles,
        domain=segmenter.domain,
    )

    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    steps = 2 + bool(calibration)
    with console.status("exporting") as status:

        def begin(number: int, step: str) -> None:
            console.print(f"{number}/{steps} {step}")
            status.update(step)

        try:
            begin(1, f"turning {segmenter.name} into a graph: seconds, or minutes for many layers")
            if format == "openvino" and raw:
                _save_openvino(path, lambda _: _raw_openvino(segmenter), description)
                return _told(console, path)
            content = trace(segmenter.network, None if raw else limited, description)
            if calibration:
                from sotr.export.int8 import quantized  # what it needs takes its time to import

                begin(2, f"learning ranges for 8 bits from images in {int8}")
                content = quantized(content, calibration)
            begin(steps, f"writing {path}")
            if format == "onnx":
                with atomic_write(path) as file:
                    file.write(content)
            else:
                write_openvino(path, content, description)
        except OSError as error:
            raise SOTRError(f"cannot write {path}: {error.strerror or error}; choose another with --out") from error
    return _told(console, path)


def _told(console: Console, path: Path) -> Path:
    console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return path


def _check_writable(path: Path) -> None:
    """Raise SOTRError if `path` cannot be written: better now than after minutes of work."""
    if path.is_dir():
        raise SOTRError(f"{path} is a folder; give a file with --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SOTRError(f"cannot write {path}: {error.strerror or error}; choose another with --out") from error


def _check_openvino(segmenter: Segmenter) -> None:
    """Raise SOTRError if OpenVINO is not there or could not run the model."""
    if find_spec("openvino") is None:
        raise SOTRError("the format openvino needs the package openvino; install it with: pip install 'sotr[openvino]'")
    if segmenter.config.deformable_stages:
        raise SOTRError(f"{segmenter.name} has deformable convolutions, which OpenVINO cannot read; export to onnx")


def write_openvino(path: Path, onnx_file: bytes, description: ExportDescription) -> None:
    """Write an ONNX file as OpenVINO's two files; neither takes its place before both have been written."""
    _save_openvino(path, partial(_openvino_of, onnx_file), description)


def _openvino_of(onnx_file: bytes, folder: Path) -> Any:
    """OpenVINO's model of an ONNX file."""
    import openvino

    onnx_path = folder / "model.onnx"
    onnx_path.write_bytes(onnx_file)
    return openvino.convert_model(onnx_path)


def _raw_openvino(segmenter: Segmenter) -> Any:
    """OpenVINO's model of raw predictions, traced directly: a third of the time that the way over ONNX takes."""
    model = graph_of(segmenter.network)
    for port, name in zip((*model.inputs, *model.outputs), (INPUT, *RAW_OUTPUTS), strict=True):
        port.get_tensor().set_names({name})
    return model


def _save_openvino(path: Path, make: Callable[[Path], Any], description: ExportDescription) -> None:
    """Write OpenVINO's two files; neither takes its place before both have been written.

    Args:
        path: of the .xml file.
        make: gives OpenVINO's model, and may use the folder that it is given.
        description: becomes part of the file.
    """
    import openvino

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder) / path.name
        try:
            model = make(Path(folder))
            model.set_rt_info(description.to_json(), METADATA_KEY)
            openvino.save_model(model, written, compress_to_fp16=False)
        except OSError:
            raise
        except Exception as error:  # RuntimeError and kinds of OpenVINO's own, a full disk among their reasons
            raise SOTRError(f"OpenVINO cannot write {path}: {first_line(error)}") from error
        for suffix in (".bin", ".xml"):
            os.replace(written.with_suffix(suffix), path.with_suffix(suffix))
