"""Strategies from a name, and the arithmetic that makes many replicas give what one device gives."""

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
CHUNK = 4096  # sizes are sent in two parts, as float32 holds integers up to 2**24 alone
STARTING = 60  # seconds for TensorFlow to connect workers that are all there


def strategy(name="auto"):
    """The `tf.distribute` strategy of that name.

    "multiworker" must come before anything else of TensorFlow's in the process. It waits for all workers and watches
    them from then on (`keras_mart.watch`).

    Args:
        name: "none" for one device, "mirrored" for all visible GPUs (all logical CPU devices where there is
            no GPU), "multiworker" for the cluster that TF_CONFIG or the step of a Slurm job describes (where that is
            this process alone: as "auto" without one), "auto" for "multiworker" where there are several workers, else
            "mirrored" where there are at least two GPUs, and "none" elsewhere.

    Raises:
        ValueError: an unknown name, "multiworker" without a cluster, a TF_CONFIG that describes none.
        RuntimeError: "multiworker" after TensorFlow was used.
        watch.WorkerLost: a worker that does not come.
    """
    checks.one_of(name, STRATEGIES, "strategy")
    if name in ("auto", "multiworker"):
        workers = clusters.of_environment()
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


def describe(strategy):
    """What a strategy is, in a line, such as "worker 0 of 2 (10.0.0.1:2222), 2 devices"."""
    devices = f"{strategy.num_replicas_in_sync} device{'s' if strategy.num_replicas_in_sync > 1 else ''}"
    index, workers = worker(strategy)
    if workers == 1:
        return devices
    return f"worker {index} of {workers} ({clusters.of_environment().addresses[index]}), {devices}"


def worker(strategy=None):
    """(index, number of workers) of this process in the strategy given or else in scope; (0, 1) outside a cluster.

    A chief is worker 0, the workers beside it follow.
    """
    resolver = (strategy or tf.distribute.get_strategy()).cluster_resolver
    tasks = resolver.cluster_spec().as_dict() if resolver else {}
    chiefs = len(tasks.get("chief", ()))
    count = chiefs + len(tasks.get("worker", ()))
    if count < 2:
        return 0, 1
    return resolver.task_id + (chiefs if resolver.task_type == "worker" else 0), count


def replicas_here(strategy):
    """The number of replicas of a strategy, or of none, in this process."""
    several = strategy is not None and strategy.num_replicas_in_sync > 1
    return len(strategy.extended.worker_devices) if several else 1


def is_chief(strategy=None):
    """Whether this process is the one of its cluster that writes; True outside a cluster."""
    return worker(strategy)[0] == 0


def _multiworker(workers):
    # TensorFlow's own resolver of Slurm jobs fails without GPUs, and sorts node10 before node9 as Slurm does not.
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
    watch.begin(workers.addresses, workers.index)
    # Should a worker die in this very moment, TensorFlow waits an hour and lets no Python code run: this ends it.
    faulthandler.dump_traceback_later(STARTING, exit=True, file=2)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _check_unused():
    try:  # changes nothing, but TensorFlow takes it only as long as no operation has run
        tf.config.threading.set_inter_op_parallelism_threads(tf.config.threading.get_inter_op_parallelism_threads())
    except RuntimeError as error:
        raise RuntimeError(
            "The strategy 'multiworker' must be made before TensorFlow does anything else: call "
            "`keras_mart.distribution.strategy(...)` first in the program, before data, models and seeds. "
            "Received: a process in which TensorFlow has begun."
        ) from error


def prefers_xla():
    """Whether XLA pays on the devices at hand: on GPUs; on CPUs TensorFlow's own convolutions are faster."""
    return bool(tf.config.get_visible_devices("GPU"))


def replica_id():
    """The number of the current replica among all, an integer or an integer tensor."""
    context = tf.distribute.get_replica_context()
    return context.replica_id_in_sync_group if context else 0


def total(value):
    """The sum of a tensor over all replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def placed(values):
    """[replicas, ...] a float tensor at this replica's place, and zeros elsewhere: their total has all replicas'."""
    replicas = tf.range(tf.distribute.get_strategy().num_replicas_in_sync)
    here = tf.reshape(replicas == replica_id(), [-1] + [1] * len(values.shape))
    return tf.where(here, values, tf.zeros_like(values))


def combined(means, sums, weight):
    """Returns what tensors come to over all replicas, for which one message is sent.

    Args:
        means: structure of tensors to average; what is no float stays as it is here.
        sums: structure of tensors to add.
        weight: scalar, that of this replica's means.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return means, sums
    flat = tf.nest.flatten(means)
    floats = {n: each * tf.cast(weight, each.dtype) for n, each in enumerate(flat) if each.dtype.is_floating}
    floats, sums, whole = total((floats, sums, weight))
    flat = [floats[n] / tf.cast(whole, each.dtype) if n in floats else each for n, each in enumerate(flat)]
    return tf.nest.pack_sequence_as(means, flat), sums


def local(value):
    """An array of this machine's part of a value: of a batch that a strategy has split, all replicas' parts."""
    parts = tf.distribute.get_strategy().experimental_local_results(value)
    return np.asarray(parts[0]) if len(parts) == 1 else np.concatenate([np.asarray(part) for part in parts])


def assign(variables, values):
    """Assigns, inside a replica, values that are equal on all of them: nothing is sent.

    What is summed over the replicas when it is read, as metrics are, may differ.
    """
    summed = [each.aggregation == "sum" for each in variables]
    for variable, value in itertools.compress(zip(variables, values, strict=True), summed):
        variable.assign(value)
    equal = [pair for pair, here in zip(zip(variables, values, strict=True), summed, strict=True) if not here]

    def everywhere(strategy, values):
        for (variable, _), value in zip(equal, values, strict=True):
            strategy.extended.update(variable.value, lambda held, new: held.assign(new), (value,), group=False)

    tf.distribute.get_replica_context().merge_call(everywhere, args=([value for _, value in equal],))


def agreed(number, strategy=None):
    """An integer that all workers share: the first one's. All must call it."""
    return gathered(number, strategy)[0]


def share_seed(strategy):
    """Makes TensorFlow's own random numbers the same on all workers."""
    if worker(strategy)[1] > 1:
        tf.random.set_seed(agreed(random.getrandbits(31), strategy))


def prepared(data, strategy):
    """Returns the data with options that suit training, where they are a `tf.data.Dataset` without options of its own.

    Several workers take different examples, and together all of them: TensorFlow's default gives each worker some of
    the files that are read; then batches are other ones than on one device, and epochs may end at different times.
    The autotuner of `tf.data` is off: an iterator's end waits for it, for up to a minute.
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


def for_keras(logs):
    """Metrics as Keras takes them from a step: it averages over workers along an axis that scalars lack.

    keras-team/keras issue 20585.
    """
    return logs if worker()[1] == 1 else {name: value[None] for name, value in logs.items()}


def gathered(thing, strategy=None):
    """[that of worker 0, that of worker 1, ...]: what each worker gives, on all of them. All must call it.

    Args:
        thing: whatever can be pickled.
        strategy: that of the model; the one in scope by default.
    """
    strategy = strategy or tf.distribute.get_strategy()
    index, workers = worker(strategy)
    if workers == 1:
        return [thing]
    own = np.frombuffer(pickle.dumps(thing), np.uint8)
    sizes = np.zeros([workers, 2], "float32")
    sizes[index] = divmod(len(own), CHUNK)
    sizes = _sum(sizes.ravel(), strategy).reshape(sizes.shape).astype(int) @ [CHUNK, 1]
    table = np.zeros([workers, sizes.max()], "float32")  # NCCL and rings add floats, which hold a byte exactly
    table[index, : len(own)] = own
    table = _sum(table.ravel(), strategy).reshape(table.shape).astype(np.uint8)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(table, sizes, strict=True)]


def any_worker(flag, strategy=None):
    """Whether the flag is set on one of the workers. All must call it."""
    strategy = strategy or tf.distribute.get_strategy()
    return bool(flag) if worker(strategy)[1] == 1 else _sum(np.float32([flag]), strategy)[0] > 0


def _sum(vector, strategy):
    """The sum of a float32 array over all workers."""
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
    """Gives a replica without examples one of zeros, since gradients and attacks need a batch.

    A last batch smaller than the number of replicas leaves some of them empty.

    Args:
        tensors: structure of [batch, ...] tensors.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tensors
    missing = tf.cast(tf.shape(tf.nest.flatten(tensors)[0])[0] == 0, "int32")

    def fill(tensor):
        return tf.pad(tensor, [[0, missing]] + [[0, 0]] * (len(tensor.shape) - 1))

    return tf.nest.map_structure(fill, tensors)
