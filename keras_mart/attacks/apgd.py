"""Auto-PGD: projected gradient ascent with adaptive step sizes, on the cross-entropy and on the DLR."""

import dataclasses
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_mart import checks, losses
from keras_mart.attacks import base, gradients
from keras_mart.threats import choose
from keras_mart.typing import ArrayLike, ImageFunction, Scalar, Seed, Tensor

# The share of the new step in a move, the rest being momentum; the first move has none.
MOMENTUM_SHARE = 0.75
# The first step is this multiple of epsilon.
FIRST_STEP = 2.0
# The first window between checkpoints, the smallest, and the decrease from one to the next, as shares of all steps.
FIRST_WINDOW, SMALLEST_WINDOW, WINDOW_DECREMENT = 0.22, 0.06, 0.03
# A step size is halved where at most this share of the steps since the last checkpoint increased the value.
RHO = 0.75


class _State(NamedTuple):
    candidates: Any
    previous: Any  # the candidates before the last step
    gradient: Any
    value: Any
    step_size: Any
    best: Any  # the images of largest value
    best_gradient: Any
    best_value: Any
    fooled: Any  # whether an adversarial image was found
    adversarial: Any  # the last one found
    increases: Any  # the number of steps since the last checkpoint that increased the value
    best_at_checkpoint: Any  # the largest value at the last checkpoint
    halved_at_checkpoint: Any  # whether the step size was halved there


def ascend(attack, objective, images, epsilon, seed):
    """Runs Auto-PGD on an objective.

    Args:
        attack: gives `threat`, `steps`, `rho` and `gradient_samples`.
        objective: maps [batch, ...] images to ([batch] values, [batch] whether they are misclassified).
        images: [batch, ...].
        epsilon: scalar, [batch], or `None` for the threat's own.
        seed: [2] integers.

    Returns:
        ([batch, ...] images of largest value, [batch] whether a misclassified one was found, the last such).
    """
    threat, samples = attack.threat, attack.gradient_samples
    radius = threat.epsilon if epsilon is None else epsilon
    windows = ops.convert_to_tensor(_checkpoint_windows(attack.steps), "int32")

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
            increases=state.increases + ops.cast(value > state.value, "int32"),
            best_at_checkpoint=state.best_at_checkpoint, halved_at_checkpoint=state.halved_at_checkpoint,
        )  # fmt: skip
        return _check_progress(state, windows[count], attack.rho)

    start = threat.sample_boundary(images, seed, epsilon)
    gradient, value, fooled = gradients.gradient_of(objective, start, samples)
    state = _State(
        start, start, gradient,
        value=ops.zeros_like(value),  # the official code compares the first step with 0, not with the start
        step_size=FIRST_STEP * radius * ops.ones_like(value),
        best=start, best_gradient=gradient, best_value=value,
        fooled=fooled, adversarial=start,
        increases=ops.zeros_like(value, "int32"),
        best_at_checkpoint=value, halved_at_checkpoint=ops.ones_like(fooled),
    )  # fmt: skip
    state = _State(*gradients.loop(step, state, attack.steps))
    return state.best, state.fooled, state.adversarial


def _check_progress(state, window, rho):
    """At a checkpoint, halves the step size and returns to the best image where the last `window` steps stalled."""
    at_checkpoint = window > 0
    few = ops.cast(state.increases, "float32") <= rho * ops.cast(window, "float32")
    stalled = ops.logical_and(~state.halved_at_checkpoint, state.best_at_checkpoint >= state.best_value)
    halved = ops.logical_and(at_checkpoint, ops.logical_or(few, stalled))
    return state._replace(
        step_size=ops.where(halved, state.step_size / 2, state.step_size),
        candidates=choose(halved, state.best, state.candidates),
        gradient=choose(halved, state.best_gradient, state.gradient),
        increases=ops.where(at_checkpoint, 0, state.increases),
        best_at_checkpoint=ops.where(at_checkpoint, state.best_value, state.best_at_checkpoint),
        halved_at_checkpoint=ops.where(at_checkpoint, halved, state.halved_at_checkpoint),
    )


def _checkpoint_windows(steps):
    """Returns, for each of the steps, the number of steps since the previous checkpoint if it is one, else 0."""
    shares = (FIRST_WINDOW, SMALLEST_WINDOW, WINDOW_DECREMENT)
    window, smallest, decrement = (max(int(share * steps), 1) for share in shares)
    windows = [0] * steps
    position = window
    while position <= steps:
        windows[position - 1] = window
        window = max(window - decrement, smallest)
        position += window
    return windows


@dataclasses.dataclass(frozen=True)
class _APGD(base.Attack):
    """Base of the untargeted attacks, on the cross-entropy unless they override `loss`."""

    steps: int = 100
    _: dataclasses.KW_ONLY
    rho: float = RHO
    gradient_samples: int = 1

    def __post_init__(self):
        super().__post_init__()
        check(self)

    @property
    def gradients(self) -> int:
        return (self.steps + 1) * self.gradient_samples

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Returns the [batch] cross-entropy."""
        return losses.cross_entropy(labels, logits)

    def perturb(self, logits: ImageFunction, images: Tensor, labels: Tensor, seed: ArrayLike) -> Tensor:
        return adversarial(self, logits, images, labels, seed, self.loss)


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class APGDCE(_APGD, base.Climb):
    """Auto-PGD on the cross-entropy: returns a misclassified image if it finds one, else the one of largest loss.

    Starts at the boundary of the ball, with steps of 2 epsilon and momentum. At checkpoints (of 100 steps after 22, 41,
    57, ...) it halves the step size and returns to the best image if too few steps increased the loss or none reached
    a new maximum.

    Differences: follows the official code where the paper differs (the checkpoints, the momentum's second projection,
    the last misclassified image is kept). Losses are computed from logits without cancellation, so it can succeed where
    the official code's gradient is 0.

    Args:
        threat: the ball, `Linf` or `L2`.
        steps: number of gradient steps.
        rho: the share of steps that must increase the loss for the step size to stay.
        gradient_samples: each gradient is the mean of this many, for networks with random outputs.

    Raises:
        ValueError: `steps` or `gradient_samples` not positive, or `rho` outside [0, 1].

    Reference: Croce and Hein, arXiv 2003.01690, algorithm 1; github.com/fra31/auto-attack.
    """

    def maximise(
        self, objective: ImageFunction, x: Tensor, epsilon: Scalar | None = None, seed: Seed = None,
        score: ImageFunction | None = None,
    ) -> Tensor:  # fmt: skip
        """As `Climb.maximise`; returns the images of largest value. There are no restarts, so `score` is unused."""
        return ops.stop_gradient(ascend(self, gradients.values_only(objective), x, epsilon, base.as_seed(seed))[0])


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class APGDDLR(_APGD):
    """Auto-PGD on the difference of logits ratio (`losses.dlr`), otherwise as `APGDCE`; not for training methods.

    Differences: with 2 classes, where the ratio is undefined, it climbs the logit margin.

    Args:
        threat, steps, rho, gradient_samples: as in `APGDCE`.
    """

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Returns the [batch] difference of logits ratio."""
        return losses.dlr(labels, logits)


def adversarial(attack, logits, images, labels, seed, loss):
    """Returns the [batch, ...] images that Auto-PGD on `loss(labels, logits)` finds: misclassified or of largest loss.

    Of several misclassified images it is the last.
    """

    def objective(candidates):
        outputs = logits(candidates)
        return loss(labels, outputs), ops.argmax(outputs, axis=-1) != labels

    best, fooled, last_fooled = ascend(attack, objective, images, None, seed)
    return ops.stop_gradient(choose(fooled, last_fooled, best))


def check(attack):
    """Raises ValueError if an argument common to all Auto-PGD attacks is wrong."""
    checks.positive_integer(attack.steps, "steps")
    checks.positive_integer(attack.gradient_samples, "gradient_samples")
    if not 0 <= attack.rho <= 1:
        raise ValueError(f"`rho` must lie in [0, 1]. Received: rho={attack.rho!r}")
