"""Trained models as one ONNX or OpenVINO file, and their use without PyTorch."""

from typing import TYPE_CHECKING

from sotr.lazy import lazy_names

if TYPE_CHECKING:
    from sotr.export.runtime import ExportedSegmenter
    from sotr.export.write import export

__all__ = ["ExportedSegmenter", "export"]

_HOMES = {"ExportedSegmenter": "sotr.export.runtime", "export": "sotr.export.write"}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
