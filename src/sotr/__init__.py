"""SOTR: Segmenting Objects with Transformers.

>>> import sotr
>>> objects = sotr.load("nuclei").predict("cells.png")
"""

from typing import TYPE_CHECKING, Any

from sotr.lazy import lazy_names
from sotr.moved import keep_old_names

if TYPE_CHECKING:
    from sotr.building import build_network
    from sotr.config import SOTRConfig
    from sotr.errors import SOTRError
    from sotr.evaluation.evaluate import evaluate
    from sotr.loading import load
    from sotr.model.segmenter import Segmenter
    from sotr.network import SOTR
    from sotr.prediction.predict import predict
    from sotr.results.instances import Instances
    from sotr.training.train import train

    __version__: str

__all__ = [
    "SOTR",
    "Instances",
    "SOTRConfig",
    "SOTRError",
    "Segmenter",
    "__version__",
    "build_network",
    "evaluate",
    "load",
    "predict",
    "train",
]

_HOMES = {
    "SOTR": "sotr.network",
    "Instances": "sotr.results.instances",
    "SOTRConfig": "sotr.config",
    "SOTRError": "sotr.errors",
    "Segmenter": "sotr.model.segmenter",
    "build_network": "sotr.building",
    "evaluate": "sotr.evaluation",
    "load": "sotr.loading",
    "predict": "sotr.prediction",
    "train": "sotr.training",
}


_get, _names = lazy_names(__name__, _HOMES)
keep_old_names()


def __getattr__(name: str) -> Any:
    # Names are imported when they are first used: `import sotr` and `sotr --help` need not wait for PyTorch.
    if name == "__version__":
        from importlib.metadata import version

        return version("sotr")
    return _get(name)


def __dir__() -> list[str]:
    return [*_names(), "__version__"]
