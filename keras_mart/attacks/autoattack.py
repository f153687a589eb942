"""AutoAttack: a fixed sequence of attacks, each on the examples that the previous ones did not fool."""

import dataclasses
from collections.abc import Mapping

import keras

from keras_mart import checks
from keras_mart.attacks.apgd import APGDCE, APGDDLR
from keras_mart.attacks.apgdt import APGDT
from keras_mart.attacks.base import Attack
from keras_mart.attacks.fab import FABT
from keras_mart.attacks.square import Square
from keras_mart.typing import Shape

STAGES = {"apgd-ce": APGDCE, "apgd-dlr": APGDDLR, "apgd-t": APGDT, "fab-t": FABT, "square": Square}
VERSIONS = {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "rand": ("apgd-ce", "apgd-dlr")}
# Gradients averaged in the version for networks with random outputs.
RANDOM_SAMPLES = 20


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack, the standard benchmark: runs APGD-CE, APGD-T, FAB-T and Square in turn.

    Each attack runs on the examples that are still classified correctly; `keras_mart.evaluate` reports the accuracy
    after each. An example whose natural image is misclassified keeps it.

    Differences: those of the single attacks. The random numbers of an example depend on the seed and on its position
    among all examples, not on the batch.

    Args:
        threat: the ball, `Linf` or `L2`.
        version: "standard"; "rand", for networks with random outputs (APGD-CE and APGD-DLR, each gradient the mean of
            20); or the names of attacks, in order: apgd-ce, apgd-dlr, apgd-t, fab-t, square.

    Raises:
        ValueError: an unknown version or name, a name given twice, or no name.

    Reference: Croce and Hein, arXiv 2003.01690; github.com/fra31/auto-attack.
    """

    skips_misclassified = True

    version: str | tuple = "standard"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.version, str):
            checks.one_of(self.version, VERSIONS, "version")
            return
        names = tuple(self.version) if isinstance(self.version, (tuple, list)) else ()
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`version` must name each attack once. Received: version={self.version!r}")
        for name in names:
            checks.one_of(name, STAGES, "version")
        object.__setattr__(self, "version", names)

    @property
    def stages(self) -> Mapping[str, Attack]:
        """Name to attack, in order."""
        options = {"gradient_samples": RANDOM_SAMPLES} if self.version == "rand" else {}
        names = VERSIONS.get(self.version, self.version) if isinstance(self.version, str) else self.version
        return {name: STAGES[name](self.threat, **options) for name in names}

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """The attacks, in order."""
        return tuple(self.stages.values())

    def check_images(self, shape: Shape) -> None:
        for attack in self.attacks:
            attack.check_images(shape)
