"""Base classes of the attacks: calling, tracing, seeding and serialisation."""

import dataclasses
import random
from collections.abc import Mapping
from typing import Any, Self

import keras
import tensorflow as tf
from keras import ops

from keras_mart import checks, losses, randomness
from keras_mart.attacks import gradients
from keras_mart.attacks.inference import network_of, traced
from keras_mart.attacks.survivors import as_float32, attack_survivors
from keras_mart.threats import Threat, choose
from keras_mart.typing import ArrayLike, ImageFunction, Scalar, Seed, Shape, Tensor

# Added to a misclassified example's score, so that it beats every correctly classified one.
FOOLED_BONUS = 1e3


@dataclasses.dataclass(frozen=True)
class Attack:
    """Base of all attacks: frozen, equal by value, serialisable; holds no model and no tensor.

    A subclass implements `perturb(logits, images, labels, seed)`. An attack that climbs an objective derives from
    `Climb`, one that runs in several rounds from `Rounds`.

    Args:
        threat: the ball, `keras_mart.Linf` or `keras_mart.L2`.

    Attributes:
        skips_misclassified: whether examples that are misclassified already are left as they are.
        reuses_candidates: whether a round starts from the images that the previous round returned.
        minimises: whether it looks for the nearest adversarial image: one run gives accuracy at every epsilon.

    Raises:
        ValueError: `threat` is not a `Threat`.
    """

    skips_misclassified = reuses_candidates = minimises = False

    threat: Threat

    def __post_init__(self):
        if not isinstance(self.threat, Threat):
            raise ValueError(f"`threat` must be a ball such as keras_mart.Linf(8 / 255). Received: {self.threat!r}")

    def __call__(self, model: keras.Model, x: ArrayLike, labels: ArrayLike, seed: Seed = None) -> Tensor:
        """Returns adversarial examples for a classifier.

        The attack is traced once for each model and image shape, for any batch size. The model runs in evaluation
        mode and need not be compiled.

        Args:
            model: any Keras classifier that returns logits, or a wrapped one.
            x: [batch, ...] images in [0, 1].
            labels: [batch] or [batch, 1] integers; of soft labels [batch, classes] the class with the largest share.
            seed: an integer or [2] integers. The same seed gives the same example for an image at the same position,
                also in a larger batch. `None` draws a new one.

        Returns:
            [batch, ...] float32 images, inside the ball and [0, 1].

        Raises:
            ValueError: images outside [0, 1], labels that do not fit, or a model that does not return logits.
        """
        network = network_of(model)
        if not tf.is_symbolic_tensor(x):
            checks.batch(network, x, labels)
        images = as_float32(x)
        self.check_task(network, images)
        labels = losses.hard(labels)
        seeds = randomness.example_seeds(as_seed(seed), ops.arange(ops.shape(images)[0], dtype="int32"))
        return self.on_network(network, images, labels, seeds)

    @property
    def gradients(self) -> int | None:
        """Number of gradients computed for each example; `None` where it is unknown."""
        return None

    def check_images(self, shape: Shape) -> None:
        """Raises ValueError if the attack does not support images of this shape, [batch, ...]."""
        self.threat.check_length(self.threat.epsilon, "epsilon", shape)

    def check_task(self, network: keras.Model, images: Tensor) -> None:
        """Raises ValueError if the attack does not support this network on these [batch, ...] images."""
        self.check_images(images.shape)

    @property
    def stages(self) -> Mapping[str, "Attack"]:
        """Name to attack, in order, of the attacks that this one runs; by default only itself, named ""."""
        return {"": self}

    def rounds(self, classes: int) -> int:
        """Returns the number of rounds on a network of this many classes; more than 1 only for `Rounds`."""
        return 1

    def on_network(self, network: keras.Model, images: Tensor, labels: Tensor, seeds: Tensor) -> Tensor:
        """Returns adversarial examples for checked inputs: float32 images, [batch] int32 labels, [batch, 2] seeds."""
        if self.skips_misclassified:
            return attack_survivors(network, self, images, labels, seeds)
        return self.in_round(network, images, labels, seeds)

    def in_round(
        self, network: keras.Model, images: Tensor, labels: Tensor, seeds: Tensor,
        number: int = 0, candidates: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Runs one round.

        Args:
            network, images, labels, seeds: as in `on_network`.
            number: the number of the round, from 0.
            candidates: [batch, ...] the images that the previous round returned.
        """
        return self._traced(network, images)(images, labels, seeds)

    def _traced(self, network, images, *more_specs, key=None):
        """Returns `perturb`, traced for images of this shape.

        Args:
            more_specs: `tf.TensorSpec` of further arguments.
            key: as in `inference.traced`; the attack by default.
        """
        image_spec, label_spec = tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None], "int32")
        signature = [image_spec, label_spec, tf.TensorSpec([None, 2], "int32"), *more_specs]
        return traced(network, key or _trace_key(self), self.perturb, signature)

    def perturb(
        self, logits: ImageFunction, images: Tensor, labels: Tensor, seed: ArrayLike, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Computes adversarial examples: the algorithm of the attack.

        Args:
            logits: maps [batch, ...] images to [batch, classes] float32.
            images: [batch, ...] float32 in [0, 1].
            labels: [batch] int32.
            seed: [2] integers, or [batch, 2], one for each example (`keras_mart.randomness`).
            *args, **kwargs: further arguments of a subclass, such as those of `Rounds`.

        Returns:
            [batch, ...] images in the ball.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: keras.saving.serialize_keras_object(value) for name, value in fields.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


class Climb(Attack):
    """An attack that climbs an objective; a training method passes its own objective to `maximise`.

    Attributes:
        leaves_ball: whether images that `maximise` returns may lie outside the ball.
    """

    leaves_ball = False

    @property
    def starts_at_image(self) -> bool:
        """Whether the first gradient is computed at the natural image itself."""
        return False

    def loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Returns the [batch] objective used when no method passes its own: the cross-entropy by default."""
        return losses.cross_entropy(labels, logits)

    def maximise(
        self, objective: ImageFunction, x: Tensor, epsilon: Scalar | None = None, seed: Seed = None,
        score: ImageFunction | None = None,
    ) -> Tensor:  # fmt: skip
        """Maximises an objective over the ball around x; the images returned lie in it unless `leaves_ball`.

        Args:
            objective: maps [batch, ...] images to [batch] values, differentiable.
            x: [batch, ...] float32 images in [0, 1].
            epsilon: scalar or [batch], in place of the threat's own; step sizes scale with it.
            seed: an integer, [2] integers, or [batch, 2], one for each example (`keras_mart.randomness`); `None` draws
                a new one.
            score: maps images to [batch] values by which the best of several restarts is chosen; the objective
                by default.

        Returns:
            [batch, ...] float32 images, without a gradient.
        """
        raise NotImplementedError

    def scaled(self, length: float, epsilon: Scalar | None) -> Scalar:
        """Scales a length, given for the threat's own epsilon, to another epsilon: a scalar, [batch], or `None`."""
        if epsilon is None:
            return length
        if not self.threat.epsilon > 0:
            raise ValueError(f"An attack given an epsilon must have a positive one itself. Received: {self}")
        return epsilon * (length / self.threat.epsilon)

    def perturb(self, logits: ImageFunction, images: Tensor, labels: Tensor, seed: ArrayLike) -> Tensor:
        def objective(candidates):
            return self.loss(labels, logits(candidates))

        def score(candidates):
            outputs = logits(candidates)
            fooled = losses.margin(labels, outputs) > 0
            return ops.where(fooled, FOOLED_BONUS, 0.0) + self.loss(labels, outputs)

        return self.maximise(objective, images, seed=seed, score=score)


class Rounds(Attack):
    """An attack in rounds, each on the examples that are still classified correctly.

    Of the images found for an example, the one with the largest logit margin is returned. An example whose natural
    image is misclassified keeps it.
    """

    skips_misclassified = True

    def perturb(
        self, logits: ImageFunction, images: Tensor, labels: Tensor, seed: ArrayLike, number: Tensor, candidates: Tensor
    ) -> Tensor:
        """Computes one round.

        Args:
            logits, images, labels: as in `Attack.perturb`; the images are classified correctly.
            seed: as in `Attack.perturb`; each round gets a different one.
            number: scalar int32, the number of the round, from 0.
            candidates: [batch, ...] the images that the previous round returned; in the first round the images.

        Returns:
            [batch, ...] images in the ball.
        """
        raise NotImplementedError

    def in_round(
        self, network: keras.Model, images: Tensor, labels: Tensor, seeds: Tensor,
        number: int = 0, candidates: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Runs one round; the arguments are those of `Attack.in_round`."""
        more_specs = tf.TensorSpec([], "int32"), tf.TensorSpec([None, *images.shape[1:]])
        candidates = images if candidates is None else candidates
        seeds = randomness.fold_in(seeds, number)  # different ones in each round
        return self._traced(network, images, *more_specs)(images, labels, seeds, number, candidates)


def _trace_key(attack):
    """Returns the attack itself: traces are looked up by its value, so it must have no state besides its fields.

    Raises:
        ValueError: the attack has attributes that are not fields.
    """
    hidden = sorted(vars(attack).keys() - {field.name for field in dataclasses.fields(attack)})
    if hidden:
        raise ValueError(
            "An attribute of an attack must be a field of its frozen dataclass, since attacks are compared by fields. "
            f"Received: {type(attack).__name__}, which also has {', '.join(hidden)}"
        )
    return attack


def worst_of_runs(times, run, score, images, seed):
    """Returns, for each example, the image of largest score that several independent runs find.

    Args:
        times: number of runs.
        run: maps a seed to [batch, ...] images.
        score: maps [batch, ...] images to [batch] values; not called if there is only one run.
        images: [batch, ...], for their shape.
        seed: [2] or [batch, 2] integers.
    """
    if times == 1:
        return ops.stop_gradient(run(seed))

    def next_run(number, worst, worst_score):
        candidates = run(randomness.fold_in(seed, number))
        scores = score(candidates)
        scores = ops.where(ops.isnan(scores), float("inf"), scores)  # an image without a prediction is misclassified
        worse = scores > worst_score
        return choose(worse, candidates, worst), ops.where(worse, scores, worst_score)

    lowest = ops.full((ops.shape(images)[0],), -float("inf"))
    return ops.stop_gradient(gradients.loop(next_run, (images, lowest), times)[0])


def ranked_class(logits, rank):
    """Returns the [batch] class of this rank by logit; `rank` is a scalar integer tensor, 0 for the largest logit."""
    order = ops.argsort(-logits, axis=-1)
    return ops.take(order, rank, axis=-1)


def as_seed(seed):
    """Returns a seed as int32: [2] for a single integer or for `None` (drawn from Python's `random`)."""
    if isinstance(seed, randomness.Rows):
        return seed
    if seed is None:
        seed = random.getrandbits(31)
    seed = ops.convert_to_tensor(seed, "int32")
    return seed if len(seed.shape) else ops.stack([seed, ops.zeros_like(seed)])
