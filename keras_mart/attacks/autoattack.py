"""AutoAttack: four attacks without parameters, each on what the ones before left standing."""

import dataclasses

import keras

from keras_mart import checks
from keras_mart.attacks.apgd import APGDCE, APGDDLR
from keras_mart.attacks.apgdt import APGDT
from keras_mart.attacks.base import Attack
from keras_mart.attacks.fab import FABT
from keras_mart.attacks.square import Square

STAGES = {"apgd-ce": APGDCE, "apgd-dlr": APGDDLR, "apgd-t": APGDT, "fab-t": FABT, "square": Square}
VERSIONS = {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "rand": ("apgd-ce", "apgd-dlr")}
# Gradients averaged in the version for networks that answer at random.
RANDOM_SAMPLES = 20


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack, the field's yardstick: APGD-CE, APGD-T, FAB-T and Square, one after the other.

    Each attack runs on the examples that are classified correctly after the ones before; `keras_mart.evaluate` reports
    the accuracy after each. An example that is misclassified as it is stays its natural image.

    Differences: those of the single attacks. The random numbers of an example depend on the seed and on its place among
    all examples, not on the batch.

    Args:
        threat: the ball, `Linf` or `L2`.
        version: "standard"; "rand", for networks that answer at random (APGD-CE and APGD-DLR, each gradient the mean
            of 20); or the names of attacks in their order: apgd-ce, apgd-dlr, apgd-t, fab-t, square.

    Raises:
        ValueError: an unknown version or name, a name given twice, or none.

    Reference: Croce and Hein, arXiv 2003.01690; github.com/fra31/auto-attack.
    """

    spares = True

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
    def stages(self):
        """Name to attack, in order."""
        options = {"gradient_samples": RANDOM_SAMPLES} if self.version == "rand" else {}
        names = VERSIONS.get(self.version, self.version) if isinstance(self.version, str) else self.version
        return {name: STAGES[name](self.threat, **options) for name in names}

    @property
    def attacks(self):
        """The attacks, in order."""
        return tuple(self.stages.values())

    def check_images(self, shape):
        for attack in self.attacks:
            attack.check_images(shape)
