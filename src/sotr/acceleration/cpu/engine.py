"""OpenVINO as the engine of inference on CPUs: the network as a compiled graph, kept in the user's cache folder."""

import os
import shutil
import tempfile
import threading
import warnings
from functools import partial
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sotr.acceleration.plain import Forward, evaluating, predict_plainly
from sotr.acceleration.proof import give_way, proven, small_input
from sotr.errors import SOTRError, first_line
from sotr.files import atomic_folder, cache_folder
from sotr.network import SOTR, DensePredictions

NAME = "OpenVINO"
GRAPH = "model.xml"
KEPT = 4
"""Networks whose graphs are kept on disk, those last used; one takes up to 2.5 times the size of its weights."""

_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
_TRACING = threading.Lock()
"""Tracing and compiling take all cores anyway."""


class Engine:
    """A compiled network. Safe in several threads, each of which has a request of its own.

    Args:
        compiled: OpenVINO's compiled model.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._own = threading.local()

    def __call__(self, images_B3HW: Tensor) -> DensePredictions:
        """See `Forward`."""
        if not hasattr(self._own, "request"):
            self._own.request = self.compiled.create_infer_request()
        found = self._own.request.infer([images_B3HW.detach().contiguous().numpy()], share_inputs=True)
        return DensePredictions(*(torch.from_numpy(found[index]) for index in range(len(DensePredictions._fields))))


def can_run(network: SOTR) -> bool:
    """Whether OpenVINO is installed and has all operators of the network: it lacks deformable convolution."""
    return find_spec("openvino") is not None and not network.config.deformable_stages


def engine(network: SOTR, dtype: torch.dtype, keep: bool = True) -> Forward | None:
    """The network as a compiled graph that proved equal to it when it was made; None, and a warning, if it cannot be.

    It does not follow later changes of the weights. The first call for some weights takes some ten seconds to a
    minute; later ones, in this process or another, read the cache folder.

    Args:
        network: on the CPU; it is not changed.
        dtype: of convolutions and matrix products.
        keep: the graph in the cache folder.
    """
    try:
        with _TRACING:
            return _engine(network, dtype, keep)
    except Exception as error:  # OpenVINO's errors are RuntimeError and kinds of its own
        give_way(NAME, first_line(error))
        return None


def _engine(network: SOTR, dtype: torch.dtype, keep: bool) -> Forward | None:
    import openvino

    kept = cache_folder() / "engines" / _key(network)
    with tempfile.TemporaryDirectory() as scratch:
        folder = kept
        if keep and (kept / GRAPH).is_file():
            os.utime(kept)
        else:
            folder = Path(scratch)
            openvino.save_model(graph_of(network), folder / GRAPH, compress_to_fp16=False)
            folder = kept if keep and _keep(folder, kept) else folder
        compiled = Engine(_compile(folder / GRAPH, dtype, cache=folder if folder == kept else None))
    # A file of the cache may be of a layer whose code has changed since; so each is held against the network again.
    plain = partial(predict_plainly, network, dtype=dtype)
    return compiled if proven(compiled, plain, torch.device("cpu"), dtype, NAME) else None


def _key(network: SOTR) -> str:
    """What decides the graph: weights, architecture, layers and versions."""
    import openvino

    parts = [repr(network), repr(network.config), openvino.__version__, torch.__version__]
    digest = blake2b("\n".join(parts).encode(), digest_size=16)
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def graph_of(network: SOTR) -> Any:
    """OpenVINO's model of a network's raw predictions, by tracing. Batch size, height and width stay free."""
    import openvino

    images_B3HW = small_input(torch.device("cpu"))
    with evaluating(network), torch.no_grad(), torch.autocast("cpu", enabled=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what depends on sizes is traced, and the proof tells
        traced = torch.jit.trace(network, (images_B3HW,), check_trace=False)
        model = openvino.convert_model(traced, example_input=images_B3HW)
    model.reshape([-1, 3, -1, -1])
    return model


def _keep(folder: Path, kept: Path) -> bool:
    """Copy the files to the cache; false where it cannot be written."""
    try:
        with atomic_folder(kept) as new:
            shutil.copytree(folder, new, dirs_exist_ok=True)
        engines = [each for each in kept.parent.iterdir() if not each.name.startswith(".")]
        for old in sorted(engines, key=lambda each: each.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, SOTRError):  # the latter where another process was quicker
        return (kept / GRAPH).is_file()
    return True


def _compile(graph: Path, dtype: torch.dtype, cache: Path | None) -> Any:
    import openvino

    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    if cache is not None:
        settings["CACHE_DIR"] = str(cache)
    return openvino.Core().compile_model(graph, "CPU", settings)
