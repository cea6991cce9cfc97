"""The training signal: which cell learns which object, and how wrong it is."""

from sotr.learning.assignment import Assignment, assign
from sotr.learning.losses import LossOptions, Normalisers, sotr_losses
from sotr.learning.targets import Targets

__all__ = ["Assignment", "LossOptions", "Normalisers", "Targets", "assign", "sotr_losses"]
