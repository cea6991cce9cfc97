"""How good the masks are: COCO metrics and the `evaluate` command."""

from sotr.evaluation.coco import ClassMetrics, Metrics, coco_metrics
from sotr.evaluation.evaluate import evaluate

__all__ = ["ClassMetrics", "Metrics", "coco_metrics", "evaluate"]
