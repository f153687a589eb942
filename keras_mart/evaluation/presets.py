"""Attacks by name, such as "pgd20", for the command line."""

import re

from keras_mart import checks
from keras_mart.attacks import APGDCE, APGDDLR, APGDT, CW, FABT, FGSM, FMN, PGD, AutoAttack, Square, Transfer

NAMED = {
    "fgsm": FGSM, "cw": CW, "apgd": APGDCE, "apgd-ce": APGDCE, "apgd-dlr": APGDDLR, "apgd-t": APGDT, "fab-t": FABT,
    "fmn": FMN, "square": Square, "autoattack": AutoAttack,
}  # fmt: skip
# Attacks whose name may end in a number of steps.
STEPPED = {"pgd": PGD, "cw": CW, "fmn": FMN}
# PGD-20 and CW-30 take the step size of the MART paper's evaluation; others that of `PGD`.
PAPER_STEP, PAPER_STEPS = 0.1, {"pgd": 20, "cw": 30}
# Names of several attacks: "paper" stands for those of the MART paper's white-box table.
GROUPS = {"paper": ("fgsm", "pgd20", "cw")}
TRANSFER = "transfer-"
PRESETS = (*NAMED, "pgd10", "pgd20", "pgd40", "pgd100", *GROUPS)


def presets(names, threat, source=None):
    """Returns a dictionary from names to attacks in the given ball.

    Args:
        names: each is one of `PRESETS`, pgd<steps>, cw<steps> (30 by default) or fmn<steps> (100 by default);
            "transfer-" in front runs the attack on the source. "paper" stands for fgsm, pgd20 and cw. pgd20 and cw take
            steps of epsilon / 10, as in the MART paper's evaluation; with other numbers of steps they take the default
            step size of `keras_mart.PGD`.
        threat: the ball.
        source: the model on which transfer attacks run.

    Raises:
        ValueError: if a name is unknown, or a transfer attack has no source.
    """
    expanded = (member for name in names for member in _expand(name))
    return {name: _preset(name, threat, source) for name in expanded}


def _expand(name):
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
