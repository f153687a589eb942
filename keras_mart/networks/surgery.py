"""A functional network with another end; all other layers are shared with the one that it was made from."""

from typing import NamedTuple

import keras

from keras_mart import folding


class OutputCall(NamedTuple):
    """The call that makes a network's output: of what, on which tensors, in which graph."""

    operation: object
    args: tuple
    kwargs: dict
    images: object
    name: str

    def with_operation(self, operation):
        """The network with the output of another operation, called on the same tensors."""
        return self.with_output(operation(*self.args, **self.kwargs))

    def with_output(self, output):
        """The network with another output, a symbolic tensor of its graph."""
        return keras.Model(self.images, output, name=self.name)


def output_call_of(network):
    """Returns the `OutputCall` of a network.

    Raises:
        ValueError: the network is not functional, so that there is no graph to look into.
    """
    graph, calls = folding.graph_of(network), []
    if graph is None:
        raise ValueError(
            "`model` must be a functional or Sequential network with one input and one output, of a known input shape: "
            f"only such a network's end can be changed. Received: {network!r}"
        )

    def call(operation, *args, **kwargs):
        calls.append((operation, args, kwargs, operation(*args, **kwargs)))
        return calls[-1][-1]

    seen = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)
    operation, args, kwargs, _ = next(each for each in calls if each[-1] is seen.outputs[0])
    return OutputCall(operation, args, kwargs, seen.inputs[0], network.name)


def without_activation(layer):
    """A layer with the weights of another, the same variables, and without its activation.

    Raises:
        ValueError: the layer keeps its weights where they cannot be handed on, as a quantised one does.
    """
    linear = type(layer).from_config({**layer.get_config(), "activation": "linear"})
    for name, value in vars(layer).items():
        if isinstance(value, keras.Variable):
            setattr(linear, name, value)
    linear.input_spec, linear.built = layer.input_spec, layer.built
    if [id(each) for each in linear.weights] != [id(each) for each in layer.weights]:
        raise ValueError(f"The last layer must hold its weights as attributes. Received: {layer!r}")
    return linear
