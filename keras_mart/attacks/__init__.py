"""The attacks. They work on any network that returns logits and do not depend on the training methods."""

from keras_mart.attacks.apgd import APGDCE, APGDDLR
from keras_mart.attacks.apgdt import APGDT
from keras_mart.attacks.autoattack import AutoAttack
from keras_mart.attacks.base import Attack
from keras_mart.attacks.fab import FABT
from keras_mart.attacks.fmn import FMN
from keras_mart.attacks.nfgsm import NFGSM
from keras_mart.attacks.noise import Noise
from keras_mart.attacks.pgd import CW, FGSM, PGD
from keras_mart.attacks.square import Square
from keras_mart.attacks.transfer import Transfer

__all__ = [
    "APGDCE",
    "APGDDLR",
    "APGDT",
    "CW",
    "FABT",
    "FGSM",
    "FMN",
    "NFGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "Noise",
    "Square",
    "Transfer",
]
