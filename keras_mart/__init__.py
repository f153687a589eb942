"""Adversarial training of image classifiers with Keras: MART and the methods it is compared with."""

from keras_mart import datasets, distribution, losses, optimizers, zoo
from keras_mart.attacks import CW, FGSM, PGD, Attack
from keras_mart.callbacks import RobustAccuracy
from keras_mart.evaluation import evaluate
from keras_mart.methods import ALP, AT, CLP, MART, MMA, TRADES, AdversarialModel, Outputs, Standard
from keras_mart.serving import export
from keras_mart.threats import L2, Linf

__version__ = "0.1.0"

__all__ = [
    "ALP",
    "AT",
    "CLP",
    "CW",
    "FGSM",
    "L2",
    "MART",
    "MMA",
    "PGD",
    "TRADES",
    "AdversarialModel",
    "Attack",
    "Linf",
    "Outputs",
    "RobustAccuracy",
    "Standard",
    "datasets",
    "distribution",
    "evaluate",
    "export",
    "losses",
    "optimizers",
    "zoo",
]
