"""All that a model has in memory, as arrays that bring it back bit by bit.

Weights, the optimizer, Dropout's seeds, counters and margins are equal on all replicas. Metrics are not: each replica
counts its own examples, and so does each worker.
"""

import numpy as np

from keras_mart import distribution


def arrays(model):
    """The values of all variables but the metrics'."""
    return [variable.numpy() for variable in _variables(model)]


def restore(model, values):
    """Gives a model that was built alike the values that `arrays` took.

    Raises:
        ValueError: they are of another model.
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
    """The metrics' values on each worker: for each variable a list, one float for each replica there.

    All workers must call it.
    """
    strategy = model.distribute_strategy
    values = [strategy.experimental_local_results(variable.value) for variable in model.metrics_variables]
    return distribution.all_gather([[float(part.numpy()) for part in parts] for parts in values], strategy)


def restore_metrics(model, values):
    """Gives the metrics the values that `metrics` took; on another number of replicas, the first gets their sums."""
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
