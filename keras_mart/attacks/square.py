"""Square Attack: random search with squares, without gradients."""

import dataclasses

import keras
import tensorflow as tf
from keras import ops

from keras_mart import checks, losses, randomness
from keras_mart.attacks import base, gradients
from keras_mart.threats import L2, choose

# After so many queries the squares' area is the initial share of the image divided by 2, by 4, and so on.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Queries in a round; after each round the examples that were fooled are left out.
ROUND = 100
# The L2 attack tiles the start with squares of a fifth of the image's height; its windows are odd and at least so wide.
TILES, LEAST_WINDOW = 5, 3
TINY = 1e-12


@keras.saving.register_keras_serializable("keras_mart")
@dataclasses.dataclass(frozen=True)
class Square(base.Rounds):
    """Square Attack: queries the network with a random square changed, and keeps what makes the margin larger.

    In Linf a square is set to x - epsilon or x + epsilon, channel by channel, from a start of vertical stripes; in L2
    the perturbation of one window is moved to another, in the shape of two opposite bumps, at full epsilon. The
    squares shrink as `p_init` is halved after 10, 50, 200, 500, 1,000, 2,000, 4,000, 6,000 and 8,000 queries. It needs
    no gradient, so it sees through a network that hides its own: where it beats the gradient attacks, they failed.

    Differences: follows the official code as AutoAttack runs it (the margin as loss, the schedule not rescaled to the
    number of queries; all examples get the same square, and none begins at the last possible row or
    column). A margin of exactly 0 does not end the search, since the label may still be predicted. Examples that were
    fooled leave the batch after every 100 queries rather than at once. Images [batch, channels, height, width] are told
    by having at most 4 channels.

    Args:
        threat: the ball, `Linf` or `L2`.
        queries: number of forward passes of each example, besides those of the start.
        p_init: the share of the image's area that the first squares cover.

    Raises:
        ValueError: `queries` not positive, or `p_init` outside (0, 1]; when called, images that are not
            [batch, height, width, channels], or, in L2, of less than 5 pixels.

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

    def check_images(self, shape):
        super().check_images(shape)
        if len(shape) != 4:
            raise ValueError(f"Square needs images [batch, height, width, channels]. Received: shape {tuple(shape)}")
        size = shape[2:] if checks.is_channels_first(shape) else shape[1:3]
        if isinstance(self.threat, L2) and min(size) < TILES:
            raise ValueError(f"Square in L2 needs images of {TILES} x {TILES} or more. Received: shape {tuple(shape)}")

    def rounds(self, classes):
        return -(-self.queries // ROUND)

    def perturb(self, logits, images, labels, seed, number, candidates):
        if not checks.is_channels_first(images.shape):
            return self._search(logits, images, labels, seed, number, candidates)
        images, candidates = (ops.moveaxis(each, 1, -1) for each in (images, candidates))
        found = self._search(
            lambda each: logits(ops.moveaxis(each, -1, 1)), images, labels, seed, number, candidates
        )  # fmt: skip
        return ops.moveaxis(found, -1, 1)

    def _search(self, logits, images, labels, seed, number, candidates):
        """One round on [batch, height, width, channels] images."""
        space = _l2 if isinstance(self.threat, L2) else _linf
        start, change = space(self.threat.epsilon, images, seed)
        candidates = tf.cond(number == 0, start, lambda: candidates)

        def margin(current):
            return losses.margin(labels, logits(current))

        # Each round gets examples that are classified correctly, though rounding in the fast view may say otherwise.
        start_margin = margin(candidates)
        least = ops.maximum(start_margin, 0.0)

        def query(count, current, largest):
            query_number = number * ROUND + count
            changed = change(current, self._area(query_number), count)
            found = margin(changed)
            # Once fooled, an example stays as it is. At a margin of 0 it may yet be classified correctly.
            better = ops.logical_and(found > largest, largest <= least)
            current = choose(better, changed, current)
            return current, ops.where(better, found, largest)

        times = ROUND if self.queries % ROUND == 0 else ops.minimum(ROUND, self.queries - number * ROUND)
        return ops.stop_gradient(gradients.loop(query, (candidates, start_margin), times)[0])

    def _area(self, query):
        """The share of the image's area that a square covers."""
        halvings = ops.sum(ops.cast(query > ops.convert_to_tensor(HALVINGS), "float32"))
        return self.p_init / 2.0**halvings


def _linf(epsilon, images, seed):
    """(start, change): stripes, and images with a square changed, the same one for all; another for each `count`."""
    height, width, channels = images.shape[1:]
    start_seed, seed = randomness.split(seed, 2)
    common = randomness.shared_seed(seed)
    least, most = ops.maximum(images - epsilon, 0.0), ops.minimum(images + epsilon, 1.0)

    def start():
        stripes = _signs((ops.shape(images)[0], 1, width, channels), start_seed)
        return ops.clip(images + epsilon * stripes, 0.0, 1.0)

    def change(current, area, count):
        seeds = randomness.split(randomness.fold_in(common, count), 2)
        side = ops.maximum(ops.cast(ops.round(ops.sqrt(area * height * width)), "int32"), 1)
        side = ops.minimum(side, min(height, width))
        square = _rectangle(height, width, *_corner(height, width, side, seeds[0]), side)
        moved = current + 2 * epsilon * square * _signs((1, 1, 1, channels), seeds[1])
        return ops.clip(moved, least, most)

    return start, change


def _l2(epsilon, images, seed):
    """(start, change) as in `_linf`: tiles of bumps, and images with the norm of one window moved to another."""
    batch, height, width, channels = (ops.shape(images)[0], *images.shape[1:])
    start_seed, seed = randomness.split(seed, 2)
    common_start, common = map(randomness.shared_seed, (start_seed, seed))

    def signs(seed):
        return _signs((batch, 1, 1, channels), seed)

    def at_full_epsilon(perturbation):
        norm = ops.sqrt(ops.sum(ops.square(perturbation), axis=(1, 2, 3), keepdims=True))
        return ops.clip(images + epsilon * perturbation / (norm + TINY), 0.0, 1.0)

    def start():
        side = height // TILES
        margin = (height - side * TILES) // 2
        across = width // side

        def add(place, tiles):
            shape_seed, sign_seed = (randomness.fold_in(each, place) for each in (common_start, start_seed))
            top, left = margin + place // across * side, margin + place % across * side
            return (tiles + _bumps(height, width, top, left, side, shape_seed) * signs(sign_seed),)

        return at_full_epsilon(gradients.loop(add, (ops.zeros_like(images),), height // side * across)[0])

    def change(current, area, count):
        seeds = randomness.split(randomness.fold_in(common, count), 3)
        side = ops.maximum(ops.cast(ops.round(ops.sqrt(area * height * width)), "int32"), LEAST_WINDOW)
        side = ops.minimum(side + (1 - side % 2), min(height, width))
        top, left = _corner(height, width, side, seeds[0])
        into = _rectangle(height, width, top, left, side)
        from_top, from_left = _corner(height, width, side, seeds[1])
        out_of = _rectangle(height, width, from_top, from_left, side)

        perturbation = current - images
        both = ops.maximum(into, out_of)
        budget = epsilon**2 - ops.sum(ops.square(perturbation), axis=(1, 2, 3), keepdims=True)
        budget = ops.maximum(budget, 0.0) / channels + _squares(perturbation * both)
        here = perturbation * into
        shape = _bumps(height, width, top, left, side, seeds[2]) * signs(randomness.fold_in(seed, count))
        shape += here / (TINY + ops.sqrt(_squares(here)))
        shape *= ops.sqrt(budget) / (TINY + ops.sqrt(_squares(shape)))
        return at_full_epsilon(perturbation * (1 - both) + shape)

    return start, change


def _bumps(height, width, top, left, side, seed):
    """[1, height, width, 1] a window with two bumps of opposite sign, above and below or side by side, of norm 1."""
    rows = ops.arange(height)[:, None] - top
    columns = ops.arange(width)[None] - left
    turned = randomness.uniform((), seed) > 0.5
    rows, columns = ops.where(turned, columns, rows), ops.where(turned, rows, columns)
    half = side // 2
    upper = _bump(rows, columns, half, side, max(height, width))
    lower = _bump(rows - half, columns, side - half, side, max(height, width))
    both = upper / (_norm(upper) + TINY) - lower / (_norm(lower) + TINY)
    return (both / (_norm(both) + TINY))[None, ..., None]


def _within(rows, columns, height, width):
    return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)


def _bump(rows, columns, height, width, largest):
    """A pyramid of terraces on the rows [0, height) and columns [0, width): at distance d from its middle, the sum of
    1 / k^2 for k from d + 1 to the number of terraces."""
    terraces = ops.convert_to_tensor([sum(1 / k**2 for k in range(1, count + 1)) for count in range(largest + 2)])
    distance = ops.maximum(ops.abs(rows - height // 2), ops.abs(columns - width // 2))
    count = ops.maximum(height // 2, width // 2) + 1
    inside = _within(rows, columns, height, width)
    distance = ops.where(inside, distance, 0)
    return ops.where(inside, ops.take(terraces, count) - ops.take(terraces, distance), 0.0)


def _norm(values):
    return ops.sqrt(ops.sum(ops.square(values)))


def _squares(values):
    """[batch, 1, 1, channels] the sum of squares in each channel."""
    return ops.sum(ops.square(values), axis=(1, 2), keepdims=True)


def _rectangle(height, width, top, left, side):
    """[1, height, width, 1] 1 inside a square, 0 outside."""
    inside = _within(ops.arange(height)[:, None] - top, ops.arange(width)[None] - left, side, side)
    return ops.cast(inside, "float32")[None, ..., None]


def _corner(height, width, side, seed):
    """The top row and left column of a random square; the last possible ones are left out, as in the official code."""
    shares = tf.unstack(randomness.uniform((2,), seed))
    return tuple(
        ops.cast(ops.floor(share * ops.cast(size - side, "float32")), "int32")
        for share, size in zip(shares, (height, width), strict=True)
    )


def _signs(shape, seed):
    return ops.sign(randomness.uniform(shape, seed, -1.0, 1.0))
