"""The moving average of a network's weights, kept as a second network."""

from keras import ops

from keras_mart import distribution

# TensorFlow's ExponentialMovingAverage with `num_updates` has (1 + n) / (10 + n); here the very first is a copy.
WARM_UP = 9


def copy_of(network):
    """A network of the same layers and weights that is never trained.

    Raises:
        ValueError: the network cannot be made again from its config.
    """
    try:
        copy = type(network).from_config(network.get_config())
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            "`weight_average` keeps a second network, so that the first must give its `get_config`. "
            f"Received: {network} ({error})"
        ) from error
    copy.trainable = False
    if network.built and copy.built:  # a subclassed one is not built yet
        copy.set_weights(network.get_weights())
    return copy


def build(network, copy, shape):
    """Builds a network and its copy, and gives the copy the weights.

    Args:
        shape: that of the images, (None, ...).
    """
    for each in (network, copy):
        if None in shape[1:]:
            each.build(shape)
        else:  # all that builds a subclassed network
            each(ops.zeros((1, *shape[1:])), training=False)
    copy.set_weights(network.get_weights())


def update(network, average, decay, step, counts):
    """Moves the average towards the network, inside a replica.

    Args:
        network: what is trained.
        average: its `copy_of`.
        decay: in (0, 1); that of step n, from 0, is n / (n + 9) where this is less.
        step: scalar integer, n.
        counts: boolean scalar; nothing moves where it is false.
    """
    step = ops.cast(step, "float32")
    share = ops.where(counts, 1 - ops.minimum(decay, step / (step + WARM_UP)), 0.0)

    def towards(now, mean):
        if "float" in mean.dtype:
            return mean + ops.cast(share, mean.dtype) * (now - mean)
        return ops.where(counts, now, mean)  # a counter; seeds of Dropout are no weights

    moved = [towards(now, mean) for now, mean in zip(network.weights, average.weights, strict=True)]
    distribution.assign(average.weights, moved)
