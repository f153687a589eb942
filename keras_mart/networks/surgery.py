"""Replaces the end of a functional network; all other layers are shared with the original network."""

from typing import NamedTuple

import keras

from keras_mart import folding


class OutputCall(NamedTuple):
    """The call that computes a network's output: its operation and arguments, and the input and name of the network."""

    operation: object
    args: tuple
    kwargs: dict
    images: object
    name: str

    def with_operation(self, operation):
        """Returns the network whose output is another operation of the same tensors."""
        return self.with_output(operation(*self.args, **self.kwargs))

    def with_output(self, output):
        """Returns the network with another symbolic tensor of its graph as output."""
        return keras.Model(self.images, output, name=self.name)


def output_call_of(network):
    """Returns the `OutputCall` of a network.

    Raises:
        ValueError: the network is not functional, so its graph is not known.
    """
    graph, calls = folding.graph_of(network), []
    if graph is None:
        raise ValueError(
            "To change its last layer, `model` must be a functional or Sequential network with one input, one output "
            f"and a known input shape. Received: {network!r}"
        )

    def call(operation, *args, **kwargs):
        calls.append((operation, args, kwargs, operation(*args, **kwargs)))
        return calls[-1][-1]

    seen = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)
    operation, args, kwargs, _ = next(each for each in calls if each[-1] is seen.outputs[0])
    return OutputCall(operation, args, kwargs, seen.inputs[0], network.name)


def without_activation(layer):
    """Returns a layer that shares the variables of another layer, but has no activation.

    Raises:
        ValueError: the layer has weights that are not attributes, such as those of a quantised layer.
    """
    linear = type(layer).from_config({**layer.get_config(), "activation": "linear"})
    for name, value in vars(layer).items():
        if isinstance(value, keras.Variable):
            setattr(linear, name, value)
    linear.input_spec, linear.built = layer.input_spec, layer.built
    if [id(each) for each in linear.weights] != [id(each) for each in layer.weights]:
        raise ValueError(
            f"The last layer must have its weights as attributes and not be quantised. Received: {layer!r}"
        )
    return linear
