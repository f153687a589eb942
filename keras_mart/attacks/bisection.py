"""The distance to a decision boundary along a direction, by bisection."""

from keras import ops

from keras_mart import threats
from keras_mart.attacks import gradients


def bisection(margin, images, direction, radius, max_radius, steps):
    """The radius at which the margin crosses zero on the way images + radius * direction (clipped to [0, 1]).

    Args:
        margin: maps [batch, ...] images to [batch]; negative on the near side of the boundary.
        images: [batch, ...] where the margin is negative.
        direction: [batch, ...], of length 1 in the norm that measures the radius, or less: the radius is then told
            in its length.
        radius: [batch], where to look first.
        max_radius: the largest radius looked at, returned (but for the last halving) where nothing is found.
        steps: number of halvings.

    Returns:
        ([batch] radii, [batch, ...] the images there).

    Reference: Ding et al., arXiv 1812.02637, and its code, whose last image is not clipped to [0, 1]; ours is.
    """

    def at(distance):
        return ops.clip(images + threats.per_example(distance, images) * direction, 0.0, 1.0)

    def halve(_, near, far, here):
        inside = margin(at(here)) < 0
        near, far = ops.where(inside, here, near), ops.where(inside, far, here)
        return near, far, (near + far) / 2

    state = (ops.zeros_like(radius), max_radius * ops.ones_like(radius), ops.minimum(radius, max_radius))
    *_, radius = gradients.loop(halve, state, steps)
    return radius, at(radius)
