"""Saves and restores the whole state of a model as arrays, bit for bit.

Weights, optimizer variables, seeds of Dropout, counters and margins are equal on all replicas. Metrics are not: each
replica and each worker counts its own examples.
"""

import numpy as np

from keras_mart import distribution


def arrays(model):
    """Returns the values of all variables except those of the metrics."""
    return [variable.numpy() for variable in _variables(model)]


def restore(model, values):
    """Assigns the values that `arrays` returned to a model with the same variables.

    Raises:
        ValueError: if the values are of another model.
    """
    variables = _variables(model)
    shapes = [tuple(variable.shape) for variable in variables]
    if shapes != [value.shape for value in values]:
        raise ValueError(
            "A checkpoint must be of the same model and optimizer. "
            f"Received: {len(values)} arrays for {len(shapes)} variables, or other shapes"
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def metrics(model):
    """Returns the metrics' values per worker: for each variable a list with one float per replica.

    Every worker must call this.
    """
    strategy = model.distribute_strategy
    values = [strategy.experimental_local_results(variable.value) for variable in model.metrics_variables]
    return distribution.all_gather([[float(part.numpy()) for part in parts] for parts in values], strategy)


def restore_metrics(model, values):
    """Assigns the values that `metrics` returned; if the number of replicas differs, the first one gets the sums."""
    strategy = model.distribute_strategy
    index, workers = distribution.worker(strategy)
    for number, variable in enumerate(model.metrics_variables):
        parts = strategy.experimental_local_results(variable.value)
        if len(values) == workers and len(values[index][number]) == len(parts):
            own = values[index][number]
        else:
            whole = np.sum([worker[number] for worker in values], dtype=variable.dtype) if index == 0 else 0.0
            own = [whole] + [0.0] * (len(parts) - 1)
        for part, value in zip(parts, own, strict=True):
            part.assign(np.asarray(value, variable.dtype))


def _variables(model):
    return [*model.variables, *model.optimizer.variables]
