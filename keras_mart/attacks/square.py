"""Square Attack: random search with squares, without gradients."""

import dataclasses

import keras
import tensorflow as tf
from keras import ops

from keras_mart import checks, losses, randomness
from keras_mart.attacks import base, gradients
from keras_mart.threats import L2, choose
from keras_mart.typing import ArrayLike, ImageFunction, Shape, Tensor

# The numbers of queries after which the area of the squares is halved.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Queries in a round; after each round the fooled examples are removed.
ROUND = 100
# The L2 attack starts from tiles of a fifth of the image's height; the size of its windows is odd and at least this.
TILES, SMALLEST_WINDOW = 5, 3
TINY = 1e-12


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class Square(base.Rounds):
    """Square Attack: random search that changes a random square per query and keeps changes that increase the margin.

    In Linf it starts from vertical stripes and sets each channel of a square to x - epsilon or x + epsilon. In L2 it
    moves the perturbation of one window to another, in the shape of two opposite bumps, and uses the full epsilon. The
    squares shrink as `p_init` is halved after 10, 50, 200, 500, 1,000, 2,000, 4,000, 6,000 and 8,000 queries. It needs
    no gradient, so gradient masking does not stop it: where it beats the gradient attacks, they failed.

    Differences: follows the official code as AutoAttack runs it (the margin is the loss, the schedule is not rescaled
    to the number of queries, all examples get the same square, and no square begins at the last possible row or
    column). A margin of exactly 0 does not end the search, since the label may still be predicted. Fooled examples
    leave the batch after every 100 queries rather than immediately. Images with at most 4 channels may also be [batch,
    channels, height, width].

    Args:
        threat: the ball, `Linf` or `L2`.
        queries: number of forward passes for each example, besides that of the start.
        p_init: the share of the image's area that the first squares cover.

    Raises:
        ValueError: `queries` not positive, or `p_init` outside (0, 1]; when called, images that are not
            [batch, height, width, channels], or, in L2, smaller than 5 x 5 pixels.

    Reference: Andriushchenko et al., arXiv 1912.00049, algorithms 1 to 3; github.com/fra31/auto-attack.
    """

    queries: int = 5000
    _: dataclasses.KW_ONLY
    p_init: float = 0.8

    gradients = 0
    reuses_candidates = True

    def __post_init__(self):
        super().__post_init__()
        checks.positive_integer(self.queries, "queries")
        if not 0 < self.p_init <= 1:
            raise ValueError(f"`p_init` must lie in (0, 1]. Received: p_init={self.p_init!r}")

    def check_images(self, shape: Shape) -> None:
        super().check_images(shape)
        if len(shape) != 4:
            raise ValueError(f"Square needs images [batch, height, width, channels]. Received: shape {tuple(shape)}")
        size = shape[2:] if checks.is_channels_first(shape) else shape[1:3]
        if isinstance(self.threat, L2) and min(size) < TILES:
            raise ValueError(f"Square in L2 needs images of {TILES} x {TILES} or more. Received: shape {tuple(shape)}")

    def rounds(self, classes: int) -> int:
        return -(-self.queries // ROUND)

    def perturb(
        self, logits: ImageFunction, images: Tensor, labels: Tensor, seed: ArrayLike, number: Tensor, candidates: Tensor
    ) -> Tensor:
        if not checks.is_channels_first(images.shape):
            return self._search(logits, images, labels, seed, number, candidates)
        images, candidates = (ops.moveaxis(each, 1, -1) for each in (images, candidates))
        found = self._search(
            lambda each: logits(ops.moveaxis(each, -1, 1)), images, labels, seed, number, candidates
        )  # fmt: skip
        return ops.moveaxis(found, -1, 1)

    def _search(self, logits, images, labels, seed, number, candidates):
        """Computes one round on [batch, height, width, channels] images."""
        functions = _l2 if isinstance(self.threat, L2) else _linf
        start, change = functions(self.threat.epsilon, images, seed)
        candidates = tf.cond(number == 0, start, lambda: candidates)

        def margin(current):
            return losses.margin(labels, logits(current))

        # Each round gets examples that are classified correctly, even if the fast view rounds their margin above 0.
        start_margin = margin(candidates)
        threshold = ops.maximum(start_margin, 0.0)

        def query(count, current, largest):
            query_number = number * ROUND + count
            changed = change(current, self._area(query_number), count)
            found = margin(changed)
            # A fooled example is not changed any more. At a margin of 0 it may still be classified correctly.
            better = ops.logical_and(found > largest, largest <= threshold)
            current = choose(better, changed, current)
            return current, ops.where(better, found, largest)

        times = ROUND if self.queries % ROUND == 0 else ops.minimum(ROUND, self.queries - number * ROUND)
        return ops.stop_gradient(gradients.loop(query, (candidates, start_margin), times)[0])

    def _area(self, query):
        """Returns the share of the image's area that a square covers."""
        halvings = ops.sum(ops.cast(query > ops.convert_to_tensor(HALVINGS), "float32"))
        return self.p_init / 2.0**halvings


def _linf(epsilon, images, seed):
    """Returns the functions of the Linf search.

    Returns:
        start: `start()` returns [batch, ...] images with vertical stripes.
        change: `change(images, area, count)` returns images with one random square changed, the same one for the whole
            batch and a different one for each `count`.
    """
    height, width, channels = images.shape[1:]
    start_seed, seed = randomness.split(seed, 2)
    common = randomness.shared_seed(seed)
    lowest, highest = ops.maximum(images - epsilon, 0.0), ops.minimum(images + epsilon, 1.0)

    def start():
        stripes = _random_signs((ops.shape(images)[0], 1, width, channels), start_seed)
        return ops.clip(images + epsilon * stripes, 0.0, 1.0)

    def change(current, area, count):
        seeds = randomness.split(randomness.fold_in(common, count), 2)
        side = ops.maximum(ops.cast(ops.round(ops.sqrt(area * height * width)), "int32"), 1)
        side = ops.minimum(side, min(height, width))
        square = _square_mask(height, width, *_random_corner(height, width, side, seeds[0]), side)
        moved = current + 2 * epsilon * square * _random_signs((1, 1, 1, channels), seeds[1])
        return ops.clip(moved, lowest, highest)

    return start, change


def _l2(epsilon, images, seed):
    """Returns (start, change) as `_linf` does: tiles of bumps, and the norm of one window moved to another."""
    batch, height, width, channels = ops.shape(images)
    start_seed, seed = randomness.split(seed, 2)
    common_start, common = map(randomness.shared_seed, (start_seed, seed))

    def channel_signs(seed):
        return _random_signs((batch, 1, 1, channels), seed)

    def at_full_epsilon(perturbation):
        norm = ops.sqrt(ops.sum(ops.square(perturbation), axis=(1, 2, 3), keepdims=True))
        return ops.clip(images + epsilon * perturbation / (norm + TINY), 0.0, 1.0)

    def start():
        side = height // TILES
        margin = (height - side * TILES) // 2
        columns = width // side

        def add_tile(number, tiles):
            shape_seed, sign_seed = (randomness.fold_in(each, number) for each in (common_start, start_seed))
            top, left = margin + number // columns * side, margin + number % columns * side
            return (tiles + _bumps(height, width, top, left, side, shape_seed) * channel_signs(sign_seed),)

        return at_full_epsilon(gradients.loop(add_tile, (ops.zeros_like(images),), height // side * columns)[0])

    def change(current, area, count):
        seeds = randomness.split(randomness.fold_in(common, count), 3)
        side = ops.maximum(ops.cast(ops.round(ops.sqrt(area * height * width)), "int32"), SMALLEST_WINDOW)
        side = ops.minimum(side + (1 - side % 2), min(height, width))
        top, left = _random_corner(height, width, side, seeds[0])
        target = _square_mask(height, width, top, left, side)
        source_top, source_left = _random_corner(height, width, side, seeds[1])
        source = _square_mask(height, width, source_top, source_left, side)

        perturbation = current - images
        both = ops.maximum(target, source)
        budget = epsilon**2 - ops.sum(ops.square(perturbation), axis=(1, 2, 3), keepdims=True)
        budget = ops.maximum(budget, 0.0) / channels + _sum_of_squares(perturbation * both)
        in_target = perturbation * target
        shape = _bumps(height, width, top, left, side, seeds[2]) * channel_signs(randomness.fold_in(seed, count))
        shape += in_target / (TINY + ops.sqrt(_sum_of_squares(in_target)))
        shape *= ops.sqrt(budget) / (TINY + ops.sqrt(_sum_of_squares(shape)))
        return at_full_epsilon(perturbation * (1 - both) + shape)

    return start, change


def _bumps(height, width, top, left, side, seed):
    """Returns [1, height, width, 1] with two bumps of opposite sign in a window, vertical or horizontal, of norm 1."""
    rows = ops.arange(height)[:, None] - top
    columns = ops.arange(width)[None] - left
    horizontal = randomness.uniform((), seed) > 0.5
    rows, columns = ops.where(horizontal, columns, rows), ops.where(horizontal, rows, columns)
    half = side // 2
    first = _bump(rows, columns, half, side, max(height, width))
    second = _bump(rows - half, columns, side - half, side, max(height, width))
    both = first / (_norm(first) + TINY) - second / (_norm(second) + TINY)
    return (both / (_norm(both) + TINY))[None, ..., None]


def _is_inside(rows, columns, height, width):
    return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)


def _bump(rows, columns, height, width, largest):
    """Returns a pyramid of terraces on the rows [0, height) and columns [0, width).

    Its value at distance d from the middle is the sum of 1 / k^2 for k from d + 1 to the number of terraces.
    """
    terraces = ops.convert_to_tensor([sum(1 / k**2 for k in range(1, count + 1)) for count in range(largest + 2)])
    distance = ops.maximum(ops.abs(rows - height // 2), ops.abs(columns - width // 2))
    count = ops.maximum(height // 2, width // 2) + 1
    inside = _is_inside(rows, columns, height, width)
    distance = ops.where(inside, distance, 0)
    return ops.where(inside, ops.take(terraces, count) - ops.take(terraces, distance), 0.0)


def _norm(values):
    return ops.sqrt(ops.sum(ops.square(values)))


def _sum_of_squares(values):
    """Returns the [batch, 1, 1, channels] sum of squares of each channel."""
    return ops.sum(ops.square(values), axis=(1, 2), keepdims=True)


def _square_mask(height, width, top, left, side):
    """Returns [1, height, width, 1] with 1 inside a square, 0 outside."""
    inside = _is_inside(ops.arange(height)[:, None] - top, ops.arange(width)[None] - left, side, side)
    return ops.cast(inside, "float32")[None, ..., None]


def _random_corner(height, width, side, seed):
    """Returns the top row and left column of a random square, never the last possible ones, as in the official code."""
    shares = tf.unstack(randomness.uniform((2,), seed))
    return tuple(
        ops.cast(ops.floor(share * ops.cast(size - side, "float32")), "int32")
        for share, size in zip(shares, (height, width), strict=True)
    )


def _random_signs(shape, seed):
    return ops.sign(randomness.uniform(shape, seed, -1.0, 1.0))
