"""Images of what happens inside a model."""

from sotr.explanation.explain import Explanation, explain

__all__ = ["Explanation", "explain"]
