"""Auto-PGD: projected gradient ascent that chooses its own step sizes; on the cross-entropy and on the DLR."""

import dataclasses
from typing import NamedTuple

import keras
from keras import ops

from keras_mart import checks, losses
from keras_mart.attacks import base, gradients
from keras_mart.threats import choose

# The share of the new step in a move, the rest being momentum; the first move has none.
MOMENTUM_SHARE = 0.75
# The first step is this multiple of epsilon.
FIRST_STEP = 2.0
# The shares of all steps after which the progress is first looked at, the least, and by how much the next is less.
FIRST_WINDOW, LEAST_WINDOW, SHORTER = 0.22, 0.06, 0.03
# A step size is halved where fewer than this share of the steps since the last look went up.
RHO = 0.75


class _State(NamedTuple):
    candidates: object
    previous: object  # the candidates before the last step
    gradient: object
    value: object
    step_size: object
    best: object  # the images of largest value
    best_gradient: object
    best_value: object
    fooled: object  # whether an adversarial image was ever met
    adversarial: object  # the last one met
    rises: object  # how many steps since the last look went up
    best_then: object  # the largest value at the last look
    halved_then: object


def ascend(attack, objective, images, epsilon, seed):
    """Auto-PGD on an objective.

    Args:
        attack: gives `threat`, `steps`, `rho` and `gradient_samples`.
        objective: maps [batch, ...] images to ([batch] values, [batch] whether they are misclassified).
        images: [batch, ...].
        epsilon: scalar, [batch], or `None` for the threat's own.
        seed: [2] integers.

    Returns:
        ([batch, ...] images of largest value, [batch] whether a misclassified one was met, the last such).
    """
    threat, samples = attack.threat, attack.gradient_samples
    radius = threat.epsilon if epsilon is None else epsilon
    windows = ops.convert_to_tensor(_windows(attack.steps), "int32")

    def step(count, *state):
        state = _State(*state)
        share = ops.where(count > 0, MOMENTUM_SHARE, 1.0)
        moved = threat.ascend(state.candidates, state.gradient, state.step_size)
        moved = threat.project(moved, images, epsilon)
        momentum = state.candidates - state.previous
        moved = state.candidates + share * (moved - state.candidates) + (1 - share) * momentum
        moved = threat.project(moved, images, epsilon)
        gradient, value, fooled = gradients.gradient_of(objective, moved, samples)
        better = value > state.best_value
        state = _State(
            moved, state.candidates, gradient, value, state.step_size,
            best=choose(better, moved, state.best),
            best_gradient=choose(better, gradient, state.best_gradient),
            best_value=ops.where(better, value, state.best_value),
            fooled=ops.logical_or(state.fooled, fooled),
            adversarial=choose(fooled, moved, state.adversarial),
            rises=state.rises + ops.cast(value > state.value, "int32"),
            best_then=state.best_then, halved_then=state.halved_then,
        )  # fmt: skip
        return _look(state, windows[count], attack.rho)

    start = threat.rim(images, seed, epsilon)
    gradient, value, fooled = gradients.gradient_of(objective, start, samples)
    state = _State(
        start, start, gradient,
        value=ops.zeros_like(value),  # the official code compares the first step with 0, not with the start
        step_size=FIRST_STEP * radius * ops.ones_like(value),
        best=start, best_gradient=gradient, best_value=value,
        fooled=fooled, adversarial=start,
        rises=ops.zeros_like(value, "int32"),
        best_then=value, halved_then=ops.ones_like(fooled),
    )  # fmt: skip
    state = _State(*gradients.loop(step, state, attack.steps))
    return state.best, state.fooled, state.adversarial


def _look(state, window, rho):
    """Halves the step size, and goes back to the best image, where the last `window` steps brought too little."""
    looks = window > 0  # 0 marks the steps after which nobody looks
    few = ops.cast(state.rises, "float32") <= rho * ops.cast(window, "float32")
    stalled = ops.logical_and(~state.halved_then, state.best_then >= state.best_value)
    halved = ops.logical_and(looks, ops.logical_or(few, stalled))
    return state._replace(
        step_size=ops.where(halved, state.step_size / 2, state.step_size),
        candidates=choose(halved, state.best, state.candidates),
        gradient=choose(halved, state.best_gradient, state.gradient),
        rises=ops.where(looks, 0, state.rises),
        best_then=ops.where(looks, state.best_value, state.best_then),
        halved_then=ops.where(looks, halved, state.halved_then),
    )


def _windows(steps):
    """[steps] after which steps the progress is looked at: there the number of steps since the last look, else 0."""
    shares = (FIRST_WINDOW, LEAST_WINDOW, SHORTER)
    window, least, shorter = (max(int(share * steps), 1) for share in shares)
    windows = [0] * steps
    position = window
    while position <= steps:
        windows[position - 1] = window
        window = max(window - shorter, least)
        position += window
    return windows


@dataclasses.dataclass(frozen=True)
class _APGD(base.Attack):
    """What the untargeted attacks share; they give `loss(labels, logits)`."""

    steps: int = 100
    _: dataclasses.KW_ONLY
    rho: float = RHO
    gradient_samples: int = 1

    def __post_init__(self):
        super().__post_init__()
        check(self)

    @property
    def gradients(self):
        return (self.steps + 1) * self.gradient_samples

    def perturb(self, logits, images, labels, seed):
        return adversarial(self, logits, images, labels, seed, self.loss)


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class APGDCE(_APGD, base.Climb):
    """Auto-PGD on the cross-entropy: a misclassified image where one was met, else the one of largest loss.

    Starts on the rim of the ball; takes steps of 2 epsilon at first, with momentum; looks back after 22, 41, 57, ... of
    100 steps and, where too few of them went up or none was the best so far, halves the step and goes back to the
    best image.

    Differences: follows the official code where the paper differs (steps between looks, the momentum's second
    projection, the last misclassified image is kept). Losses are computed from logits without cancellation, so it can
    succeed where the official code's gradient is 0.

    Args:
        threat: the ball, `Linf` or `L2`.
        steps: number of gradient steps.
        rho: the share of steps that must go up for a step size to stay.
        gradient_samples: each gradient is the mean of so many, for networks that answer at random.

    Raises:
        ValueError: `steps` or `gradient_samples` not positive, or `rho` outside [0, 1].

    Reference: Croce and Hein, arXiv 2003.01690, algorithm 1; github.com/fra31/auto-attack.
    """

    def maximise(self, objective, x, epsilon=None, seed=None, score=None):
        """As `Climb.maximise`; of the images met, those of largest value. There are no restarts to score."""
        return ops.stop_gradient(ascend(self, gradients.unmarked(objective), x, epsilon, base.as_seed(seed))[0])


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class APGDDLR(_APGD):
    """Auto-PGD on the difference of logits ratio (`losses.dlr`), else as `APGDCE`; training methods do not take it.

    Differences: with 2 classes, where the ratio is undefined, it climbs the logit margin.

    Args:
        threat, steps, rho, gradient_samples: as in `APGDCE`.
    """

    def loss(self, labels, logits):
        """Difference of logits ratio."""
        return losses.dlr(labels, logits)


def adversarial(attack, logits, images, labels, seed, loss):
    """[batch, ...] images that Auto-PGD on `loss(labels, logits)` finds: the last misclassified, else the best."""

    def objective(candidates):
        outputs = logits(candidates)
        return loss(labels, outputs), ops.argmax(outputs, axis=-1) != labels

    best, fooled, last_fooled = ascend(attack, objective, images, None, seed)
    return ops.stop_gradient(choose(fooled, last_fooled, best))


def check(attack):
    """Raises ValueError where the arguments that all Auto-PGD attacks share are wrong."""
    checks.positive_integer(attack.steps, "steps")
    checks.positive_integer(attack.gradient_samples, "gradient_samples")
    if not 0 <= attack.rho <= 1:
        raise ValueError(f"`rho` must lie in [0, 1]. Received: rho={attack.rho!r}")
