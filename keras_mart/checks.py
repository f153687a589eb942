"""What users can get wrong, and what they are told: the rule first, then what came."""

import difflib
import numbers
import weakref

import keras
import numpy as np
import tensorflow as tf

# A softmax's rows sum to 1 within this, also in bfloat16.
PROBABILITY_TOLERANCE = 2e-2
# So many images are looked at to see what a network returns.
PROBED_IMAGES = 4
# The number of classes of each network that was probed.
_CLASSES = weakref.WeakKeyDictionary()


def did_you_mean(name, names):
    """Asks, behind a space, whether the nearest of the names was meant; nothing where none is near."""
    near = difflib.get_close_matches(str(name), [str(each) for each in names], n=1, cutoff=0.4)
    return f" Did you mean {near[0]!r}?" if near else ""


def one_of(name, choices, what):
    """Raises ValueError with the nearest valid name unless `name` is among the choices."""
    if name not in choices:
        listed = ", ".join(map(str, choices))
        raise ValueError(f"`{what}` must be one of {listed}. Received: {name!r}.{did_you_mean(name, choices)}")


def positive_integer(value, name):
    """Raises ValueError unless the value is an integer of at least 1."""
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


def images(values, where=""):
    """Raises ValueError unless [batch, ...] image values are numbers in [0, 1]; `where` ends the message."""
    values = np.asarray(values)
    if values.size == 0:
        raise ValueError(f"The data must not be empty. Received: images of shape {values.shape}{where}")
    low, high = float(np.min(values)), float(np.max(values))
    if np.isnan(low) or np.isnan(high):
        raise ValueError(f"Images must not contain NaN. Received: {np.isnan(values).sum()} NaN values{where}")
    if low < 0 or high > 1:
        raise ValueError(
            f"Images must lie in [0, 1]. Received: values from {low:g} to {high:g}{where}. Divide images of 0 to 255 "
            "by 255; normalise by mean and deviation inside the network, so that epsilon keeps its meaning."
        )


def labels(values, num_classes, where=""):
    """Raises ValueError unless [batch] or [batch, 1] labels are integers in [0, num_classes)."""
    values = np.asarray(values)
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] != 1):
        raise ValueError(
            f"Labels must be class indices of shape [batch] or [batch, 1]. Received: shape {values.shape}{where}. "
            "Turn one-hot labels into indices with `labels.argmax(axis=-1)`."
        )
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"Labels must be integers. Received: dtype {values.dtype}{where}. Use `labels.astype('int32')`."
        )
    if values.size and not (0 <= values.min() and values.max() < num_classes):
        raise ValueError(
            f"Labels must lie in [0, {num_classes}). Received: labels from {values.min()} to {values.max()}{where}"
        )


def network(candidate):
    """Raises ValueError unless this is a Keras model that does not end in a softmax or sigmoid."""
    if not isinstance(candidate, keras.Model):
        raise ValueError(f"`network` must be a keras.Model. Received: {candidate!r}")
    if getattr(candidate, "wraps_network", False):
        raise ValueError(f"`network` must not be wrapped already; pass its `.network`. Received: {candidate!r}")
    _does_not_squash(candidate)


def _does_not_squash(candidate):
    """Raises ValueError where a model ends in a softmax or sigmoid."""
    last = candidate
    while isinstance(last, keras.Model) and getattr(last, "layers", None) and hasattr(last, "outputs"):
        last = last.layers[-1]
    squashed = getattr(last, "activation", None) in (keras.activations.softmax, keras.activations.sigmoid)
    if squashed or isinstance(last, keras.layers.Softmax):
        raise ValueError(
            f"`network` must return logits. Received: a network that ends in {last.name!r}, which returns "
            "probabilities. Drop its activation (in keras.applications: `classifier_activation=None`)."
        )


def logits(values):
    """Raises ValueError unless [batch, classes] outputs look like logits; returns the number of classes."""
    values = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(values, "float32")))
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"`network` must return logits [batch, classes >= 2]. Received: shape {values.shape}")
    if np.all(values >= 0) and np.all(np.abs(values.sum(axis=1) - 1) < PROBABILITY_TOLERANCE):
        raise ValueError(
            "`network` must return logits. Received: rows that sum to 1, which are probabilities. "
            "Drop the softmax at its end."
        )
    return values.shape[1]


def batch(classifier, image_values, label_values):
    """Raises ValueError unless the classifier can be trained or judged on this batch.

    Args:
        classifier: a Keras model; an unbuilt one is built by its first images.
        image_values: [batch, ...] array-like.
        label_values: [batch] or [batch, 1] array-like.
    """
    image_values = np.asarray(image_values)
    _takes(classifier, image_values.shape, "the network")
    images(image_values)
    if label_values is None:
        raise ValueError("The data must be (images, labels). Received: no labels.")
    if len(label_values) != len(image_values):
        raise ValueError(f"Each image needs a label. Received: {len(image_values)} images, {len(label_values)} labels")
    labels(label_values, classes(classifier, image_values))


def classes(classifier, image_values):
    """The number of classes of a classifier, found by trying it on [batch, ...] images.

    Raises:
        ValueError: it does not return logits.
    """
    if classifier not in _CLASSES:
        _does_not_squash(classifier)
        probe = keras.ops.cast(image_values[:PROBED_IMAGES], "float32")
        _CLASSES[classifier] = logits(classifier(probe, training=False))
    return _CLASSES[classifier]


def same_task(source, network, image_values):
    """Raises ValueError unless a source model takes the network's images and knows as many classes."""
    _takes(source, image_values.shape, "the source model")
    try:
        wanted, found = (classes(each, image_values) for each in (network, source))
    except (tf.errors.InvalidArgumentError, TypeError) as error:
        shape = tuple(image_values.shape)
        raise ValueError(f"The source model must take the images. Received: shape {shape} ({error})") from error
    if wanted != found:
        raise ValueError(
            f"The source model must tell as many classes as the model that is judged, {wanted}. Received: {found}"
        )


def _takes(classifier, shape, who):
    expected = getattr(classifier, "input_shape", None) if hasattr(classifier, "inputs") else None
    if isinstance(expected, tuple) and not _fits(shape, expected):
        raise ValueError(f"Images must have shape {expected}, as {who} has. Received: {tuple(shape)}")


def _fits(shape, expected):
    return len(shape) == len(expected) and all(
        want is None or have == want for have, want in zip(shape[1:], expected[1:], strict=True)
    )


def first_batch(x, y=None):
    """The first batch of anything that `fit` takes; of arrays all there is.

    Returns:
        (x to go on with, first inputs, first labels or None): a generator is handed back with its first batch put back.

    Raises:
        ValueError: there is no first batch.
    """
    if y is not None or isinstance(x, (np.ndarray, tf.Tensor, list, tuple)):
        inputs = tf.nest.map_structure(np.asarray, tuple(x) if isinstance(x, list) else x)
        return x, inputs, None if y is None else np.asarray(y)
    if isinstance(x, keras.utils.PyDataset):
        first = None if x.num_batches == 0 else x[0]
    elif hasattr(x, "__next__"):
        first = next(x, None)
        x = _put_back(first, x)
    else:
        first = next(iter(x), None)
    if first is None:
        raise ValueError("The data must not be empty. Received: no batch.")
    inputs, first_labels, _ = keras.utils.unpack_x_y_sample_weight(tf.nest.map_structure(_local, first))
    return x, inputs, first_labels


def _put_back(first, rest):
    yield first
    yield from rest


def _local(value):
    """The first replica's part of a distributed value."""
    return tf.distribute.get_strategy().experimental_local_results(value)[0]
