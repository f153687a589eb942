"""Fast and equal views of a network: one for attacks, in evaluation mode, and one for training.

In evaluation mode a BatchNormalization multiplies and adds constants, which the convolution or dense layer in front of
it can do as well: with another kernel and a bias. The view is made from the live weights whenever it is asked for, in
float32, and cast once: an attack of ten steps neither normalises nor casts weights ten times. In training a
BatchNormalization is one operation, and a convolution may have another gradient (`keras_mart.layers`).

Views are of functional networks and Sequential ones, also inside one another. Whatever does not fit is called as it is:
other layers, layers called more than once, subclassed networks.
"""

import collections
import functools

import keras
from keras import ops
from keras.src.models.functional import Functional, operation_fn  # private: the class of functional models, see _View

from keras_mart import layers

_BATCH_NORMALISATIONS = (keras.layers.BatchNormalization, layers.BatchNormalization)
_WEIGHTED = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)

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
    return _view(network, _in_evaluation, training=False)


def training_view(network):
    """Maps images to what `network(images, training=True)` gives, to rounding; updates the statistics as it does.

    Args:
        network: a Keras model.
    """
    return _view(network, _in_training, training=True)


def _view(network, substitutes, training):
    graph = _graph_of(network) if _enabled else None
    seen = network if graph is None else _View(network, graph, substitutes(graph))
    return lambda images: seen(images, training=training)


class _View(keras.layers.Layer):
    """A functional graph with some of its operations replaced.

    A layer, so that those inside learn as ever whether they are trained.
    """

    def __init__(self, network, graph, substitutes):
        super().__init__(dtype=network.dtype_policy, autocast=network.autocast, name="view")
        self.built = True
        # Private: what is done with inputs before `call`. A Sequential casts them, a functional model does not.
        self._convert_input_args = network._convert_input_args
        self._allow_non_tensor_positional_args = True

        def run(inputs, training):
            def called(operation):
                return substitutes.get(operation) or operation_fn(operation, training=training)

            return graph._run_through_graph(graph._standardize_inputs(inputs), called)

        # Private: what Functional.call does, the only way to run a graph with other operations. The graph is no
        # attribute, which Keras would track.
        self._run = run

    def call(self, inputs, training=None):
        outputs = self._run(inputs, training)
        return outputs[0] if isinstance(outputs, (list, tuple)) and len(outputs) == 1 else outputs


def _graph_of(network):
    """The functional graph that calling a model runs, `None` where it runs something else."""
    kind = next((kind for kind in (keras.Sequential, Functional) if isinstance(network, kind)), None)
    if kind is None or type(network).call is not kind.call or type(network).__call__ is not kind.__call__:
        return None
    return network._functional if kind is keras.Sequential else network  # private: `None` without an input's shape


def _in_evaluation(graph):
    """Operation to what takes its place in a graph in evaluation mode."""
    calls, consumers = _plain_calls(graph)
    substitutes = {}
    for operation, node in calls.items():
        if _has_plain_weights(operation):
            following = consumers[id(node.outputs[0])]
            folds = len(following) == 1 and following[0] in calls and _folds(node, following[0])
            substitutes[operation] = _weighted(operation, following[0] if folds else None)
            if folds:
                substitutes[following[0]] = lambda inputs, **_: inputs
        elif isinstance(operation, keras.Model):
            substitutes[operation] = _inner(view(operation))
    for operation in calls:
        if operation not in substitutes and type(operation) in _BATCH_NORMALISATIONS:
            substitutes[operation] = _either(_fuses_in_evaluation, layers.fused, operation, False)
    return substitutes


def _in_training(graph):
    """Operation to what takes its place in a graph in training mode."""
    substitutes = {}
    fused = functools.partial(layers.fused, training=True)
    for operation in _plain_calls(graph)[0]:
        if type(operation) is keras.layers.BatchNormalization:
            substitutes[operation] = _either(layers.fuses, fused, operation, True)
        elif type(operation) is keras.layers.Conv2D and _has_plain_weights(operation):
            substitutes[operation] = _either(layers.has_slow_gradient, layers.convolution, operation, True)
        elif isinstance(operation, keras.Model):
            substitutes[operation] = _inner(training_view(operation))
    return substitutes


def _plain_calls(graph):
    """The operations called once and plainly, with their calls; and whom each tensor, by its id, goes to."""
    depths = graph._nodes_by_depth.values()  # private: which call feeds which
    nodes = [node for depth in depths for node in depth if not node.is_input]
    times = collections.Counter(node.operation for node in nodes)
    consumers = collections.defaultdict(list)
    for node in nodes:
        for tensor in node.input_tensors:
            consumers[id(tensor)].append(node.operation)
    for tensor in graph.outputs:
        consumers[id(tensor)].append(None)
    return {node.operation: node for node in nodes if times[node.operation] == 1 and _is_plain(node)}, consumers


def _is_plain(node):
    """Whether a call maps one tensor without a mask to one, and leaves no loss behind."""
    arguments = node.arguments
    one = len(arguments.args) == 1 and isinstance(arguments.args[0], keras.KerasTensor) and len(node.outputs) == 1
    # What the graph recorded of `training` gives way to how the whole network is called.
    others = [value for name, value in arguments.kwargs.items() if name != "training"]
    return (
        one
        and all(value is None for value in others)
        and getattr(arguments.args[0], "_keras_mask", None) is None
        and getattr(node.operation, "activity_regularizer", None) is None
        and getattr(node.operation, "autocast", True)
    )


def _has_plain_weights(operation):
    return (
        type(operation) in _WEIGHTED
        and getattr(operation, "data_format", "channels_last") == "channels_last"
        and not getattr(operation, "lora_enabled", False)
        and not getattr(operation, "quantization_mode", None)
    )


def _folds(node, following):
    """Whether a layer with weights can do what the operation behind its call does."""
    return (
        type(following) in _BATCH_NORMALISATIONS
        and node.operation.activation is keras.activations.linear
        and node.operation.compute_dtype != "float16"  # whose range a product of kernel and scale may leave
        and not following.renorm
        and following.axis in (-1, len(node.outputs[0].shape) - 1)
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

    def apply(inputs, **_):
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
        return layer.convolution_op(inputs, kernel)
    if _is_depthwise(layer):
        return ops.depthwise_conv(inputs, kernel, layer.strides, layer.padding, layer.data_format, layer.dilation_rate)
    return ops.matmul(inputs, kernel)


def _is_depthwise(layer):
    return type(layer) is keras.layers.DepthwiseConv2D


def _fuses_in_evaluation(layer, inputs):
    """Whether the fused operation is worth its while: in float32 Keras's are as fast."""
    return inputs.dtype != "float32" and layers.fuses(layer, inputs)


def _either(fits, fast, layer, training):
    """The fast way through a layer where it fits the inputs, the layer itself where it does not."""

    def apply(inputs, **_):
        inputs = ops.cast(inputs, layer.compute_dtype)
        return fast(layer, inputs) if fits(layer, inputs) else operation_fn(layer, training=training)(inputs)

    return apply


def _inner(seen):
    return lambda inputs, **_: seen(inputs)
