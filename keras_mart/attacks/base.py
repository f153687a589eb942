"""What every attack shares: how it is called, traced, seeded and serialised."""

import dataclasses
import random

import keras
import tensorflow as tf
from keras import ops

from keras_mart import checks, losses, randomness
from keras_mart.attacks import gradients
from keras_mart.attacks.inference import network_of, traced
from keras_mart.attacks.survivors import attack_survivors, prepared
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

    Attributes:
        spares: whether it leaves alone what is misclassified already.
        carries: whether a round goes on from the images that the round before returned.
        minimises: whether it looks for the nearest adversarial image: one run gives accuracy at every epsilon.

    Raises:
        ValueError: a threat that is none.
    """

    spares = carries = minimises = False

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
            labels: [batch] or [batch, 1] integers; of soft labels [batch, classes] the class with the largest share.
            seed: an integer or [2] integers; the same seed gives the same examples, of an image at the same place in
                larger batches too. `None` takes a fresh one.

        Returns:
            [batch, ...] float32 images, inside the ball and [0, 1].

        Raises:
            ValueError: images outside [0, 1], labels that do not fit, or a model that does not return logits.
        """
        network = network_of(model)
        if not tf.is_symbolic_tensor(x):
            checks.batch(network, x, labels)
        images = prepared(x)
        self.check_task(network, images)
        labels = losses.hard(labels)
        seeds = randomness.of_examples(as_seed(seed), ops.arange(ops.shape(images)[0], dtype="int32"))
        return self.on_network(network, images, labels, seeds)

    @property
    def gradients(self):
        """Number of gradients computed for each example, `None` where an attack does not say."""
        return None

    def check_images(self, shape):
        """Raises ValueError where it cannot attack images of this shape, [batch, ...]."""
        self.threat.check_length(self.threat.epsilon, "epsilon", shape)

    def check_task(self, network, images):
        """Raises ValueError where it cannot attack this network on these [batch, ...] images."""
        self.check_images(images.shape)

    @property
    def stages(self):
        """Name to attack of what it is made of, in order: of itself, or of several."""
        return {"": self}

    def rounds(self, classes):
        """Number of rounds on a network of so many classes; `Rounds` says more."""
        return 1

    def on_network(self, network, images, labels, seeds):
        """Adversarial examples from what was checked: float32 images, [batch] int32 labels, [batch, 2] seeds."""
        if self.spares:
            return attack_survivors(network, self, images, labels, seeds)
        return self.in_round(network, images, labels, seeds)

    def in_round(self, network, images, labels, seeds, number=0, candidates=None):
        """What a round finds, that of its number, from 0; `candidates` are the images that the round before found."""
        return self._traced(network, images)(images, labels, seeds)

    def _traced(self, network, images, *more, key=None):
        """`perturb`, traced for these images; `more` are signatures of further arguments, `key` is the attack's own."""
        of_images, of_labels = tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([None], "int32")
        signature = [of_images, of_labels, tf.TensorSpec([None, 2], "int32"), *more]
        return traced(network, key or _key(self), self.perturb, signature)

    def perturb(self, logits, images, labels, seed):
        """The attack itself.

        Args:
            logits: maps [batch, ...] images to [batch, classes] float32.
            images: [batch, ...] float32 in [0, 1].
            labels: [batch] int32.
            seed: [2] integers, or [batch, 2], one for each example (`keras_mart.randomness`).

        Returns:
            [batch, ...] images in the ball.
        """
        raise NotImplementedError

    def get_config(self):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: keras.saving.serialize_keras_object(value) for name, value in fields.items()}

    @classmethod
    def from_config(cls, config):
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


class Climb(Attack):
    """An attack that climbs an objective: a training method lends it one with `maximise`.

    Attributes:
        leaves_ball: whether what `maximise` gives may lie outside the ball.
        starts_at_image: whether its first gradient is that at the natural image itself.
    """

    leaves_ball = starts_at_image = False

    def loss(self, labels, logits):
        """[batch] what the attack climbs when no method lends it an objective: the cross-entropy by default."""
        return losses.cross_entropy(labels, logits)

    def maximise(self, objective, x, epsilon=None, seed=None, score=None):
        """Images in the ball round x (unless it `leaves_ball`) where the objective is as large as it can make it.

        Args:
            objective: maps [batch, ...] images to [batch] values, differentiable.
            x: [batch, ...] float32 images in [0, 1].
            epsilon: scalar or [batch], in place of the threat's own; step sizes scale with it.
            seed: an integer, [2] integers, or [batch, 2], one for each example (`keras_mart.randomness`); `None` takes
                a fresh one.
            score: maps images to [batch] values by which the best of several restarts is chosen; the objective
                by default.

        Returns:
            [batch, ...] float32 images, without a gradient.
        """
        raise NotImplementedError

    def scaled(self, length, epsilon):
        """A length that belongs to the threat's own epsilon, for another one: a scalar or [batch], or `None`."""
        if epsilon is None:
            return length
        if not self.threat.epsilon > 0:
            raise ValueError(f"An attack given an epsilon must have a positive one itself. Received: {self}")
        return epsilon * (length / self.threat.epsilon)

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

    spares = True

    def perturb(self, logits, images, labels, seed, number, candidates):
        """One round.

        Args:
            logits, images, labels: as in `Attack.perturb`; the images are classified correctly.
            seed: as there, another one in each round.
            number: scalar int32, the number of the round, from 0.
            candidates: [batch, ...] what the round before returned; the images in the first.

        Returns:
            [batch, ...] images in the ball.
        """
        raise NotImplementedError

    def in_round(self, network, images, labels, seeds, number=0, candidates=None):
        more = tf.TensorSpec([], "int32"), tf.TensorSpec([None, *images.shape[1:]])
        candidates = images if candidates is None else candidates
        seeds = randomness.fold_in(seeds, number)  # other ones in each round
        return self._traced(network, images, *more)(images, labels, seeds, number, candidates)


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
        run: maps a seed to [batch, ...] images.
        score: maps [batch, ...] images to [batch] values; not called where there is one run.
        images: [batch, ...], which say the shape.
        seed: [2] or [batch, 2] integers.
    """
    if times == 1:
        return ops.stop_gradient(run(seed))

    def again(number, worst, worst_score):
        candidates = run(randomness.fold_in(seed, number))
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
    """A seed as int32: integers as they are, [2] from a single one or from `None` (drawn from Python's `random`)."""
    if isinstance(seed, randomness.Rows):
        return seed
    if seed is None:
        seed = random.getrandbits(31)
    seed = ops.convert_to_tensor(seed, "int32")
    return seed if len(seed.shape) else ops.stack([seed, ops.zeros_like(seed)])
