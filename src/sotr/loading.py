"""`load`: the one way to a trained model, whatever it was saved as."""

from pathlib import Path
from typing import TYPE_CHECKING

from sotr.errors import SOTRError
from sotr.startup import import_networks

if TYPE_CHECKING:
    import torch

    from sotr.export.runtime import ExportedSegmenter
    from sotr.model.segmenter import Segmenter

EXPORTED_SUFFIXES = (".onnx", ".xml")
"""How the names of exported files end."""


def load(
    name_or_path: "str | Path",
    device: "str | torch.device" = "cpu",
    precision: str = "float32",
    engine: str = "auto",
) -> "Segmenter | ExportedSegmenter":
    """A trained model, ready to predict.

    Args:
        name_or_path: a file that `sotr export` wrote, MODEL.onnx or MODEL.xml, which is run without PyTorch; else,
            tried in this order: the name of a bundled model ("nuclei"; write "./nuclei" for a folder of that name); a
            model folder; a training run's folder, whose model is in RUN/model; a model on the Hugging Face hub,
            "org/name", which is downloaded once and kept in its cache.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best there is; exported files run on "cpu" and, in
            ONNX Runtime's build for it, on "cuda".
        precision: of convolutions and matrix products: "float32", or "bfloat16", which is quicker where the device has
            it and changes scores and outlines a little; exported files have their own.
        engine: "auto" takes the quickest way that proves itself on the device; "pytorch" plain PyTorch alone, which
            starts at once and needs less memory on CPUs.

    Raises:
        SOTRError: there is no such model, or it cannot be used.
    """
    if not isinstance(name_or_path, (str, Path)):
        raise SOTRError(f"a model has a name or path, such as sotr.load('nuclei'), not {type(name_or_path).__name__}")
    if Path(name_or_path).suffix.lower() in EXPORTED_SUFFIXES:
        from sotr.export.runtime import ExportedSegmenter

        if precision != "float32":
            raise SOTRError(f"{name_or_path} has the precision that it was exported with; leave out {precision}")
        return ExportedSegmenter.load_file(Path(name_or_path).expanduser(), str(device))
    try:
        import_networks()
        from sotr.model.segmenter import load as load_model
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "sotr":
            raise
        raise SOTRError(
            f"the model {name_or_path} needs the package {error.name}; install sotr with all it depends on "
            f"(pip install sotr), or use an exported model: --model MODEL.onnx"
        ) from error
    return load_model(name_or_path, device, precision, engine)
