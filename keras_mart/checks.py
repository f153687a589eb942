"""Checks of user input. Each error states the rule, then what was received."""

import difflib
import math
import numbers
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from keras_mart import memory

# The rows of a softmax sum to 1 within this tolerance, also in bfloat16.
PROBABILITY_TOLERANCE = 2e-2
# The probabilities of a soft label sum to 1 within this tolerance, also in half precision.
SHARES_TOLERANCE = 1e-2
SOFT_RULE = "Soft labels must be [batch, {}] numbers of at least 0, with rows that sum to 1."
# The number of images that a network is called on to check its outputs.
PROBED_IMAGES = 4
# Images may leave [0, 1] by this much, as resizing can make them; they are clipped.
ROUNDING_TOLERANCE = 1e-6
# An axis of at most this size is taken for channels, a larger one for height or width.
MAX_CHANNELS = 4
IMAGE_RULE = (
    "Divide images in [0, 255] by 255. Normalise by mean and standard deviation inside the network, so that epsilon "
    "keeps its meaning."
)


def did_you_mean(name, names):
    """Returns " Did you mean ...?" with the most similar of the names, or "" if none is similar."""
    near = difflib.get_close_matches(str(name), [str(each) for each in names], n=1, cutoff=0.4)
    return f" Did you mean {near[0]!r}?" if near else ""


def one_of(name, choices, what):
    """Raises ValueError, with the most similar choice, unless `name` is one of the choices."""
    if name not in choices:
        listed = ", ".join(map(str, choices))
        raise ValueError(f"`{what}` must be one of {listed}. Received: {name!r}.{did_you_mean(name, choices)}")


def positive_integer(value, name):
    """Raises ValueError unless the value is an integer of at least 1."""
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


def decay_all(value, optimizer):
    """Raises ValueError for a built optimizer, which can no longer exclude weights from its weight decay."""
    if not value and getattr(optimizer, "built", False):
        raise ValueError(
            "`decay_all=False` needs an optimizer that is not built yet: pass a new one. "
            f"Received: decay_all={value} with {optimizer!r}"
        )


def on_replicas(replicas, optimizer, steps_per_execution):
    """Raises ValueError for options that Keras does not support in a training step on several replicas."""
    if replicas == 1:
        return
    if (steps_per_execution or 1) > 1:
        raise ValueError(
            "`steps_per_execution` must be 1 on several replicas, because Keras cannot loop over their steps. "
            f"Received: steps_per_execution={steps_per_execution} on {replicas} replicas"
        )
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if own := getattr(optimizer, "gradient_accumulation_steps", None):
        raise ValueError(
            "The optimizer must not accumulate gradients on several replicas, which Keras does not support: use "
            f"`compile(accumulate={own})` with batches {own} times as large. "
            f"Received: gradient_accumulation_steps={own} on {replicas} replicas"
        )


def images(values, where=""):
    """Raises ValueError unless [batch, ...] image values are in [0, 1]; `where` is added to the message.

    Values outside by rounding (1e-6) are accepted: callers clip the images.
    """
    values = np.asarray(values)
    if values.size == 0:
        raise ValueError(f"The data must not be empty. Received: images of shape {values.shape}{where}")
    low, high = float(np.min(values)), float(np.max(values))
    if np.isnan(low) or np.isnan(high):
        raise ValueError(f"Images must not contain NaN. Received: {np.isnan(values).sum()} NaN values{where}")
    if low < -ROUNDING_TOLERANCE or high > 1 + ROUNDING_TOLERANCE:
        raise ValueError(
            f"Images must lie in [0, 1]. Received: values from {low:.9g} to {high:.9g}{where}. {IMAGE_RULE}"
        )


def is_channels_first(shape):
    """Returns whether a shape looks like [batch, channels, height, width]: few channels, similar height and width."""
    if len(shape) != 4 or shape[1] is None or shape[1] > MAX_CHANNELS:
        return False
    sizes = [size for size in shape[2:] if size is not None]
    return not sizes or (min(sizes) > MAX_CHANNELS and max(sizes) <= 2 * min(sizes))


def channels_last(shape, where=""):
    """Raises ValueError for a shape that looks like [batch, channels, height, width]; `where` ends the message."""
    if is_channels_first(shape):
        raise ValueError(
            f"Images must be [batch, height, width, channels]. Received: shape {tuple(shape)}{where}. "
            "Transpose the images by `np.moveaxis(images, 1, -1)`, and put `keras.layers.Permute((3, 1, 2))` in front "
            "of the network."
        )


def are_soft(labels):
    """Returns whether labels, or a spec of them, are soft [batch, classes], not [batch] or [batch, 1] integers."""
    if len(labels.shape) != 2 or labels.shape[-1] == 1:
        return False
    return labels.shape[-1] is not None or keras.backend.is_float_dtype(keras.backend.standardize_dtype(labels.dtype))


def labels(values, num_classes, where="", soft=False):
    """Raises ValueError unless [batch] or [batch, 1] labels are integers in [0, num_classes).

    With `soft`, they may also be [batch, classes] probabilities, with rows that sum to 1.
    """
    values = np.asarray(values)
    _label_shape_and_dtype(values, where, soft)
    if soft and are_soft(values):
        sums = values.astype("float32").sum(axis=1)
        if values.shape[1] != num_classes:
            raise ValueError(f"{SOFT_RULE.format(num_classes)} Received: shape {values.shape}{where}")
        if values.size and not (values.min() >= 0 and np.all(np.abs(sums - 1) <= SHARES_TOLERANCE)):
            raise ValueError(
                f"{SOFT_RULE.format(num_classes)} Received: values from {values.min():.6g}, and rows that sum to "
                f"{sums.min():.6g} to {sums.max():.6g}{where}"
            )
        return
    if values.size and not (0 <= values.min() and values.max() < num_classes):
        raise ValueError(
            f"Labels must lie in [0, {num_classes}). Received: labels from {values.min()} to {values.max()}{where}"
        )


def _label_shape_and_dtype(values, where="", soft=False):
    """Raises ValueError unless an array or a `tf.TensorSpec` has the shape and dtype of labels."""
    rank = len(values.shape)
    if soft and are_soft(values):
        return
    if rank not in (1, 2) or (rank == 2 and values.shape[1] not in (1, None)):
        raise ValueError(
            f"Labels must be class indices of shape [batch] or [batch, 1]. Received: shape {tuple(values.shape)}"
            f"{where}. Convert one-hot labels by `labels.argmax(axis=-1)`."
        )
    dtype = getattr(values.dtype, "as_numpy_dtype", values.dtype)
    if not np.issubdtype(dtype, np.integer):
        raise ValueError(
            f"Labels must be integers. Received: dtype {np.dtype(dtype)}{where}. Use `labels.astype('int32')`."
        )


def network(candidate):
    """Raises ValueError unless this is a Keras model from images to logits, as far as its graph shows."""
    unwrapped(candidate)
    single_input_and_output(candidate)
    _does_not_squash(candidate)


def unwrapped(candidate):
    """Raises ValueError unless this is a Keras model that no training method wraps."""
    if not isinstance(candidate, keras.Model):
        raise ValueError(f"`network` must be a keras.Model. Received: {candidate!r}")
    if getattr(candidate, "wraps_network", False):
        raise ValueError(
            f"`network` must not be wrapped by a training method; pass its `.network`. Received: {candidate!r}"
        )


def single_input_and_output(candidate):
    """Raises ValueError for a functional model with several inputs or outputs, or with a sparse or integer input."""
    for name, what, how in (
        ("input", "take one tensor of images", "Wrap it in a model that supplies the other inputs"),
        ("output", "return one tensor of logits [batch, classes]", "Wrap it in a model that returns only the logits"),
    ):
        tensors = getattr(candidate, name + "s", None)
        is_functional = isinstance(tensors, list) and all(isinstance(each, keras.KerasTensor) for each in tensors)
        if not is_functional:
            continue
        structure = None if isinstance(candidate, keras.Sequential) else getattr(candidate, name)
        if len(tensors) > 1 or isinstance(structure, Mapping):
            raise ValueError(
                f"`network` must {what}. Received: a network of the {name}s {_description(structure)}. {how}."
            )
        if name == "input" and (tensors[0].sparse or not keras.backend.is_float_dtype(tensors[0].dtype)):
            kind = "sparse" if tensors[0].sparse else tensors[0].dtype
            raise ValueError(
                f"`network` must {what} of dense floats, because attacks use its gradient. Received: a network whose "
                f"input {tensors[0].name!r} is {kind}"
            )


def _description(structure):
    """Describes a structure of tensors for error messages."""
    if isinstance(structure, Mapping):
        return f"{{{', '.join(map(repr, structure))}}}"
    if isinstance(structure, (tuple, list)):
        return f"[{', '.join(str(getattr(each, 'name', None) or type(each).__name__) for each in structure)}]"
    return type(structure).__name__


def squashes(candidate):
    """Returns whether a functional or Sequential model ends in a softmax or sigmoid, also in a nested last model."""
    last = _last_operation(candidate)
    return (
        getattr(last, "activation", None) in (keras.activations.softmax, keras.activations.sigmoid)
        or isinstance(last, keras.layers.Softmax)
        or type(last).__name__ in ("Softmax", "Sigmoid")  # operations, whose classes are not public
    )


def _last_operation(candidate):
    """Returns the operation that computes a model's output, or the innermost model without a known graph."""
    while isinstance(candidate, keras.Model):
        parts = getattr(candidate, "operations", None) or getattr(candidate, "layers", ())
        if not (parts and hasattr(candidate, "outputs")):
            break
        candidate = parts[-1]
    return candidate


def _does_not_squash(candidate):
    """Raises ValueError for a model that ends in a softmax or sigmoid."""
    if squashes(candidate):
        last = _last_operation(candidate).name
        raise ValueError(
            f"`network` must return logits. Received: a network that ends in {last!r}, which returns probabilities. "
            "`keras_mart.networks.logits_of(network)` removes its activation."
        )


def image_shape(model):
    """Returns the (height, width, channels) that a built model takes, with `None` for unknown sizes.

    Raises:
        ValueError: the model is not built, or does not take images.
    """
    if not model.built:
        raise ValueError(f"`model` must be built: call it on a batch of images or fit it first. Received: {model!r}")
    shape = input_shape(model)
    dimensions = shape if isinstance(shape, (tuple, list)) else ()
    if len(dimensions) != 4 or not all(size is None or isinstance(size, int) for size in dimensions):
        raise ValueError(f"`model` must take images [batch, height, width, channels]. Received: input shape {shape}")
    channels_last(dimensions, ", which the network takes")
    return tuple(dimensions[1:])


def input_shape(model):
    """Returns the input shape of a built model, `None` if it is not known."""
    # A subclassed model has no `input_shape`, but it records the shape it was built with.
    return getattr(model, "input_shape", None) or (model.get_build_config() or {}).get("input_shape")


def logits(values):
    """Raises ValueError unless [batch, classes] outputs look like logits; returns the number of classes."""
    if isinstance(values, (Mapping, tuple, list)):
        raise ValueError(
            f"`network` must return one tensor of logits [batch, classes]. Received: outputs {_description(values)}"
        )
    values = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(values, "float32")))
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"`network` must return logits [batch, classes >= 2]. Received: shape {values.shape}")
    if np.all(values >= 0) and np.all(np.abs(values.sum(axis=1) - 1) < PROBABILITY_TOLERANCE):
        raise ValueError(
            "`network` must return logits. Received: rows that sum to 1, which are probabilities. "
            "Remove the softmax at its end."
        )
    return values.shape[1]


def unpacked(data):
    """Returns (images, index, labels, weights) of a batch, with `None` for absent parts.

    Args:
        data: (images, labels[, weights]), where images may be (images, index); only images; or a dictionary with the
            keys "image" and "label", as in tensorflow-datasets. The values may be arrays, tensors or specs.

    Raises:
        ValueError: a dictionary with other keys, or images or labels that are nested structures.
    """
    if isinstance(data, Mapping):
        if not {"image", "label"} <= data.keys():
            raise ValueError(
                "The data must be (images, labels), or dictionaries with the keys 'image' and 'label'. "
                f"Received: dictionaries with {_description(data)}"
            )
        data = data["image"], data["label"]
    inputs, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    if isinstance(labels, (Mapping, tuple)):
        raise ValueError(f"Labels must be one tensor of class indices [batch]. Received: {_description(labels)}")
    return *indexed(inputs), labels, weights


def indexed(inputs):
    """Returns (images, index) of a model's inputs, with `None` for an absent index.

    Raises:
        ValueError: the inputs are neither images nor a pair (images, index).
    """
    if not isinstance(inputs, (Mapping, tuple, list)):
        return inputs, None
    if isinstance(inputs, Mapping) or len(inputs) != 2 or not _is_index(inputs[1]):
        raise ValueError(
            "Images must be one tensor [batch, ...], or a pair (images, index) with a [batch] index. "
            f"Received: {_description(inputs)}"
        )
    return tuple(inputs)


def _is_index(values):
    shape = values.shape if hasattr(values, "shape") else np.shape(values)
    return shape == tf.TensorShape(None) or len(shape) == 1


def batch(classifier, image_values, label_values):
    """Raises ValueError unless the classifier can be trained or evaluated on this batch.

    Args:
        classifier: a Keras model; an unbuilt one is built by a call on the first images.
        image_values: [batch, ...] array-like; or a `tf.TensorSpec`, whose shape and dtype are checked.
        label_values: [batch], [batch, 1] or soft [batch, classes] array-like, or a `tf.TensorSpec`.
    """
    if label_values is None:
        raise ValueError("The data must be (images, labels). Received: no labels.")
    if isinstance(image_values, tf.TensorSpec):
        if None in (image_values.shape.rank, label_values.shape.rank):
            raise ValueError(
                "The data must declare the number of axes of images and labels, as with the `output_signature` of "
                f"`tf.data.Dataset.from_generator`. Received: images {image_values}, labels {label_values}"
            )
        _shapes_and_dtypes(classifier, image_values, label_values)
        if None not in image_values.shape[1:]:
            classes(classifier, np.zeros((1, *image_values.shape[1:]), "float32"))
        return
    image_values, label_values = _image_array(image_values), np.asarray(label_values)
    if image_values.size:
        _shapes_and_dtypes(classifier, image_values, label_values)
    images(image_values)
    if len(label_values) != len(image_values):
        raise ValueError(
            f"Every image must have a label. Received: {len(image_values)} images, {len(label_values)} labels"
        )
    labels(label_values, classes(classifier, image_values), soft=True)


def ranges(num_classes, num_examples=None, soft=False):
    """Returns (message, lowest value, highest value) for the images, the labels and the indices of a batch.

    A message is to be formatted with the place of the error and the lowest and highest value found. Without
    `num_examples`, indices are not bounded. For `soft` labels, the two values are the smallest sum of a row and the
    largest sum of a row's absolute values.
    """
    received = "Received at {}: labels from {:.0f} to {:.0f}."
    images = (
        "Images must lie in [0, 1] and not contain NaN. Received at {}: values from {:.9g} to {:.9g}. " + IMAGE_RULE
    )
    labels = f"Labels must lie in [0, {num_classes}). {received}"
    indices = f"Indices must lie in [0, num_examples={num_examples}). {received.replace('labels', 'indices')}"
    bounds = (-math.inf, math.inf) if num_examples is None else (0, num_examples - 1)
    of_labels = labels, 0, num_classes - 1
    if soft:
        received = " Received at {}: rows that sum to {:.6g}, and absolute values that sum to {:.6g}."
        of_labels = SOFT_RULE.format(num_classes) + received, 1 - SHARES_TOLERANCE, 1 + SHARES_TOLERANCE
    return [(images, -ROUNDING_TOLERANCE, 1 + ROUNDING_TOLERANCE), of_labels, (indices, *bounds)]


def in_batches(image_values, label_values):
    """Raises ValueError for single examples. Both arguments may be arrays or specs; labels may be `None`."""
    if label_values is not None and len(label_values.shape) == 0:
        raise ValueError(
            "The data must be batches of images, as `dataset.batch(128)` makes them. Received: images of shape "
            f"{tuple(image_values.shape)} with a single label."
        )


def _image_array(image_values):
    """Returns images as an array; raises ValueError if they are not one tensor."""
    if isinstance(image_values, Mapping):
        indexed(image_values)
    try:
        return np.asarray(image_values)
    except ValueError:  # several arrays of different shapes
        raise ValueError(f"Images must be one tensor [batch, ...]. Received: {_description(image_values)}") from None


def _shapes_and_dtypes(classifier, image_values, label_values):
    """Raises ValueError for wrong shapes or dtypes of a batch of arrays or specs."""
    in_batches(image_values, label_values)
    if isinstance(classifier, keras.Model) and not getattr(classifier, "wraps_network", False):
        single_input_and_output(classifier)
    _fits_input(classifier, image_values.shape, "the network")
    _label_shape_and_dtype(label_values, soft=True)


def classes(classifier, image_values):
    """Returns the number of classes of a classifier, found by a call on a few [batch, ...] images.

    Raises:
        ValueError: the classifier does not return logits.
    """
    known = memory.cache_of(classifier)
    if "classes" not in known:
        _does_not_squash(classifier)
        probe = keras.ops.cast(image_values[:PROBED_IMAGES], "float32")
        found = logits(classifier(probe, training=False))
        known = memory.cache_of(classifier)  # again, because the call may have built the model
        known["classes"] = found
    return known["classes"]


def same_task(source, network, image_values, who="the source model"):
    """Raises ValueError unless another model takes the network's images and has the same number of classes."""
    _fits_input(source, image_values.shape, who)
    try:
        wanted, found = (classes(each, image_values) for each in (network, source))
    except (tf.errors.InvalidArgumentError, TypeError) as error:
        shape = tuple(image_values.shape)
        raise ValueError(f"{who.capitalize()} must take the images. Received: shape {shape} ({error})") from error
    if wanted != found:
        raise ValueError(f"{who.capitalize()} must have as many classes as the network, {wanted}. Received: {found}")


def _fits_input(classifier, shape, who):
    """Raises ValueError unless images of this shape fit the input of a classifier, named `who` in the message."""
    expected = getattr(classifier, "input_shape", None) if hasattr(classifier, "inputs") else None
    if isinstance(expected, tuple) and not _shape_matches(shape, expected):
        raise ValueError(f"Images must have shape {expected}, the input shape of {who}. Received: {tuple(shape)}")


def _shape_matches(shape, expected):
    return len(shape) == len(expected) and all(
        want is None or have == want for have, want in zip(shape[1:], expected[1:], strict=True)
    )


def first_batch(x, y=None, readable_again=False):
    """Returns the first batch of any data that `fit` takes; arrays are returned whole.

    A `tf.data.Dataset` may read a stream that can be read only once: unless it is `readable_again`, its element spec is
    returned in place of the batch. A generator is replaced by one that yields the first batch again.

    Returns:
        (x to use from now on, first batch as `unpacked` takes it).

    Raises:
        ValueError: the data are empty.
    """
    if y is not None or isinstance(x, (np.ndarray, tf.Tensor, list, tuple)):
        inputs = tf.nest.map_structure(np.asarray, tuple(x) if isinstance(x, list) else x)
        return x, (inputs, None if y is None else np.asarray(y))
    if isinstance(x, tf.data.Dataset) and not readable_again:
        first = None if x.cardinality() == 0 else x.element_spec
    elif isinstance(x, keras.utils.PyDataset):
        first = None if x.num_batches == 0 else x[0]
    elif hasattr(x, "__next__"):
        first = next(x, None)
        x = _with_first(first, x)
    else:
        first = next(iter(x), None)
    if first is None:
        raise ValueError("The data must not be empty. Received: no batch.")
    return x, tf.nest.map_structure(_first_replica_value, first)


def _with_first(first, rest):
    yield first
    yield from rest


def _first_replica_value(value):
    """Returns the first replica's part of a distributed value."""
    return tf.distribute.get_strategy().experimental_local_results(value)[0]
