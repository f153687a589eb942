"""How far a classifier holds: its accuracy under attacks, as a table."""

from keras_mart.evaluation.accuracy import evaluate
from keras_mart.evaluation.table import Table

__all__ = ["Table", "evaluate"]
