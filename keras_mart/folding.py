"""Fast and equal views of a network: one for attacks, in evaluation mode, and one for training.

In evaluation mode a BatchNormalization multiplies and adds constants, which the convolution or dense layer in front of
it can do as well: with another kernel and a bias. The view is made from the live weights whenever it is asked for, in
float32, and cast once: an attack of ten steps neither normalises nor casts weights ten times. In training a
BatchNormalization is one operation (`keras_mart.layers`).

Views are of functional networks and Sequential ones of one input and one output, also inside one another. Whatever does
not fit is called as it is: other layers, layers called more than once, subclassed networks, those with masks.

A view is a model that Keras's `clone_model` makes of the network's graph. Each operation in it stands for one of the
network's and has no weights: when it is called, it calls the network's, or what takes its place.
"""

import collections
import functools
import inspect

import keras
import tensorflow as tf
from keras import ops

from keras_mart import layers

__all__ = ["StandIn", "disable", "enable", "enabled", "stand_ins_of", "training_view", "view"]

_BATCH_NORMALISATIONS = (keras.layers.BatchNormalization, layers.BatchNormalization)
_WEIGHTED = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
# TensorFlow's gradient of a strided convolution of so few channels takes three times as long on a CPU as it need.
_FEW_CHANNELS = 4

_enabled = True


def enable():
    """Attacks and training see networks through their fast views, as they do by default."""
    global _enabled
    _enabled = True


def disable():
    """Attacks and training see networks as they are; training does from the next `fit` on."""
    global _enabled
    _enabled = False


def enabled():
    """Whether attacks and training see networks through their fast views."""
    return _enabled


def view(network):
    """Maps images to what `network(images, training=False)` gives, to rounding, from the weights as they are now.

    Args:
        network: a Keras model.

    Returns:
        A function of images. It holds tensors: inside a `tf.function` it is good for that trace only.
    """
    if not _enabled:
        return functools.partial(network, training=False)
    return _view(network, _in_evaluation, training=False)


def training_view(network):
    """Maps images to what `network(images, training=True)` gives, to rounding; updates the statistics as it does.

    One difference: where the graph of a functional network calls a layer or a model inside with `training=False`, that
    one is computed in evaluation mode. Keras computes it in training mode (keras-team/keras issue 20285).

    Args:
        network: a Keras model.
    """
    return _view(network, _in_training, training=True)


def _view(network, substitute=None, training=True):
    graph = graph_of(network)
    if graph is None:
        return functools.partial(network, training=training)
    seen, stand_ins = stand_ins_of(graph, training)
    seen.dtype_policy, seen.autocast = network.dtype_policy, network.autocast
    if substitute and not any(_is_masked(each.operation, *call) for each in stand_ins for call in each.calls):
        substitute([each for each in stand_ins if _is_plain(each)], _readers(stand_ins, seen.outputs))
    return functools.partial(seen, training=training)


def stand_ins_of(graph, training=False):
    """Returns a model of the same graph, and the `StandIn` of each of its operations but the inputs, in order."""
    seen = keras.models.clone_model(graph, clone_function=lambda operation: StandIn(operation, training))
    return seen, [each for each in seen.operations if isinstance(each, StandIn)]


class StandIn(keras.Operation):
    """Calls an operation of a network, or its substitute, in the place of the operation in the view's graph."""

    def __init__(self, operation, training):
        super().__init__()
        self.operation, self.training, self.substitute = operation, training, None
        self.calls = []  # in the graph: arguments, keyword arguments and outputs, which are symbolic tensors

    def compute_output_spec(self, *args, **kwargs):
        # Of the operation's first call: others may have other shapes, at which nobody looks, but as many outputs.
        outputs = keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), self.operation.output)
        self.calls.append((args, kwargs, outputs))
        return outputs

    def trains(self, kwargs):
        """Whether a call with these keyword arguments in the graph is one in training mode."""
        # A layer whose `training` is False by default, such as Dropout, has it in every graph: nobody has said it.
        says_no = kwargs.get("training") is False and _default_of_training(self.operation) is not False
        return self.training and not says_no

    def call(self, *args, **kwargs):
        if self.substitute is not None:
            return self.substitute(*args)
        if isinstance(self.operation, keras.layers.Layer):
            kwargs["training"] = self.trains(kwargs)
            if kwargs["training"] and isinstance(self.operation, keras.Model) and _adds_no_loss(self.operation):
                return _view(self.operation)(*args, **kwargs)  # whose graph may say `training` too
        return self.operation(*args, **kwargs)


def _default_of_training(operation):
    parameter = inspect.signature(operation.call).parameters.get("training")
    return None if parameter is None else parameter.default


def _adds_no_loss(operation):
    return getattr(operation, "activity_regularizer", None) is None


def graph_of(network):
    """A functional model of the graph that calling a network runs, `None` where it runs something else."""
    if not isinstance(network, (keras.Sequential, keras.Function)):
        return None
    inputs, outputs = (getattr(network, name, ()) for name in ("inputs", "outputs"))  # none without an input's shape
    if not len(inputs) == len(outputs) == 1:
        return None
    graph = keras.Model(*inputs, *outputs, name="view")
    kind = keras.Sequential if isinstance(network, keras.Sequential) else type(graph)
    return graph if type(network).call is kind.call and type(network).__call__ is kind.__call__ else None


def _in_evaluation(plain, readers):
    """Gives stand-ins that are called plainly their substitutes in evaluation mode."""
    for each in plain:
        if _has_plain_weights(each.operation):
            following = readers[id(each.calls[0][-1])]
            folds = len(following) == 1 and following[0] in plain and _folds(each.operation, following[0].operation)
            each.substitute = _weighted(each.operation, following[0].operation if folds else None)
            if folds:
                following[0].substitute = lambda inputs: inputs
        elif isinstance(each.operation, keras.Model):
            each.substitute = view(each.operation)
    for each in plain:
        if each.substitute is None and type(each.operation) in _BATCH_NORMALISATIONS:
            each.substitute = _either(_fuses_in_evaluation, layers.fused, each.operation, False)


def _in_training(plain, _):
    """Gives stand-ins that are called plainly their substitutes in training mode."""
    fused = functools.partial(layers.fused, training=True)
    for each in plain:
        trains = each.trains(each.calls[0][1])
        if isinstance(each.operation, keras.Model):
            # Made when it is called, by when a tape watches the weights that a view is made from.
            each.substitute = functools.partial(_seen, training_view if trains else view, each.operation)
        elif _enabled and trains and type(each.operation) is keras.layers.BatchNormalization:
            each.substitute = _either(layers.can_fuse, fused, each.operation, True)


def _seen(by, network, inputs):
    return by(network)(inputs)


def _readers(stand_ins, outputs):
    """The stand-ins that each tensor, by its id, goes to; `None` where it is the network's output."""
    readers = collections.defaultdict(list)
    for reader, read in [*((each, call[:2]) for each in stand_ins for call in each.calls), (None, outputs)]:
        for tensor in keras.tree.flatten(read):
            readers[id(tensor)].append(reader)
    return readers


def _is_plain(stand_in):
    """Whether an operation is called once, maps one tensor to one, and leaves no loss behind."""
    args, kwargs, outputs = stand_in.calls[0]
    # `training` is no argument of the substitutes: they are made for what it is.
    others = [value for name, value in kwargs.items() if name != "training"]
    return (
        len(stand_in.calls) == len(args) == 1
        and all(isinstance(each, keras.KerasTensor) for each in (args[0], outputs))
        and all(value is None for value in others)
        and _adds_no_loss(stand_in.operation)
        and getattr(stand_in.operation, "autocast", True)
    )


def _is_masked(operation, args, kwargs, _):
    """Whether an operation is given a mask, or makes one."""
    inputs = next(iter((*args, *kwargs.values())))
    none = keras.tree.map_structure(lambda _: None, inputs)
    made = operation.compute_mask(inputs, none) if getattr(operation, "supports_masking", False) else None
    return any(mask is not None for mask in keras.tree.flatten((kwargs.get("mask"), made)))


def _has_plain_weights(operation):
    return (
        type(operation) in _WEIGHTED
        and getattr(operation, "data_format", "channels_last") == "channels_last"
        and not getattr(operation, "lora_enabled", False)
        and not getattr(operation, "quantization_mode", None)
    )


def _folds(layer, following):
    """Whether a layer with weights can do what the operation behind it does."""
    return (
        type(following) in _BATCH_NORMALISATIONS
        and layer.activation is keras.activations.linear
        and layer.compute_dtype != "float16"  # whose range a product of kernel and scale may leave
        and not layers.renormalises(following)
        and following.axis in (-1, following.input_spec.ndim - 1)
    )


def _weighted(layer, normalisation):
    """A layer with weights as a function, and with it the BatchNormalization behind it, if there is one."""
    dtype = keras.backend.result_type(layer.variable_dtype, "float32")
    kernel = ops.cast(layer.kernel, dtype)
    bias = None if layer.bias is None else ops.cast(layer.bias, dtype)
    if normalisation is not None:
        scale, shift = _constants(normalisation, dtype)
        kernel = kernel * (ops.reshape(scale, kernel.shape[-2:]) if _is_depthwise(layer) else scale)
        bias = shift if bias is None else bias * scale + shift
    kernel = ops.cast(kernel, layer.compute_dtype)
    bias = None if bias is None else ops.cast(bias, layer.compute_dtype)

    def apply(inputs):
        outputs = _product(layer, ops.cast(inputs, layer.compute_dtype), kernel)
        outputs = outputs if bias is None else ops.add(outputs, bias)
        return layer.activation(outputs) if normalisation is None else ops.cast(outputs, normalisation.compute_dtype)

    return apply


def _constants(normalisation, dtype):
    """What a BatchNormalization multiplies by and adds in evaluation mode, two vectors."""
    scale = ops.rsqrt(ops.cast(normalisation.moving_variance, dtype) + normalisation.epsilon)
    if normalisation.scale:
        scale = scale * ops.cast(normalisation.gamma, dtype)
    shift = -ops.cast(normalisation.moving_mean, dtype) * scale
    return scale, shift + ops.cast(normalisation.beta, dtype) if normalisation.center else shift


def _product(layer, inputs, kernel):
    if type(layer) is keras.layers.Conv2D:
        return (_strided if _has_slow_gradient(layer, inputs) else _convolution)(layer, inputs, kernel)
    if _is_depthwise(layer):
        return ops.depthwise_conv(inputs, kernel, layer.strides, layer.padding, layer.data_format, layer.dilation_rate)
    return ops.matmul(inputs, kernel)


def _convolution(layer, inputs, kernel):
    return layer.convolution_op(inputs, kernel)


def _has_slow_gradient(layer, inputs):
    """Whether the gradient of `_strided` is the faster one."""
    (stride, *others), sizes = layer.strides, layer.kernel_size
    return (
        stride > 1
        and others == [stride]
        and not any(size % stride for size in sizes)
        and set(layer.dilation_rate) == {1}
        and layer.groups == 1
        and inputs.shape[-1] <= _FEW_CHANNELS
        and None not in inputs.shape[1:]
        and not layers.has_gpu()
    )


def _strided(layer, inputs, kernel):
    """A strided convolution whose gradient is a convolution too: stride x stride pixels are channels of one."""
    stride, (height, width), (rows, columns, channels, filters) = layer.strides[0], inputs.shape[1:3], kernel.shape
    parts = rows // stride, columns // stride

    @tf.custom_gradient
    def apply(inputs, kernel):
        def gradient(upstream):
            blocks = ops.reshape(kernel, (parts[0], stride, parts[1], stride, channels, filters))
            blocks = ops.transpose(ops.flip(blocks, (0, 2)), (0, 2, 5, 1, 3, 4))
            blocks = ops.reshape(blocks, (*parts, filters, stride * stride * channels))
            around = [[0, 0], *([part - 1, part - 1] for part in parts), [0, 0]]
            covered = tf.nn.depth_to_space(tf.nn.conv2d(upstream, blocks, 1, around), stride)
            # What the kernels covered of the padded image: the padding goes, and what they left out has no gradient.
            sizes = covered.shape[1:3]
            same = layer.padding == "same"
            before = [(each - size) // 2 if same else 0 for each, size in zip(sizes, (height, width), strict=True)]
            covered = covered[:, before[0] : before[0] + height, before[1] : before[1] + width]
            missing = [[0, size - each] for each, size in zip(covered.shape[1:3], (height, width), strict=True)]
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=inputs, filter_sizes=kernel.shape, out_backprop=upstream,
                strides=[1, stride, stride, 1], padding=layer.padding.upper(),
            )  # fmt: skip
            return tf.pad(covered, [[0, 0], *missing, [0, 0]]), of_kernel

        return layer.convolution_op(inputs, kernel), gradient

    return apply(inputs, kernel)


def _is_depthwise(layer):
    return type(layer) is keras.layers.DepthwiseConv2D


def _fuses_in_evaluation(layer, inputs):
    """Whether the fused operation is worth its while: in float32 Keras's are as fast."""
    return inputs.dtype != "float32" and layers.can_fuse(layer, inputs)


def _either(fits, fast, layer, training):
    """The fast way through a layer where it fits the inputs, the layer itself where it does not."""

    def apply(inputs):
        inputs = ops.cast(inputs, layer.compute_dtype)
        return fast(layer, inputs) if fits(layer, inputs) else layer(inputs, training=training)

    return apply
