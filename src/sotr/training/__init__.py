"""The optimization loop on Lightning: recipes, the training step, and the `train` command."""

from sotr.training.recipe import RECIPES, Recipe
from sotr.training.replay import ReplayedStep
from sotr.training.train import train
from sotr.training.work import TrainingInterrupted, TrainingSummary

__all__ = ["RECIPES", "Recipe", "ReplayedStep", "TrainingInterrupted", "TrainingSummary", "train"]
