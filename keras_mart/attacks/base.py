"""What every attack shares: how it is called, traced, seeded and serialised, and how it differentiates."""

import dataclasses
import random

import keras
import tensorflow as tf
from keras import ops

from keras_mart import checks, losses
from keras_mart.attacks.inference import network_of, traced
from keras_mart.threats import Threat, per_example

# A scaled gradient whose largest entry is under FAINT gets a larger scale the next time, one under LOST at once.
FAINT, LOST = 2.0**-4, 2.0**-14
FIRST_SCALE, LARGEST_SCALE = 2.0**10, 2.0**100
FAINT_FACTOR, LOST_FACTOR, OVERFLOW_FACTOR = 2.0**4, 2.0**20, 2.0**-8
# So many scales are tried for one gradient: enough to come from the first to the largest.
ATTEMPTS = 6
# Added to a misclassified example's score, so that it beats every correctly classified one.
FOOLED = 1e3


@dataclasses.dataclass(frozen=True)
class Attack:
    """Base of all attacks: frozen, equal by value, serialisable; holds no model and no tensor.

    A subclass gives `perturb(logits, images, labels, seed)`. One that climbs an objective derives from `Climb`.

    Args:
        threat: the ball, `keras_mart.Linf` or `keras_mart.L2`.

    Raises:
        ValueError: a threat that is none.
    """

    threat: Threat

    def __post_init__(self):
        if not isinstance(self.threat, Threat):
            raise ValueError(f"`threat` must be a ball such as keras_mart.Linf(8 / 255). Received: {self.threat!r}")

    def __call__(self, model, x, labels, seed=None):
        """Adversarial examples for a classifier.

        Traced once for each model and image shape, with the batch size left open. The model runs in evaluation
        mode and need not be compiled.

        Args:
            model: any Keras classifier that returns logits, or a wrapped one.
            x: [batch, ...] images in [0, 1].
            labels: [batch] or [batch, 1] integers.
            seed: an integer or [2] integers; the same seed gives the same examples. `None` takes a fresh one.

        Returns:
            [batch, ...] float32 images, inside the ball and [0, 1].

        Raises:
            ValueError: images outside [0, 1], labels that do not fit, or a model that does not return logits.
        """
        network = network_of(model)
        if not tf.is_symbolic_tensor(x):
            checks.batch(network, x, labels)
        images = ops.convert_to_tensor(x, "float32")
        labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
        signature = [
            tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None], "int32"), tf.TensorSpec([2], "int32"),
        ]  # fmt: skip
        return traced(network, self, self.perturb, signature)(images, labels, as_seed(seed))

    def perturb(self, logits, images, labels, seed):
        """The attack itself: `logits` maps [batch, ...] images to [batch, classes] float32."""
        raise NotImplementedError

    def get_config(self):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: keras.saving.serialize_keras_object(value) for name, value in fields.items()}

    @classmethod
    def from_config(cls, config):
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


class Climb(Attack):
    """An attack that climbs an objective: a training method lends it one with `maximise`."""

    def loss(self, labels, logits):
        """[batch] what the attack climbs when no method lends it an objective: the cross-entropy by default."""
        return losses.cross_entropy(labels, logits)

    def maximise(self, objective, x, epsilon=None, seed=None, score=None):
        """Images in the ball round x on which the objective is as large as the attack can make it.

        Args:
            objective: maps [batch, ...] images to [batch] values, differentiable.
            x: [batch, ...] float32 images in [0, 1].
            epsilon: scalar or [batch], in place of the threat's own; step sizes scale with it.
            seed: an integer or [2] integers; `None` takes a fresh one.
            score: maps images to [batch] values by which the best of several restarts is chosen; the objective
                by default.

        Returns:
            [batch, ...] float32 images, without a gradient.
        """
        raise NotImplementedError

    def perturb(self, logits, images, labels, seed):
        def objective(candidates):
            return self.loss(labels, logits(candidates))

        def score(candidates):
            outputs = logits(candidates)
            fooled = losses.margin(labels, outputs) > 0
            return ops.where(fooled, FOOLED, 0.0) + self.loss(labels, outputs)

        return self.maximise(objective, images, seed=seed, score=score)


def as_seed(seed):
    """[2] int32 from an integer, from two integers, or from `None` (drawn from Python's `random`)."""
    if seed is None:
        seed = random.getrandbits(31)
    seed = ops.convert_to_tensor(seed, "int32")
    return seed if len(seed.shape) == 1 else ops.stack([seed, ops.zeros_like(seed)])


def first_scale(images):
    """[batch] the scale to begin `scaled_gradient` with."""
    return ops.full((ops.shape(images)[0],), FIRST_SCALE)


def scaled_gradient(objective, images, scale):
    """An objective's gradient for use as a direction: each example's is multiplied by a power of two.

    The gradient with respect to the logits of a confident example underflows in float16. Multiplying it at the
    top of the backward pass, by a factor that each example adapts as the attack goes on, keeps it alive; powers of
    two leave the direction exact. Where a gradient is lost all the same, nearly to zero or to infinity, it is computed
    again with another factor; what is lost for good is zero.

    Args:
        objective: maps [batch, ...] images to [batch] float32.
        images: [batch, ...].
        scale: [batch] positive powers of two.

    Returns:
        ([batch, ...] scaled gradient, [batch] scale for the next call).
    """

    def attempt(count, _, scale, __):
        gradient = _gradient(objective, images, scale)
        axes = tuple(range(1, len(images.shape)))
        size = ops.max(ops.abs(gradient), axis=axes)
        finite = ops.all(ops.isfinite(gradient), axis=axes)
        again = ops.any(ops.logical_or(~finite, ops.logical_and(size < LOST, scale < LARGEST_SCALE)))
        factor = ops.where(size < LOST, LOST_FACTOR, ops.where(size < FAINT, FAINT_FACTOR, 1.0))
        scale = ops.minimum(scale * ops.where(finite, factor, OVERFLOW_FACTOR), LARGEST_SCALE)
        kept = ops.where(per_example(finite, images) > 0, gradient, 0.0)
        return count + 1, kept, scale, again

    state = (0, ops.zeros_like(images), scale, True)
    _, gradient, scale, _ = ops.while_loop(lambda *state: state[-1], attempt, state, maximum_iterations=ATTEMPTS)
    return gradient, scale


def _gradient(objective, images, scale):
    with tf.GradientTape() as tape:
        tape.watch(images)
        values = objective(images)
    return tape.gradient(values, images, output_gradients=scale, unconnected_gradients="zero")
