"""Robustness evaluation: accuracy under attacks, checks for false robustness, an HTML report."""

from keras_mart.evaluation.accuracy import check, evaluate
from keras_mart.evaluation.diagnose import Diagnosis, diagnose
from keras_mart.evaluation.report import report
from keras_mart.evaluation.table import Table

__all__ = ["Diagnosis", "Table", "check", "diagnose", "evaluate", "report"]
