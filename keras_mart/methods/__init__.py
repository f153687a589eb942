"""The training methods, one in each file, and the registry that the command line and the tests use."""

from keras_mart.methods.alp import ALP
from keras_mart.methods.at import AT
from keras_mart.methods.batch import Outputs
from keras_mart.methods.clp import CLP
from keras_mart.methods.dkl import DKL
from keras_mart.methods.gradalign import GradAlign
from keras_mart.methods.hat import HAT
from keras_mart.methods.hyperparameter import Hyperparameter
from keras_mart.methods.mart import MART
from keras_mart.methods.mma import MMA
from keras_mart.methods.model import AdversarialModel
from keras_mart.methods.perturbation import AWP
from keras_mart.methods.rslad import RSLAD
from keras_mart.methods.standard import Standard
from keras_mart.methods.trades import TRADES

METHODS: dict[str, type[AdversarialModel]] = {
    "standard": Standard, "at": AT, "alp": ALP, "clp": CLP, "trades": TRADES, "mma": MMA, "mart": MART, "hat": HAT,
    "dkl": DKL, "rslad": RSLAD, "gradalign": GradAlign,
}  # fmt: skip

__all__ = [
    "ALP",
    "AT",
    "AWP",
    "CLP",
    "DKL",
    "HAT",
    "MART",
    "METHODS",
    "MMA",
    "RSLAD",
    "TRADES",
    "AdversarialModel",
    "GradAlign",
    "Hyperparameter",
    "Outputs",
    "Standard",
]
