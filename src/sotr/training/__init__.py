"""The optimisation loop on Lightning: recipes, the training step, and the `train` command."""

from sotr.training.recipe import RECIPES, Recipe
from sotr.training.train import TrainingInterrupted, TrainingSummary, train

__all__ = ["RECIPES", "Recipe", "TrainingInterrupted", "TrainingSummary", "train"]
