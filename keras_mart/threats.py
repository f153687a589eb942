"""The balls an adversary may move in: `Linf` and `L2`, always cut with the image range [0, 1].

A threat knows its norm and its size. Images are [batch, ...] float32 in [0, 1]; an `epsilon` given to a method
stands in for the threat's own and is a scalar or [batch], one ball for each example.
"""

import dataclasses
import math
import numbers

import keras
import tensorflow as tf
from keras import ops

from keras_mart import randomness

__all__ = ["L2", "Linf", "Threat"]

# Below this L2 norm a gradient counts as zero: dividing by it would only blow up rounding noise.
SMALLEST_NORM = 1e-37
# A length may be longer than the longest by this share.
ROUNDING = 1e-6


def per_example(value, images):
    """A scalar or [batch] value, shaped to broadcast over [batch, ...] images."""
    value = ops.cast(value, images.dtype)
    return ops.reshape(value, (-1,) + (1,) * (len(images.shape) - 1)) if len(value.shape) == 1 else value


def choose(condition, images, others):
    """[batch, ...] the images where the [batch] condition holds, elsewhere the others."""
    # On a CPU it copies whole examples, where `where` looks at each value of a condition that it broadcasts.
    return tf.raw_ops.Select(condition=condition, x=images, y=others)


def _norm(values):
    """[batch, 1, ...] the L2 norm of each example, computed without underflow of its squares."""
    axes = tuple(range(1, len(values.shape)))
    largest = ops.max(ops.abs(values), axis=axes, keepdims=True)
    scale = ops.where(largest > SMALLEST_NORM, largest, 1.0)
    return scale * ops.sqrt(ops.sum(ops.square(values / scale), axis=axes, keepdims=True))


def suggest_255(length):
    """Asks, behind a space, whether a length of 1 or more was meant for images of 0 to 255."""
    return f" Did you mean {length:g} / 255?" if length >= 1 else ""


@dataclasses.dataclass(frozen=True)
class Threat:
    """A ball of radius `epsilon` round each image, in a norm that the subclass gives.

    Args:
        epsilon: radius in input units (images in [0, 1]); 0 leaves the natural image.

    Raises:
        ValueError: `epsilon` is negative or not finite, or the ball holds every image; in `L2` that is found out when
            an attack meets the first images.
    """

    epsilon: float

    def __post_init__(self):
        if not isinstance(self.epsilon, numbers.Real) or not 0 <= self.epsilon < float("inf"):
            raise ValueError(f"`epsilon` must be finite and not negative. Received: epsilon={self.epsilon!r}")
        object.__setattr__(self, "epsilon", float(self.epsilon))

    def check_length(self, length, name, shape=None):
        """Raises ValueError for a length that is farther than images of [0, 1] lie apart, such as 8 for 8 / 255.

        Args:
            length: in input units.
            name: what the message calls it.
            shape: [batch, ...] of the images; without it, only what is too long for images of any shape is found.
        """
        furthest = self._furthest(shape)
        if length > furthest * (1 + ROUNDING):
            raise ValueError(
                f"`{name}` must be at most {furthest:g}, the largest {type(self).__name__} distance of two images in "
                f"[0, 1]. Received: {name}={length:g}.{suggest_255(length)}"
            )

    def widest(self, shape):
        """Returns the ball of this norm that holds all images of a shape, [batch, ...]."""
        return type(self)(self._furthest(shape))

    def _furthest(self, shape):
        """The largest distance of two images in [0, 1] of a shape, or of any shape where it is `None`."""
        return math.inf

    def get_config(self):
        return {"epsilon": self.epsilon}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def _radius(self, images, epsilon):
        return per_example(self.epsilon if epsilon is None else epsilon, images)

    def project(self, candidates, images, epsilon=None):
        """[batch, ...] candidates moved to the nearest point of the ball round images, then clipped to [0, 1].

        The result lies in both. In `L2` it need not be the nearest such point.
        """
        inside = self._into_ball(candidates - images, self._radius(images, epsilon))
        return ops.clip(images + inside, 0.0, 1.0)

    def sample_boundary(self, images, seed, epsilon=None):
        """Random points at the full distance from the images, then clipped to [0, 1]; a seed as in `randomness`."""
        return ops.clip(images + self._direction(images, seed) * self._radius(images, epsilon), 0.0, 1.0)

    def sample(self, images, seed, epsilon=None):
        """Points drawn uniformly from the ball, then clipped to [0, 1]; a seed as in `randomness`."""
        offsets = self._uniform(images, seed) * self._radius(images, epsilon)
        return self.project(images + offsets, images, epsilon)


@keras.saving.register_keras_serializable("keras_mart")
class Linf(Threat):
    """The ball of all images that differ by at most `epsilon` in each value: |x' - x|_inf <= epsilon."""

    def __post_init__(self):
        super().__post_init__()
        self.check_length(self.epsilon, "epsilon")

    def _furthest(self, shape):
        return 1.0

    def ascend(self, candidates, gradient, step_size, seed=None):
        """Candidates moved by `step_size` (scalar or [batch]) along the sign of the gradient."""
        del seed  # the sign is defined everywhere
        return candidates + per_example(step_size, candidates) * ops.sign(gradient)

    def distance(self, candidates, images):
        """[batch] the largest absolute difference of each candidate from its image."""
        return ops.max(ops.abs(candidates - images), axis=tuple(range(1, len(images.shape))))

    def dual(self, gradient):
        """[batch] the dual norm of each gradient: how fast a function rises at most, for each unit of distance."""
        return ops.sum(ops.abs(gradient), axis=tuple(range(1, len(gradient.shape))))

    def _into_ball(self, offsets, radius):
        return ops.clip(offsets, -radius, radius)

    def _uniform(self, images, seed):
        return randomness.uniform(ops.shape(images), seed, -1.0, 1.0)

    def _direction(self, images, seed):
        uniform = self._uniform(images, seed)
        largest = ops.max(ops.abs(uniform), axis=tuple(range(1, len(images.shape))), keepdims=True)
        return uniform / ops.maximum(largest, SMALLEST_NORM)


@keras.saving.register_keras_serializable("keras_mart")
class L2(Threat):
    """The Euclidean ball: the square root of the summed squared differences is at most `epsilon`."""

    def _furthest(self, shape):
        return math.inf if shape is None or None in shape[1:] else math.sqrt(math.prod(shape[1:]))

    def ascend(self, candidates, gradient, step_size, seed=None):
        """Candidates moved by `step_size` along the normalised gradient, a random direction where it is zero.

        Args:
            candidates: [batch, ...] images.
            gradient: [batch, ...].
            step_size: scalar or [batch], in input units.
            seed: of the random directions, as in `randomness`; without it an example with a zero gradient stays.
        """
        norm = _norm(gradient)
        zero = norm <= SMALLEST_NORM
        direction = gradient / ops.where(zero, 1.0, norm)
        if seed is not None:
            direction = ops.where(zero, self._direction(candidates, seed), direction)
        return candidates + per_example(step_size, candidates) * direction

    def distance(self, candidates, images):
        """[batch] the Euclidean distance of each candidate from its image."""
        return ops.reshape(_norm(candidates - images), (-1,))

    def dual(self, gradient):
        """[batch] the dual norm of each gradient, which is the Euclidean norm again."""
        return ops.reshape(_norm(gradient), (-1,))

    def _into_ball(self, offsets, radius):
        norm = _norm(offsets)
        return ops.where(norm > radius, offsets * (radius / ops.maximum(norm, SMALLEST_NORM)), offsets)

    def _uniform(self, images, seed):
        shape = ops.shape(images)
        dimensions = ops.cast(math.prod(shape[1:]), "float32")
        seeds = randomness.split(seed, 2)
        ones = (shape[0],) + (1,) * (len(shape) - 1)
        radius = randomness.uniform(ones, seeds[0]) ** (1.0 / dimensions)
        return radius * self._direction(images, seeds[1])

    def _direction(self, images, seed):
        normal = randomness.normal(ops.shape(images), seed)
        return normal / ops.maximum(_norm(normal), SMALLEST_NORM)
