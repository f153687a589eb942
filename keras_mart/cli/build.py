"""The objects that the flags describe: data, network, attacks, model."""

import functools

import keras
import numpy as np

from keras_mart import checks, datasets, optimizers, serving, zoo
from keras_mart.attacks import PGD
from keras_mart.attacks.inference import network_of
from keras_mart.cli.flags import FLAGS
from keras_mart.cli.rules import method_arguments
from keras_mart.evaluation.presets import presets
from keras_mart.methods import AWP, METHODS
from keras_mart.threats import L2, Linf

# Training steps are this fraction of epsilon unless told otherwise: with 10 steps the usual 2/255 for 8/255.
TRAINING_STEP = 0.25


def data(split, batch_size=None):
    """Batches of a split that is not trained on, of --batch_size by default."""
    return datasets.load(FLAGS.dataset, split, batch_size=batch_size or FLAGS.batch_size, data_dir=FLAGS.data_dir)


def training_data(model, epoch, first_batch=0):
    """Batches of the training split, augmented, in the order of the epoch that `epoch()` gives, without the first."""
    return datasets.load(
        FLAGS.dataset, "train", batch_size=FLAGS.batch_size, augment=None if FLAGS.augment == "none" else FLAGS.augment,
        with_index=model.needs_index, seed=FLAGS.seed, epoch=epoch, first_batch=first_batch, data_dir=FLAGS.data_dir,
    )  # fmt: skip


def steps():
    """Number of batches of the training split."""
    return -(-datasets.describe(FLAGS.dataset, FLAGS.data_dir).num_examples["train"] // FLAGS.batch_size)


def test_data(examples=None):
    """The test set; if a number of examples is given, so many of them at random, the same for the same --seed."""
    if examples is None:
        return data("test", batch_size=evaluation_batch_size())
    images, labels = (np.concatenate(parts) for parts in zip(*data("test").as_numpy_iterator(), strict=True))
    chosen = np.sort(np.random.default_rng(FLAGS.seed).permutation(len(labels))[:examples])
    return images[chosen], labels[chosen]


def network():
    """The untrained network, with the shapes of the data."""
    described = datasets.describe(FLAGS.dataset, FLAGS.data_dir)
    options = {name: FLAGS[name].value for name in ("depth", "width", "dropout") if FLAGS[name].value is not None}
    factory = getattr(zoo, FLAGS.network)
    return factory(num_classes=described.num_classes, input_shape=described.input_shape, **options)


def _threat(epsilon):
    return (Linf if FLAGS.threat == "linf" else L2)(epsilon)


def training_attack():
    """The PGD that training runs."""
    step_size = TRAINING_STEP * FLAGS.epsilon if FLAGS.step_size is None else FLAGS.step_size
    return PGD(_threat(FLAGS.epsilon), FLAGS.steps, step_size=step_size, start=FLAGS.start)


def evaluation_batch_size():
    """Examples in a batch where nothing is trained."""
    return FLAGS.evaluation_batch_size or FLAGS.batch_size


def evaluation_threat():
    """The evaluation's ball."""
    return _threat(FLAGS.epsilon if FLAGS.evaluation_epsilon is None else FLAGS.evaluation_epsilon)


def attacks(names):
    """Name to attack, in the evaluation's ball."""
    return presets(names, evaluation_threat(), source())


@functools.cache
def _loaded(path):
    return serving.load(path)


def source():
    """The model of transfer attacks, `None` where there is none."""
    return None if FLAGS.source is None else _loaded(FLAGS.source)


def ball():
    """The evaluation's ball, in words."""
    return f"{FLAGS.threat} ball of {evaluation_threat().epsilon:.4g}"


def model(method):
    """The compiled model of a method, untrained."""
    arguments = method_arguments(method)
    if METHODS[method].has_adversary:
        arguments["attack"] = training_attack()
    if FLAGS.awp_gamma is not None:
        arguments["weight_perturbation"] = AWP(FLAGS.awp_gamma, FLAGS.awp_warmup)
    if METHODS[method].needs_index:
        arguments["num_examples"] = datasets.describe(FLAGS.dataset, FLAGS.data_dir).num_examples["train"]
    built = METHODS[method](network(), seed=FLAGS.seed, weight_average=FLAGS.weight_average, **arguments)
    jit_compile = {"auto": "auto", "true": True, "false": False}[FLAGS.jit_compile]
    built.compile(_optimizer(), jit_compile=jit_compile, on_nan=FLAGS.on_nan)
    return built


def check(methods):
    """Tries everything that the flags describe; raises ValueError where some of it is wrong."""
    training_attack()
    attacks(FLAGS.attacks)
    for method in methods:
        network_of_method = model(method).network
    if source() is not None:
        shape = datasets.describe(FLAGS.dataset, FLAGS.data_dir).input_shape
        checks.same_task(network_of(source()), network_of_method, np.zeros((1, *shape), "float32"))


def _optimizer():
    if FLAGS.optimizer == "adam":
        return keras.optimizers.Adam(FLAGS.learning_rate)
    return optimizers.SGD(FLAGS.learning_rate, momentum=FLAGS.momentum, weight_decay=FLAGS.weight_decay)


def learning_rate(epoch):
    """The rate of an epoch, counted from 0 as Keras does; --decay_epochs counts from 1 as the papers do."""
    return FLAGS.learning_rate * 0.1 ** sum(start <= epoch + 1 for start in FLAGS.decay_epochs)
