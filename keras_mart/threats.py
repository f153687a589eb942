"""The balls of allowed perturbations: `Linf` and `L2`, always intersected with the image range [0, 1].

Images are [batch, ...] float32 in [0, 1]. An `epsilon` passed to a method replaces the threat's own; it is a scalar or
[batch], one radius for each example.
"""

import dataclasses
import math
import numbers
from typing import Any, Self

import keras
import tensorflow as tf
from keras import ops

from keras_mart import randomness
from keras_mart.typing import ArrayLike, Scalar, Shape, Tensor

__all__ = ["L2", "Linf", "Threat"]

# A gradient of smaller L2 norm counts as zero: dividing by it would only amplify rounding noise.
SMALLEST_NORM = 1e-37
# The relative tolerance by which a length may exceed a limit.
ROUNDING = 1e-6


def per_example(value, images):
    """Returns a scalar or [batch] value in a shape that broadcasts over [batch, ...] images."""
    value = ops.cast(value, images.dtype)
    return ops.reshape(value, (-1,) + (1,) * (len(images.shape) - 1)) if len(value.shape) == 1 else value


def choose(condition, images, others):
    """Returns [batch, ...] the images where the [batch] condition is true, elsewhere the others."""
    # Faster than `where` on a CPU: it copies whole examples instead of broadcasting the condition.
    return tf.raw_ops.Select(condition=condition, x=images, y=others)


def _norm(values):
    """Returns the [batch, 1, ...] L2 norm of each example, computed without underflow of its squares."""
    axes = tuple(range(1, len(values.shape)))
    largest = ops.max(ops.abs(values), axis=axes, keepdims=True)
    scale = ops.where(largest > SMALLEST_NORM, largest, 1.0)
    return scale * ops.sqrt(ops.sum(ops.square(values / scale), axis=axes, keepdims=True))


def suggest_255(length):
    """Returns " Did you mean ... / 255?" for a length of 1 or more, which suits images in [0, 255]; otherwise ""."""
    return f" Did you mean {length:g} / 255?" if length >= 1 else ""


@dataclasses.dataclass(frozen=True)
class Threat:
    """A ball of radius `epsilon` around each image; the subclass defines the norm.

    Args:
        epsilon: radius in input units (images in [0, 1]); a ball of radius 0 contains only the natural image.

    Raises:
        ValueError: `epsilon` is negative or not finite, or larger than any distance between two images; for `L2` the
            latter is raised when an attack gets the first images.
    """

    epsilon: float

    def __post_init__(self):
        if not isinstance(self.epsilon, numbers.Real) or not 0 <= self.epsilon < float("inf"):
            raise ValueError(f"`epsilon` must be finite and not negative. Received: epsilon={self.epsilon!r}")
        object.__setattr__(self, "epsilon", float(self.epsilon))

    def check_length(self, length: float, name: str, shape: Shape | None = None) -> None:
        """Raises ValueError for a length larger than any distance between two images in [0, 1], such as 8 for 8 / 255.

        Args:
            length: in input units.
            name: the name of the length in the message.
            shape: [batch, ...] of the images; without it, only lengths that are too large for every shape are rejected.
        """
        largest = self._largest_distance(shape)
        if length > largest * (1 + ROUNDING):
            raise ValueError(
                f"`{name}` must be at most {largest:g}, the largest {type(self).__name__} distance between two images "
                f"in [0, 1]. Received: {name}={length:g}.{suggest_255(length)}"
            )

    def widest(self, shape: Shape) -> Self:
        """Returns the ball of this norm that contains all images of a shape, [batch, ...]."""
        return type(self)(self._largest_distance(shape))

    def _largest_distance(self, shape):
        """Returns the largest distance between two images in [0, 1] of a shape; `None` means any shape."""
        return math.inf

    def get_config(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)

    def _project_offsets(self, offsets, radius):
        """Returns the nearest [batch, ...] offsets of at most this length."""
        raise NotImplementedError

    def _uniform(self, images, seed):
        """Returns random offsets for images, drawn uniformly from the unit ball."""
        raise NotImplementedError

    def _direction(self, images, seed):
        """Returns random offsets for images, of length 1."""
        raise NotImplementedError

    def _radius(self, images, epsilon):
        return per_example(self.epsilon if epsilon is None else epsilon, images)

    def ascend(self, candidates: Tensor, gradient: Tensor, step_size: Scalar, seed: ArrayLike | None = None) -> Tensor:
        """Moves candidates by `step_size` in the direction of steepest ascent in this norm.

        Args:
            candidates: [batch, ...] images.
            gradient: [batch, ...].
            step_size: scalar or [batch], in input units.
            seed: of random directions for zero gradients, as in `randomness`; `None` for none.
        """
        raise NotImplementedError

    def distance(self, candidates: Tensor, images: Tensor) -> Tensor:
        """Returns the [batch] distance of each candidate from its image."""
        raise NotImplementedError

    def dual(self, gradient: Tensor) -> Tensor:
        """Returns the [batch] dual norm of each gradient: the largest increase of a function per unit of distance."""
        raise NotImplementedError

    def project(self, candidates: Tensor, images: Tensor, epsilon: Scalar | None = None) -> Tensor:
        """Projects [batch, ...] candidates onto the ball around images, then clips them to [0, 1].

        The result lies in both. In `L2` it need not be the nearest such point.
        """
        offsets = self._project_offsets(candidates - images, self._radius(images, epsilon))
        return ops.clip(images + offsets, 0.0, 1.0)

    def sample_boundary(self, images: Tensor, seed: ArrayLike, epsilon: Scalar | None = None) -> Tensor:
        """Draws random points on the boundary of the ball, then clips them to [0, 1]; a seed as in `randomness`."""
        return ops.clip(images + self._direction(images, seed) * self._radius(images, epsilon), 0.0, 1.0)

    def sample(self, images: Tensor, seed: ArrayLike, epsilon: Scalar | None = None) -> Tensor:
        """Draws points uniformly from the ball, then clips them to [0, 1]; a seed as in `randomness`."""
        offsets = self._uniform(images, seed) * self._radius(images, epsilon)
        return self.project(images + offsets, images, epsilon)


@keras.saving.register_keras_serializable("keras_mart")
class Linf(Threat):
    """The maximum-norm ball: images that differ by at most `epsilon` in each value, |x' - x|_inf <= epsilon."""

    def __post_init__(self):
        super().__post_init__()
        self.check_length(self.epsilon, "epsilon")

    def _largest_distance(self, shape):
        return 1.0

    def ascend(self, candidates: Tensor, gradient: Tensor, step_size: Scalar, seed: ArrayLike | None = None) -> Tensor:
        """Moves candidates by `step_size` (scalar or [batch]) along the sign of the gradient."""
        del seed  # the sign is defined everywhere
        return candidates + per_example(step_size, candidates) * ops.sign(gradient)

    def distance(self, candidates: Tensor, images: Tensor) -> Tensor:
        """Returns the [batch] largest absolute difference of each candidate from its image."""
        return ops.max(ops.abs(candidates - images), axis=tuple(range(1, len(images.shape))))

    def dual(self, gradient: Tensor) -> Tensor:
        """Returns the [batch] L1 norm of each gradient."""
        return ops.sum(ops.abs(gradient), axis=tuple(range(1, len(gradient.shape))))

    def _project_offsets(self, offsets, radius):
        return ops.clip(offsets, -radius, radius)

    def _uniform(self, images, seed):
        return randomness.uniform(ops.shape(images), seed, -1.0, 1.0)

    def _direction(self, images, seed):
        uniform = self._uniform(images, seed)
        largest = ops.max(ops.abs(uniform), axis=tuple(range(1, len(images.shape))), keepdims=True)
        return uniform / ops.maximum(largest, SMALLEST_NORM)


@keras.saving.register_keras_serializable("keras_mart")
class L2(Threat):
    """The Euclidean ball: |x' - x|_2 <= epsilon."""

    def _largest_distance(self, shape):
        return math.inf if shape is None or None in shape[1:] else math.sqrt(math.prod(shape[1:]))

    def ascend(self, candidates: Tensor, gradient: Tensor, step_size: Scalar, seed: ArrayLike | None = None) -> Tensor:
        """Moves candidates by `step_size` along the normalised gradient, or in a random direction if it is zero.

        Args:
            candidates: [batch, ...] images.
            gradient: [batch, ...].
            step_size: scalar or [batch], in input units.
            seed: of the random directions, as in `randomness`; without it examples with a zero gradient do not move.
        """
        norm = _norm(gradient)
        zero = norm <= SMALLEST_NORM
        direction = gradient / ops.where(zero, 1.0, norm)
        if seed is not None:
            direction = ops.where(zero, self._direction(candidates, seed), direction)
        return candidates + per_example(step_size, candidates) * direction

    def distance(self, candidates: Tensor, images: Tensor) -> Tensor:
        """Returns the [batch] Euclidean distance of each candidate from its image."""
        return ops.reshape(_norm(candidates - images), (-1,))

    def dual(self, gradient: Tensor) -> Tensor:
        """Returns the [batch] Euclidean norm of each gradient; the norm is its own dual."""
        return ops.reshape(_norm(gradient), (-1,))

    def _project_offsets(self, offsets, radius):
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
