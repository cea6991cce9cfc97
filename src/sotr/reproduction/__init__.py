"""The paper's ablations, Tables 1 to 5, by one command."""

from sotr.reproduction.reproduce import ReproductionSummary, reproduce

__all__ = ["ReproductionSummary", "reproduce"]
