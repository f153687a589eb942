"""The attacks: one concept, one file. An attack knows networks that return logits, and no training method."""

from keras_mart.attacks.base import Attack
from keras_mart.attacks.pgd import CW, FGSM, PGD

__all__ = ["CW", "FGSM", "PGD", "Attack"]
