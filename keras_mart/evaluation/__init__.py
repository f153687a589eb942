"""How far a classifier holds: its accuracy under attacks, as a table."""

from keras_mart.evaluation.accuracy import check, evaluate
from keras_mart.evaluation.table import Table

__all__ = ["Table", "check", "evaluate"]
