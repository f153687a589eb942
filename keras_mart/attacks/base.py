"""What every attack shares: how it is called, traced, seeded and serialised."""

import dataclasses
import random

import keras
import tensorflow as tf
from keras import ops

from keras_mart import checks, losses
from keras_mart.attacks import gradients
from keras_mart.attacks.inference import network_of, traced
from keras_mart.attacks.survivors import attack_survivors
from keras_mart.threats import Threat, choose

# Added to a misclassified example's score, so that it beats every correctly classified one.
FOOLED = 1e3


@dataclasses.dataclass(frozen=True)
class Attack:
    """Base of all attacks: frozen, equal by value, serialisable; holds no model and no tensor.

    A subclass gives `perturb(logits, images, labels, seed)`. One that climbs an objective derives from `Climb`, one
    that runs in several rounds from `Rounds`.

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
        images = ops.clip(ops.convert_to_tensor(x, "float32"), 0.0, 1.0)
        self.check_images(images.shape)
        labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
        return self.on_network(network, images, labels, as_seed(seed))

    @property
    def gradients(self):
        """Number of gradients computed for each example, `None` where an attack does not say."""
        return None

    def check_images(self, shape):
        """Raises ValueError where it cannot attack images of this shape, [batch, ...]."""
        self.threat.check_length(self.threat.epsilon, "epsilon", shape)

    def rounds(self, classes):
        """In how many rounds it runs on a network of so many classes; `Rounds` says more."""
        return 1

    def on_network(self, network, images, labels, seed):
        """Adversarial examples from what was checked and converted: float32 images, [batch] int32 labels, a seed."""
        signature = [
            tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None], "int32"), tf.TensorSpec([2], "int32"),
        ]  # fmt: skip
        return traced(network, _key(self), self.perturb, signature)(images, labels, seed)

    def round_on_network(self, network, images, labels, seed, number, candidates):
        """What `Rounds` does in a round; other attacks have one, in which they do all they do."""
        return self.on_network(network, images, labels, seed)

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


class Rounds(Attack):
    """An attack in rounds, each on the examples that are still classified correctly; the others are left alone.

    Of what the rounds find for an example the image with the largest logit margin is returned, for one that is
    misclassified as it is, its natural image.
    """

    def perturb(self, logits, images, labels, seed, number, candidates):
        """One round.

        Args:
            logits: maps [batch, ...] images to [batch, classes] float32.
            images: [batch, ...], classified correctly.
            labels: [batch] integers.
            seed: [2] integers, other ones in each round.
            number: scalar int32, the number of the round, from 0.
            candidates: [batch, ...] what the round before returned; the images in the first.

        Returns:
            [batch, ...] images in the ball.
        """
        raise NotImplementedError

    def on_network(self, network, images, labels, seed):
        return attack_survivors(network, {"": self}, images, labels, seed).images

    def round_on_network(self, network, images, labels, seed, number, candidates):
        of_images, of_labels, of_seed = (
            tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None], "int32"), tf.TensorSpec([2], "int32"),
        )  # fmt: skip
        signature = [of_images, of_labels, of_seed, tf.TensorSpec([], "int32"), of_images]
        return traced(network, _key(self), self.perturb, signature)(images, labels, seed, number, candidates)


def _key(attack):
    """The attack, by whose value what is traced of it is found again: nothing else may tell it from others.

    Raises:
        ValueError: a class that keeps more than its fields.
    """
    unseen = sorted(vars(attack).keys() - {field.name for field in dataclasses.fields(attack)})
    if unseen:
        raise ValueError(
            "All that an attack keeps must be fields of a frozen dataclass, by which attacks are told apart. "
            f"Received: {type(attack).__name__}, which keeps {', '.join(unseen)} besides"
        )
    return attack


def worst_of(times, run, score, images, seed):
    """Of the images that so many independent runs find, for each example those of largest score.

    Args:
        times: number of runs.
        run: maps a [2] integer seed to [batch, ...] images.
        score: maps [batch, ...] images to [batch] values; not called where there is one run.
        images: [batch, ...], which say the shape.
        seed: [2] integers.
    """
    if times == 1:
        return ops.stop_gradient(run(seed))

    def again(number, worst, worst_score):
        candidates = run(tf.random.fold_in(seed, number))
        scores = score(candidates)
        scores = ops.where(ops.isnan(scores), float("inf"), scores)  # no network is right about what it cannot say
        worse = scores > worst_score
        return choose(worse, candidates, worst), ops.where(worse, scores, worst_score)

    nothing_yet = ops.full((ops.shape(images)[0],), -float("inf"))
    return ops.stop_gradient(gradients.loop(again, (images, nothing_yet), times)[0])


def ranked_class(logits, rank):
    """[batch] the class with the largest logit but `rank`, a scalar integer tensor: 0 is the largest itself."""
    order = ops.argsort(-logits, axis=-1)
    return ops.take(order, rank, axis=-1)


def as_seed(seed):
    """[2] int32 from an integer, from two integers, or from `None` (drawn from Python's `random`)."""
    if seed is None:
        seed = random.getrandbits(31)
    seed = ops.convert_to_tensor(seed, "int32")
    return seed if len(seed.shape) == 1 else ops.stack([seed, ops.zeros_like(seed)])
