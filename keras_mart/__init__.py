"""Adversarial training of image classifiers with Keras: MART and the methods it is compared with."""

from keras_mart import startup

if startup.by_command_line():  # before TensorFlow is imported
    startup.hold()

from keras_mart import datasets, distribution, folding, layers, losses, networks, optimizers, plot, serving, zoo
from keras_mart.attacks import (
    APGDCE,
    APGDDLR,
    APGDT,
    CW,
    FABT,
    FGSM,
    FMN,
    NFGSM,
    PGD,
    Attack,
    AutoAttack,
    Noise,
    Square,
    Transfer,
)
from keras_mart.callbacks import RobustAccuracy
from keras_mart.evaluation import diagnose, evaluate, report
from keras_mart.hardening import Hardened, harden
from keras_mart.launching import launch
from keras_mart.methods import (
    ALP,
    AT,
    AWP,
    CLP,
    DKL,
    HAT,
    MART,
    MMA,
    RSLAD,
    TRADES,
    AdversarialModel,
    GradAlign,
    Hyperparameter,
    Outputs,
    Standard,
)
from keras_mart.serving import export
from keras_mart.threats import L2, Linf
from keras_mart.version import __version__

__all__ = [
    "ALP",
    "APGDCE",
    "APGDDLR",
    "APGDT",
    "AT",
    "AWP",
    "CLP",
    "CW",
    "DKL",
    "FABT",
    "FGSM",
    "FMN",
    "HAT",
    "L2",
    "MART",
    "MMA",
    "NFGSM",
    "PGD",
    "RSLAD",
    "TRADES",
    "AdversarialModel",
    "Attack",
    "AutoAttack",
    "GradAlign",
    "Hardened",
    "Hyperparameter",
    "Linf",
    "Noise",
    "Outputs",
    "RobustAccuracy",
    "Square",
    "Standard",
    "Transfer",
    "__version__",
    "datasets",
    "diagnose",
    "distribution",
    "evaluate",
    "export",
    "folding",
    "harden",
    "launch",
    "layers",
    "losses",
    "networks",
    "optimizers",
    "plot",
    "report",
    "serving",
    "zoo",
]
