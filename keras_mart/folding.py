"""Fast views that compute the same outputs as a network: one for attacks, in evaluation mode, and one for training.

In evaluation mode a BatchNormalization multiplies by and adds constants, which can be folded into the kernel and bias
of the convolution or dense layer before it. A view is created from the current weights, folded in float32 and cast
once, so that an attack of ten steps does not normalise or cast weights ten times. In training a BatchNormalization is
one operation (`keras_mart.layers`).

Views support functional and Sequential networks with one input and one output, also nested. Everything else is called
unchanged: other layers, layers called more than once, subclassed networks, networks with masks.

A view is a model that Keras's `clone_model` creates from the graph of the network. Each of its operations stands in for
one of the network's and has no weights: it calls that operation or a substitute for it.
"""

import collections
import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mart import layers
from keras_mart.typing import Tensor

__all__ = ["StandIn", "disable", "enable", "enabled", "stand_ins_of", "training_view", "view"]

_BATCH_NORMALISATIONS = (keras.layers.BatchNormalization, layers.BatchNormalization)
_LAYERS_WITH_KERNEL = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
# With at most this many channels, TensorFlow's gradient of a strided convolution takes three times as long as necessary
# on a CPU.
_FEW_CHANNELS = 4

_enabled = True


def enable() -> None:
    """Makes attacks and training use fast views, which is the default."""
    global _enabled
    _enabled = True


def disable() -> None:
    """Makes attacks and training call networks directly; takes effect in training at the next `fit`."""
    global _enabled
    _enabled = False


def enabled() -> bool:
    """Returns whether attacks and training use fast views."""
    return _enabled


def view(network: keras.Model) -> Callable[..., Tensor]:
    """Returns a function of images equal to `network(images, training=False)`, up to rounding, at the current weights.

    The function holds tensors: one created inside a `tf.function` is valid only in that trace.

    Args:
        network: a Keras model.
    """
    if not _enabled:
        return functools.partial(network, training=False)
    return _view(network, _substitute_for_evaluation, training=False)


def training_view(network: keras.Model) -> Callable[..., Tensor]:
    """Returns a function of images equal to `network(images, training=True)`, up to rounding; updates its statistics.

    One difference: if the graph of a functional network calls an inner layer or model with `training=False`, it runs in
    evaluation mode. Keras runs it in training mode (keras-team/keras issue 20285).

    Args:
        network: a Keras model.
    """
    return _view(network, _substitute_for_training, training=True)


def _view(network, substitute=None, training=True):
    graph = graph_of(network)
    if graph is None:
        return functools.partial(network, training=training)
    clone, stand_ins = stand_ins_of(graph, training)
    clone.dtype_policy, clone.autocast = network.dtype_policy, network.autocast
    if substitute and not any(_is_masked(each.operation, *call) for each in stand_ins for call in each.calls):
        substitute([each for each in stand_ins if _is_plain(each)], _consumers(stand_ins, clone.outputs))
    return functools.partial(clone, training=training)


def stand_ins_of(graph: keras.Model, training: bool = False) -> tuple[keras.Model, list["StandIn"]]:
    """Returns a model of the same graph, and the `StandIn` of each of its operations except the inputs, in order."""
    clone = keras.models.clone_model(graph, clone_function=lambda operation: StandIn(operation, training))
    return clone, [each for each in clone.operations if isinstance(each, StandIn)]


class StandIn(keras.Operation):
    """An operation of a view: calls an operation of the network, or a substitute for it.

    Args:
        operation: the operation of the network.
        training: whether the view runs in training mode.
    """

    def __init__(self, operation: keras.Operation, training: bool):
        super().__init__()
        self.operation, self.training, self.substitute = operation, training, None
        self.calls: list[tuple] = []  # in the graph: arguments, keyword arguments and symbolic outputs

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        # The output of the operation's first call. Other calls may have other shapes, but these are not used.
        outputs = keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), self.operation.output)
        self.calls.append((args, kwargs, outputs))
        return outputs

    def trains(self, kwargs: dict[str, Any]) -> bool:
        """Returns whether a call with these keyword arguments in the graph runs in training mode."""
        # Graphs record a default of `training=False`, such as Dropout's, like an explicit argument.
        disabled = kwargs.get("training") is False and _default_of_training(self.operation) is not False
        return self.training and not disabled

    def call(self, *args: Any, **kwargs: Any) -> Any:
        if self.substitute is not None:
            return self.substitute(*args)
        if isinstance(self.operation, keras.layers.Layer):
            kwargs["training"] = self.trains(kwargs)
            if kwargs["training"] and isinstance(self.operation, keras.Model) and _has_no_loss(self.operation):
                return _view(self.operation)(*args, **kwargs)  # its graph may contain `training` arguments too
        return self.operation(*args, **kwargs)


def _default_of_training(operation):
    parameter = inspect.signature(operation.call).parameters.get("training")
    return None if parameter is None else parameter.default


def _has_no_loss(operation):
    return getattr(operation, "activity_regularizer", None) is None


def graph_of(network):
    """Returns a functional model of the graph that a call of the network runs; `None` if a call runs other code."""
    if not isinstance(network, (keras.Sequential, keras.Function)):
        return None
    inputs, outputs = (getattr(network, name, ()) for name in ("inputs", "outputs"))  # missing without an input shape
    if not len(inputs) == len(outputs) == 1:
        return None
    graph = keras.Model(*inputs, *outputs, name="view")
    kind = keras.Sequential if isinstance(network, keras.Sequential) else type(graph)
    return graph if type(network).call is kind.call and type(network).__call__ is kind.__call__ else None


def _substitute_for_evaluation(plain, consumers):
    """Sets the substitutes of plain stand-ins for evaluation mode."""
    for each in plain:
        if _has_plain_kernel(each.operation):
            following = consumers[id(each.calls[0][-1])]
            folds = len(following) == 1 and following[0] in plain and _can_fold(each.operation, following[0].operation)
            each.substitute = _folded(each.operation, following[0].operation if folds else None)
            if folds:
                following[0].substitute = lambda inputs: inputs
        elif isinstance(each.operation, keras.Model):
            each.substitute = view(each.operation)
    for each in plain:
        if each.substitute is None and type(each.operation) in _BATCH_NORMALISATIONS:
            each.substitute = _fast_if_supported(_fuses_in_evaluation, layers.fused, each.operation, False)


def _substitute_for_training(plain, _):
    """Sets the substitutes of plain stand-ins for training mode."""
    fused = functools.partial(layers.fused, training=True)
    for each in plain:
        trains = each.trains(each.calls[0][1])
        if isinstance(each.operation, keras.Model):
            # The view is created at the call, when a tape is already watching the weights that it reads.
            each.substitute = functools.partial(_call_view, training_view if trains else view, each.operation)
        elif _enabled and trains and type(each.operation) is keras.layers.BatchNormalization:
            each.substitute = _fast_if_supported(layers.can_fuse, fused, each.operation, True)


def _call_view(make_view, network, inputs):
    return make_view(network)(inputs)


def _consumers(stand_ins, outputs):
    """Returns {id of a tensor: the stand-ins that take it}, with `None` for the network's output."""
    consumers = collections.defaultdict(list)
    for consumer, read in [*((each, call[:2]) for each in stand_ins for call in each.calls), (None, outputs)]:
        for tensor in keras.tree.flatten(read):
            consumers[id(tensor)].append(consumer)
    return consumers


def _is_plain(stand_in):
    """Returns whether an operation is called once, maps one tensor to one tensor, and adds no loss."""
    args, kwargs, outputs = stand_in.calls[0]
    # Substitutes have no `training` argument: they are created for its value.
    others = [value for name, value in kwargs.items() if name != "training"]
    return (
        len(stand_in.calls) == len(args) == 1
        and all(isinstance(each, keras.KerasTensor) for each in (args[0], outputs))
        and all(value is None for value in others)
        and _has_no_loss(stand_in.operation)
        and getattr(stand_in.operation, "autocast", True)
    )


def _is_masked(operation, args, kwargs, _):
    """Returns whether an operation receives or creates a mask."""
    inputs = next(iter((*args, *kwargs.values())))
    none = keras.tree.map_structure(lambda _: None, inputs)
    created = operation.compute_mask(inputs, none) if getattr(operation, "supports_masking", False) else None
    return any(mask is not None for mask in keras.tree.flatten((kwargs.get("mask"), created)))


def _has_plain_kernel(operation):
    return (
        type(operation) in _LAYERS_WITH_KERNEL
        and getattr(operation, "data_format", "channels_last") == "channels_last"
        and not getattr(operation, "lora_enabled", False)
        and not getattr(operation, "quantization_mode", None)
    )


def _can_fold(layer, following):
    """Returns whether the following operation can be folded into a layer with a kernel."""
    return (
        type(following) in _BATCH_NORMALISATIONS
        and layer.activation is keras.activations.linear
        and layer.compute_dtype != "float16"  # the product of kernel and scale may overflow there
        and not layers.renormalises(following)
        and following.axis in (-1, following.input_spec.ndim - 1)
    )


def _folded(layer, normalisation):
    """Returns a layer with a kernel as a function, with the BatchNormalization after it folded in, if there is one."""
    dtype = keras.backend.result_type(layer.variable_dtype, "float32")
    kernel = ops.cast(layer.kernel, dtype)
    bias = None if layer.bias is None else ops.cast(layer.bias, dtype)
    if normalisation is not None:
        scale, shift = _scale_and_shift(normalisation, dtype)
        kernel = kernel * (ops.reshape(scale, kernel.shape[-2:]) if _is_depthwise(layer) else scale)
        bias = shift if bias is None else bias * scale + shift
    kernel = ops.cast(kernel, layer.compute_dtype)
    bias = None if bias is None else ops.cast(bias, layer.compute_dtype)

    def apply(inputs):
        outputs = _apply_kernel(layer, ops.cast(inputs, layer.compute_dtype), kernel)
        outputs = outputs if bias is None else ops.add(outputs, bias)
        return layer.activation(outputs) if normalisation is None else ops.cast(outputs, normalisation.compute_dtype)

    return apply


def _scale_and_shift(normalisation, dtype):
    """Returns the two vectors that a BatchNormalization multiplies by and adds in evaluation mode."""
    scale = ops.rsqrt(ops.cast(normalisation.moving_variance, dtype) + normalisation.epsilon)
    if normalisation.scale:
        scale = scale * ops.cast(normalisation.gamma, dtype)
    shift = -ops.cast(normalisation.moving_mean, dtype) * scale
    return scale, shift + ops.cast(normalisation.beta, dtype) if normalisation.center else shift


def _apply_kernel(layer, inputs, kernel):
    if type(layer) is keras.layers.Conv2D:
        return (_strided_convolution if _has_slow_gradient(layer, inputs) else _convolution)(layer, inputs, kernel)
    if _is_depthwise(layer):
        return ops.depthwise_conv(inputs, kernel, layer.strides, layer.padding, layer.data_format, layer.dilation_rate)
    return ops.matmul(inputs, kernel)


def _convolution(layer, inputs, kernel):
    return layer.convolution_op(inputs, kernel)


def _has_slow_gradient(layer, inputs):
    """Returns whether the gradient of `_strided_convolution` is faster."""
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


def _strided_convolution(layer, inputs, kernel):
    """Applies a strided convolution whose gradient is a convolution too, of blocks of stride x stride pixels."""
    stride, (height, width), (rows, columns, channels, filters) = layer.strides[0], inputs.shape[1:3], kernel.shape
    parts = rows // stride, columns // stride

    @tf.custom_gradient
    def apply(inputs, kernel):
        def gradient(upstream):
            blocks = ops.reshape(kernel, (parts[0], stride, parts[1], stride, channels, filters))
            blocks = ops.transpose(ops.flip(ops.flip(blocks, 0), 2), (0, 2, 5, 1, 3, 4))
            blocks = ops.reshape(blocks, (*parts, filters, stride * stride * channels))
            around = [[0, 0], *([part - 1, part - 1] for part in parts), [0, 0]]
            covered = tf.nn.depth_to_space(tf.nn.conv2d(upstream, blocks, 1, around), stride)
            # The kernels cover part of the padded image: padding is cut off, uncovered pixels get a gradient of 0.
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
    """Returns whether the fused operation is supported and faster; in float32 Keras's operations are as fast."""
    return inputs.dtype != "float32" and layers.can_fuse(layer, inputs)


def _fast_if_supported(is_supported, fast, layer, training):
    """Returns a function that applies `fast(layer, inputs)` where inputs are supported, otherwise the layer itself."""

    def apply(inputs):
        inputs = ops.cast(inputs, layer.compute_dtype)
        return fast(layer, inputs) if is_supported(layer, inputs) else layer(inputs, training=training)

    return apply
