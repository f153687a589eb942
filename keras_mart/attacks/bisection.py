"""The distance to a decision boundary along a direction, by bisection."""

from keras import ops

from keras_mart import threats
from keras_mart.attacks import gradients


def bisection(margin, images, direction, radius, max_radius, steps):
    """Finds the radius at which the margin of images + radius * direction (clipped to [0, 1]) crosses zero.

    Args:
        margin: maps [batch, ...] images to [batch]; negative on the near side of the boundary.
        images: [batch, ...] where the margin is negative.
        direction: [batch, ...], of length at most 1 in the norm that measures the radius; if it is shorter, the radius
            is a multiple of its length.
        radius: [batch], tried first.
        max_radius: the largest radius; returned (up to the last halving) where no crossing is found.
        steps: number of halvings.

    Returns:
        ([batch] radii, [batch, ...] the images there).

    Reference: Ding et al., arXiv 1812.02637, and its code, whose last image is not clipped to [0, 1]; ours is.
    """

    def images_at(distance):
        return ops.clip(images + threats.per_example(distance, images) * direction, 0.0, 1.0)

    def halve(_, near, far, middle):
        inside = margin(images_at(middle)) < 0
        near, far = ops.where(inside, middle, near), ops.where(inside, far, middle)
        return near, far, (near + far) / 2

    state = (ops.zeros_like(radius), max_radius * ops.ones_like(radius), ops.minimum(radius, max_radius))
    *_, radius = gradients.loop(halve, state, steps)
    return radius, images_at(radius)
