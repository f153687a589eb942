"""Projected gradient ascent: PGD, FGSM (a single step), and CW (PGD on the logit margin)."""

import dataclasses

import keras
from keras import ops

from keras_mart import checks, losses, randomness, threats
from keras_mart.attacks import base, gradients
from keras_mart.typing import ImageFunction, Scalar, Seed, Tensor

STARTS = ("uniform", "gaussian", "zero")
# Standard deviation of the Gaussian start in the official TRADES and MART code.
GAUSSIAN_START = 0.001
# The default step size is this fraction of epsilon, but large enough for all steps together to be this multiple of it,
# which reaches the far side of the ball from every start (Madry et al.'s code for MNIST), and at most the diameter.
DEFAULT_STEP, REACH, DIAMETER = 0.1, 2.5, 2.0


def check_step_size(attack):
    """Raises ValueError if the `step_size` of an attack is not positive, or more than the diameter of its ball."""
    epsilon, step_size = attack.threat.epsilon, attack.step_size
    if not 0 <= step_size < float("inf") or (step_size == 0 and epsilon > 0):
        raise ValueError(f"`step_size` must be positive. Received: step_size={step_size}")
    if step_size > DIAMETER * epsilon * (1 + threats.ROUNDING) > 0:
        raise ValueError(
            f"`step_size` must be at most 2 epsilon, the diameter of the ball. Received: step_size={step_size:g}, "
            f"epsilon={epsilon:g}.{threats.suggest_255(step_size)}"
        )


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class PGD(base.Climb):
    """Projected gradient descent (ascent on the loss): x <- project(x + step_size * direction(gradient)).

    The direction is the gradient's sign in the Linf ball, the normalised gradient in the L2 ball. The last iterate
    is returned; with restarts, the worst of them for each example (misclassified first, then by loss).

    Differences: the Gaussian start is projected into the ball and [0, 1] before the first step; the official code of
    TRADES and MART projects only after it.

    Args:
        threat: the ball, `Linf` or `L2`.
        steps: number of gradient steps.
        step_size: length of a step in input units; by default max(epsilon / 10, 2.5 epsilon / steps), at most
            2 epsilon.
        start: "uniform" in the ball, "gaussian" (x + 0.001 * N(0, 1)), or "zero" (x itself).
        restarts: number of independent runs.

    Raises:
        ValueError: `steps`, `step_size` or `restarts` not positive, `step_size` more than 2 epsilon, or an unknown
            `start`.

    Reference: Madry et al., arXiv 1706.06083.
    """

    steps: int = 20
    _: dataclasses.KW_ONLY
    step_size: float | None = None
    start: str = "uniform"
    restarts: int = 1

    def __post_init__(self):
        super().__post_init__()
        checks.positive_integer(self.steps, "steps")
        checks.positive_integer(self.restarts, "restarts")
        if self.step_size is None:
            share = min(max(DEFAULT_STEP, REACH / self.steps), DIAMETER)
            object.__setattr__(self, "step_size", share * self.threat.epsilon)
        check_step_size(self)
        checks.one_of(self.start, STARTS, "start")

    @property
    def gradients(self) -> int:
        return self.steps * self.restarts

    @property
    def starts_at_image(self) -> bool:
        return self.start == "zero"

    def maximise(
        self, objective: ImageFunction, x: Tensor, epsilon: Scalar | None = None, seed: Seed = None,
        score: ImageFunction | None = None,
    ) -> Tensor:  # fmt: skip
        def run(seed):
            return self._run(objective, x, epsilon, seed)

        return base.worst_of_runs(self.restarts, run, score or objective, x, base.as_seed(seed))

    def _run(self, objective, x, epsilon, seed):
        step_size = self.scaled(self.step_size, epsilon)
        objective = gradients.values_only(objective)

        def step(number, candidates):
            gradient, *_ = gradients.gradient_of(objective, candidates)
            moved = self.threat.ascend(candidates, gradient, step_size, randomness.fold_in(seed, number))
            return (self.threat.project(moved, x, epsilon),)

        start = self._start(x, epsilon, randomness.fold_in(seed, self.steps))
        return gradients.loop(step, (start,), self.steps)[0]

    def _start(self, x, epsilon, seed):
        if self.start == "zero":
            return x
        if self.start == "uniform":
            return self.threat.sample(x, seed, epsilon)
        noise = GAUSSIAN_START * randomness.normal(ops.shape(x), seed)
        return self.threat.project(x + noise, x, epsilon)


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class CW(PGD):
    """The MART paper's CW-inf: PGD on the logit margin, max over k != y of z_k - z_y.

    This is not the optimisation of Carlini and Wagner (arXiv 1608.04644), only its objective: the MART paper and
    others it compares with call this attack CW. It is weak for few steps; AutoAttack is a better evaluation. In
    training it climbs the objective of the method, like every attack, and is then the same as PGD.

    Args:
        threat: the ball.
        steps: number of gradient steps, 30 as in the paper.
        step_size, start, restarts: as in `PGD`.
    """

    steps: int = 30

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Returns the [batch] logit margin."""
        return losses.margin(labels, logits)


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class FGSM(base.Climb):
    """Fast gradient sign method: one step of length epsilon from the natural image, on the cross-entropy.

    Args:
        threat: the ball; in `L2` the step follows the normalised gradient.

    Reference: Goodfellow et al., arXiv 1412.6572.
    """

    gradients, starts_at_image = 1, True

    def maximise(
        self, objective: ImageFunction, x: Tensor, epsilon: Scalar | None = None, seed: Seed = None,
        score: ImageFunction | None = None,
    ) -> Tensor:  # fmt: skip
        single_step = PGD(self.threat, steps=1, step_size=self.threat.epsilon, start="zero")
        return single_step.maximise(objective, x, epsilon, seed)
