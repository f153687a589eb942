"""Distribution strategies by name, and communication between replicas and between workers."""

import faulthandler
import functools
import itertools
import pickle
import random

import numpy as np
import tensorflow as tf

from keras_mart import checks, clusters, watch

__all__ = ["describe", "is_chief", "strategy", "worker"]

STRATEGIES = ("auto", "none", "mirrored", "multiworker")
CHUNK = 4096  # sizes are sent as quotient and remainder, since float32 is exact only for integers up to 2**24
CONNECT_TIMEOUT = 60  # seconds for TensorFlow to connect workers that have all started


def strategy(name: str = "auto") -> tf.distribute.Strategy:
    """Returns the `tf.distribute` strategy of the given name.

    "multiworker" must be created before the process uses TensorFlow for anything else. It waits for all workers and
    watches them from then on (`keras_mart.watch`).

    Args:
        name: "none" for one device; "mirrored" for all visible GPUs (all logical CPU devices if there is no GPU);
            "multiworker" for the cluster that TF_CONFIG or the step of a Slurm job describes (a cluster of only this
            process is treated like "auto" without a cluster); "auto" for "multiworker" if there are several workers,
            "mirrored" if there are at least two GPUs, and "none" otherwise.

    Raises:
        ValueError: the name is unknown, there is no cluster for "multiworker", or TF_CONFIG is invalid.
        RuntimeError: "multiworker" after TensorFlow was used.
        watch.WorkerLost: a worker did not start.
    """
    checks.one_of(name, STRATEGIES, "strategy")
    if name in ("auto", "multiworker"):
        workers = clusters.from_environment()
        if workers is None and name == "multiworker":
            raise ValueError(
                "`strategy='multiworker'` needs a cluster: TF_CONFIG, or a step of a Slurm job (srun). "
                "Received: neither in the environment."
            )
        if workers is not None and len(workers.addresses) > 1:
            return _multiworker(workers)
        name = "mirrored" if len(tf.config.list_logical_devices("GPU")) > 1 else "none"
    if name == "none":
        return tf.distribute.get_strategy()
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices(kind)])


def describe(strategy: tf.distribute.Strategy) -> str:
    """Returns a description of a strategy in one line, such as "worker 0 of 2 (10.0.0.1:2222), 2 devices"."""
    devices = f"{strategy.num_replicas_in_sync} device{'s' if strategy.num_replicas_in_sync > 1 else ''}"
    index, workers = worker(strategy)
    if workers == 1:
        return devices
    return f"worker {index} of {workers} ({clusters.from_environment().addresses[index]}), {devices}"


def worker(strategy: tf.distribute.Strategy | None = None) -> tuple[int, int]:
    """Returns (index of this process, number of workers); (0, 1) outside a cluster.

    A chief is worker 0; the other workers follow.

    Args:
        strategy: by default the one in scope.
    """
    resolver = (strategy or tf.distribute.get_strategy()).cluster_resolver
    tasks = resolver.cluster_spec().as_dict() if resolver else {}
    chiefs = len(tasks.get("chief", ()))
    count = chiefs + len(tasks.get("worker", ()))
    if count < 2:
        return 0, 1
    return resolver.task_id + (chiefs if resolver.task_type == "worker" else 0), count


def num_local_replicas(strategy):
    """Returns the number of replicas in this process of a strategy, which may be `None`."""
    several = strategy is not None and strategy.num_replicas_in_sync > 1
    return len(strategy.extended.worker_devices) if several else 1


def is_chief(strategy: tf.distribute.Strategy | None = None) -> bool:
    """Returns whether this process is worker 0, the only one that writes files; `True` outside a cluster.

    Args:
        strategy: by default the one in scope.
    """
    return worker(strategy)[0] == 0


def _multiworker(workers):
    # TensorFlow's own resolver for Slurm fails without GPUs, and sorts node10 before node9, unlike Slurm.
    gpus = len(tf.config.list_physical_devices("GPU"))
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(workers.tasks),
        task_type=workers.job,
        task_id=workers.task,
        num_accelerators={"GPU": gpus},
        rpc_layer="grpc",
    )
    kind = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(implementation=kind.NCCL if gpus else kind.RING)
    _check_unused()
    watch.start(workers.addresses, workers.index)
    # If a worker dies now, TensorFlow waits an hour without running Python code: this exits the process.
    faulthandler.dump_traceback_later(CONNECT_TIMEOUT, exit=True, file=2)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _check_unused():
    try:  # changes nothing, but TensorFlow raises an error if an operation has already run
        tf.config.threading.set_inter_op_parallelism_threads(tf.config.threading.get_inter_op_parallelism_threads())
    except RuntimeError as error:
        raise RuntimeError(
            "The strategy 'multiworker' must be created before TensorFlow does anything else: call "
            "`keras_mart.distribution.strategy(...)` first in the program, before data, models and seeds. "
            "Received: a process that has already used TensorFlow."
        ) from error


def prefers_xla():
    """Returns whether XLA is faster on the visible devices: on GPUs it is; on CPUs TensorFlow's convolutions are."""
    return bool(tf.config.get_visible_devices("GPU"))


def replica_id():
    """Returns the number of the current replica among all replicas, an integer or an integer tensor."""
    context = tf.distribute.get_replica_context()
    return context.replica_id_in_sync_group if context else 0


def all_reduce_sum(value):
    """Returns the sum of a tensor, or of each tensor of a structure, over all replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def as_replica_row(values):
    """Returns [replicas, ...]: a float tensor in this replica's row, zeros elsewhere, so that the sum has all rows."""
    replicas = tf.range(tf.distribute.get_strategy().num_replicas_in_sync)
    here = tf.reshape(replicas == replica_id(), [-1] + [1] * len(values.shape))
    return tf.where(here, values, tf.zeros_like(values))


def all_reduce(means, sums, weight):
    """Averages and sums tensors over all replicas, in one message.

    Args:
        means: structure of tensors to average; tensors that are not floating-point are returned unchanged.
        sums: structure of tensors to sum.
        weight: scalar, the weight of this replica in the averages.

    Returns:
        (means, sums).
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return means, sums
    flat = tf.nest.flatten(means)
    floats = {n: each * tf.cast(weight, each.dtype) for n, each in enumerate(flat) if each.dtype.is_floating}
    floats, sums, whole = all_reduce_sum((floats, sums, weight))
    flat = [floats[n] / tf.cast(whole, each.dtype) if n in floats else each for n, each in enumerate(flat)]
    return tf.nest.pack_sequence_as(means, flat), sums


def local_array(value):
    """Returns this worker's part of a value as an array: the concatenated parts of its replicas."""
    parts = tf.distribute.get_strategy().experimental_local_results(value)
    return np.asarray(parts[0]) if len(parts) == 1 else np.concatenate([np.asarray(part) for part in parts])


def assign(variables, values):
    """Assigns values to variables inside a replica, without communication.

    The values must be the same on all replicas, except for variables that are summed over replicas when they are read,
    as those of metrics are.
    """
    summed = [each.aggregation == "sum" for each in variables]
    for variable, value in itertools.compress(zip(variables, values, strict=True), summed):
        variable.assign(value)
    equal = [pair for pair, here in zip(zip(variables, values, strict=True), summed, strict=True) if not here]

    def everywhere(strategy, values):
        for (variable, _), value in zip(equal, values, strict=True):
            strategy.extended.update(variable.value, lambda local, new: local.assign(new), (value,), group=False)

    tf.distribute.get_replica_context().merge_call(everywhere, args=([value for _, value in equal],))


def broadcast(number, strategy=None):
    """Returns the first worker's integer on all workers. Every worker must call this."""
    return all_gather(number, strategy)[0]


def share_seed(strategy):
    """Sets TensorFlow's global seed to the same value on all workers. Every worker must call this."""
    if worker(strategy)[1] > 1:
        tf.random.set_seed(broadcast(random.getrandbits(31), strategy))


def with_default_options(data, strategy):
    """Sets options of a `tf.data.Dataset` that are not set yet; returns other data unchanged.

    Examples are sharded over workers. TensorFlow's default shards the files that are read, if it can: batches then
    differ from those on one device, and epochs may end at different times. The autotuner of `tf.data` is turned off,
    since destroying an iterator waits for it, for up to a minute.
    """
    if not isinstance(data, tf.data.Dataset):
        return data
    given, options = data.options(), tf.data.Options()
    if given.autotune.enabled is None:
        options.autotune.enabled = False
    policies = tf.data.experimental.AutoShardPolicy
    if worker(strategy)[1] > 1 and given.experimental_distribute.auto_shard_policy == policies.AUTO:
        options.experimental_distribute.auto_shard_policy = policies.DATA
    return data.with_options(options)


def logs_for_keras(logs):
    """Adds an axis to metrics on several workers, over which Keras averages them (keras-team/keras issue 20585)."""
    return logs if worker()[1] == 1 else {name: value[None] for name, value in logs.items()}


def all_gather(value, strategy=None):
    """Returns the list of all workers' values, in the order of workers. Every worker must call this.

    Args:
        value: any object that can be pickled.
        strategy: the model's strategy; by default the one in scope.
    """
    strategy = strategy or tf.distribute.get_strategy()
    index, workers = worker(strategy)
    if workers == 1:
        return [value]
    own = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = np.zeros([workers, 2], "float32")
    sizes[index] = divmod(len(own), CHUNK)
    sizes = _sum(sizes.ravel(), strategy).reshape(sizes.shape).astype(int) @ [CHUNK, 1]
    table = np.zeros([workers, sizes.max()], "float32")  # NCCL and rings sum floats, which represent bytes exactly
    table[index, : len(own)] = own
    table = _sum(table.ravel(), strategy).reshape(table.shape).astype(np.uint8)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(table, sizes, strict=True)]


def any_across_workers(flag, strategy=None):
    """Returns whether the flag is set on any worker. Every worker must call this."""
    strategy = strategy or tf.distribute.get_strategy()
    return bool(flag) if worker(strategy)[1] == 1 else _sum(np.float32([flag]), strategy)[0] > 0


def _sum(vector, strategy):
    """Returns the sum of a float32 array over all workers."""
    return np.asarray(strategy.experimental_local_results(_summing(strategy)(tf.constant(vector)))[0])


@functools.cache
def _summing(strategy):
    def of_replica(vector):
        context = tf.distribute.get_replica_context()
        first = context.replica_id_in_sync_group % len(strategy.extended.worker_devices) == 0
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(first, vector, 0.0))

    return tf.function(
        lambda vector: strategy.run(of_replica, (vector,)), input_signature=[tf.TensorSpec([None])], autograph=False
    )


def fill_if_empty(tensors):
    """Gives a replica without examples one example of zeros, since gradients and attacks need a batch.

    If the last batch is smaller than the number of replicas, some of them get no example.

    Args:
        tensors: structure of [batch, ...] tensors.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tensors
    missing = tf.cast(tf.shape(tf.nest.flatten(tensors)[0])[0] == 0, "int32")

    def fill(tensor):
        return tf.pad(tensor, [[0, missing]] + [[0, 0]] * (len(tensor.shape) - 1))

    return tf.nest.map_structure(fill, tensors)
