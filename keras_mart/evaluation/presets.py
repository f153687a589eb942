"""Attacks by the names the papers give them, for the command line."""

import re

from keras_mart import checks
from keras_mart.attacks import APGDCE, APGDDLR, APGDT, CW, FABT, FGSM, FMN, PGD, AutoAttack, Square, Transfer

NAMED = {
    "fgsm": FGSM, "cw": CW, "apgd": APGDCE, "apgd-ce": APGDCE, "apgd-dlr": APGDDLR, "apgd-t": APGDT, "fab-t": FABT,
    "fmn": FMN, "square": Square, "autoattack": AutoAttack,
}  # fmt: skip
# Those that take a number of steps at the end of their name.
STEPPED = {"pgd": PGD, "cw": CW, "fmn": FMN}
# PGD-20 and CW-30 step as in the MART paper's evaluation; others as `PGD` does by default.
PAPER_STEP, PAPER_STEPS = 0.1, {"pgd": 20, "cw": 30}
# Names of several at once: "paper" are the attacks of the MART paper's white-box table.
GROUPS = {"paper": ("fgsm", "pgd20", "cw")}
TRANSFER = "transfer-"
PRESETS = (*NAMED, "pgd10", "pgd20", "pgd40", "pgd100", *GROUPS)


def presets(names, threat, source=None):
    """Name to attack in a ball.

    Args:
        names: each one of `PRESETS`, pgd<steps>, cw<steps> (cw has 30) or fmn<steps> (fmn has 100); after
            "transfer-" the attack is run on the source. "paper" stands for fgsm, pgd20 and cw. pgd20 and cw take
            steps of epsilon / 10, as in the paper's evaluation; with other numbers of steps they take
            `keras_mart.PGD`'s default.
        threat: the ball.
        source: the model on which transfer attacks are run.

    Raises:
        ValueError: an unknown name, or a transfer attack without a source.
    """
    spelled = (name for given in names for name in _members(given))
    return {name: _preset(name, threat, source) for name in spelled}


def _members(name):
    prefix = TRANSFER if name.startswith(TRANSFER) else ""
    bare = name.removeprefix(prefix)
    return [prefix + each for each in GROUPS.get(bare, (bare,))]


def _preset(name, threat, source):
    if name.startswith(TRANSFER):
        if source is None:
            raise ValueError(f"A transfer attack needs a source model (--source). Received: {name!r} without one.")
        return Transfer(source, _preset(name.removeprefix(TRANSFER), threat, source))
    stepped = re.fullmatch(rf"({'|'.join(STEPPED)})([1-9]\d*)", name)
    if stepped:
        kind, steps = stepped[1], int(stepped[2])
        chosen = {"step_size": PAPER_STEP * threat.epsilon} if steps == PAPER_STEPS.get(kind) else {}
        return STEPPED[kind](threat, steps, **chosen)
    checks.one_of(name, PRESETS, "attacks")
    return NAMED[name](threat)
