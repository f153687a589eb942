"""Attacks by the names the papers give them, for the command line."""

import re

from keras_mart import checks
from keras_mart.attacks import CW, FGSM, PGD

PRESETS = ("fgsm", "pgd10", "pgd20", "pgd40", "pgd100", "cw")


def preset(name, threat):
    """The attack of that name in a ball: fgsm, cw (30 steps) or pgd<steps>, with steps of epsilon / 10.

    Raises:
        ValueError: an unknown name.
    """
    steps = re.fullmatch(r"pgd([1-9]\d*)", name)
    if steps:
        return PGD(threat, int(steps.group(1)))
    checks.one_of(name, PRESETS, "attacks")
    return FGSM(threat) if name == "fgsm" else CW(threat)
