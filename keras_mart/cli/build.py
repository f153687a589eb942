"""Builds the objects that the flags describe: data, network, attacks, model."""

import functools

import keras
import numpy as np

from keras_mart import checks, datasets, networks, serving, zoo
from keras_mart.attacks import NFGSM, PGD
from keras_mart.attacks.inference import compile_by_xla, network_of
from keras_mart.cli.flags import EVALUATION_PRECISIONS, FLAGS, NETWORKS
from keras_mart.cli.optimizer import optimizer
from keras_mart.cli.parsers import APPLICATIONS, FILES, TORCH
from keras_mart.cli.rules import arguments_of, augmentations, method_arguments, network_arguments
from keras_mart.datasets import augmentation
from keras_mart.evaluation.presets import presets
from keras_mart.methods import AWP, METHODS
from keras_mart.threats import L2, Linf

# The attack in validation, which determines the best checkpoint.
VALIDATION_ATTACK = "pgd20"


def _source_options():
    """Returns the arguments of `datasets` functions on how --dataset is read."""
    return {"data_dir": FLAGS.data_dir, "image_size": FLAGS.image_size, "cache": FLAGS.cache}


def _described():
    return datasets.describe(FLAGS.dataset, **_source_options())


def class_names():
    """Returns the names of the classes, `None` if they have no names."""
    return datasets.class_names(FLAGS.dataset, FLAGS.data_dir, FLAGS.cache)


def data(split, batch_size=None):
    """Returns batches of a split for validation or testing, by default of the size that training computes at once."""
    return datasets.load(FLAGS.dataset, split, batch_size=batch_size or _device_batch_size(), **_source_options())


def _device_batch_size():
    return -(-FLAGS.batch_size // FLAGS.accumulate)


def training_data(model, epoch, first_batch=0):
    """Returns augmented batches of the training data in the order of epoch `epoch()`, from batch `first_batch` on.

    With --extra, its share of each batch is taken from the extra images.
    """
    order = {"augment": augmentations(), "seed": FLAGS.seed, "epoch": epoch}

    def labelled(first_batch):
        return datasets.load(
            FLAGS.dataset, "train", batch_size=_labelled_in_batch(), with_index=model.needs_index,
            first_batch=first_batch, **_source_options(), **order,
        )  # fmt: skip

    if FLAGS.extra is None:
        return labelled(first_batch)
    share = 1 - _labelled_in_batch() / FLAGS.batch_size
    return datasets.mix(
        labelled(0), extra(), fraction=share, weight=FLAGS.extra_weight, first_batch=first_batch, **order
    )


def steps():
    """Returns the number of full batches of the training data."""
    return max(_examples("train") // _labelled_in_batch(), 1)


def _labelled_in_batch():
    if FLAGS.extra is None:
        return FLAGS.batch_size
    return min(max(round(FLAGS.batch_size * (1 - FLAGS.extra_fraction)), 1), FLAGS.batch_size - 1)


def _examples(split):
    return _described().num_examples[split]


def extra():
    """Returns (images, labels) of --extra, labelled by --labeller if there is one."""
    images, labels = datasets.load_extra(FLAGS.extra, FLAGS.data_dir)
    if FLAGS.labeller is not None:
        labels = _pseudo_labels(FLAGS.labeller, FLAGS.extra, FLAGS.data_dir)
    if labels is None:
        raise ValueError(f"--extra without labels needs a --labeller. Received: only --extra={FLAGS.extra}")
    return images, labels


@functools.lru_cache(maxsize=1)
def _pseudo_labels(labeller, extra, data_dir):
    return datasets.pseudo_labels(network_of(_loaded(labeller)), datasets.load_extra(extra, data_dir).images)


def test_data(examples=None):
    """Returns the test set, or a random sample of `examples` examples, determined by --seed."""
    if examples is None:
        return data("test", batch_size=evaluation_batch_size())
    chosen = np.sort(np.random.default_rng(FLAGS.seed).permutation(_examples("test"))[:examples])
    return datasets.load_examples(FLAGS.dataset, "test", chosen, **_source_options())


def network():
    """Returns the network to train, with the shapes of the data."""
    described = _described()
    shapes = {"num_classes": described.num_classes, "input_shape": described.input_shape}
    if FLAGS.network.startswith(APPLICATIONS):
        return networks.application(FLAGS.network.removeprefix(APPLICATIONS), weights=FLAGS.weights or "none", **shapes)
    if FLAGS.network.endswith(FILES):
        return _adapted(_trainable(serving.load(FLAGS.network)), FLAGS.network, **shapes)
    return _zoo_network(FLAGS.weights, **shapes)


def _zoo_network(weights, **shapes):
    """Returns the zoo network of --network, with the weights of a PyTorch file if one is given."""
    if FLAGS.network not in NETWORKS:
        raise ValueError(
            f"A PyTorch file contains weights only: --network must be one of {', '.join(NETWORKS)}. "
            f"Received: --network={FLAGS.network} with {weights}"
        )
    built = getattr(zoo, FLAGS.network)(**shapes, **network_arguments())
    if weights in (None, "none"):
        return built
    if not weights.startswith(TORCH):
        raise ValueError(
            f"--weights must be torch:<path> or none. Received: --network={FLAGS.network} with --weights={weights}"
        )
    return networks.load_torch(weights.removeprefix(TORCH), built)


def _trainable(model):
    """Returns the trainable network of a model, with the weights that are used in evaluation.

    They differ from those of the wrapped network if the model keeps an average of its weights.
    """
    evaluated = network_of(model)
    if evaluated is model or evaluated is model.network:
        return evaluated
    model.network.set_weights(evaluated.get_weights())
    return model.network


def _adapted(network, path, **shapes):
    """Adapts a network from a file to images in [0, 1] and to logits, and prints what was changed."""
    network, changes = networks.adapted(network, preprocessing=FLAGS.preprocessing, **shapes)
    if changes:
        _print_once(f"{path}: {'; '.join(changes)}")
    return network


@functools.cache
def _print_once(text):
    """Prints a text the first time it is called with it."""
    print(text)


def _threat(epsilon):
    return (Linf if FLAGS.threat == "linf" else L2)(epsilon)


def training_attack():
    """Returns the attack used in training."""
    if FLAGS.attack == "nfgsm":
        return NFGSM(_threat(FLAGS.epsilon), FLAGS.noise, step_size=FLAGS.step_size)
    return PGD(_threat(FLAGS.epsilon), FLAGS.steps, step_size=FLAGS.step_size, start=FLAGS.start)


def evaluation_batch_size():
    """Returns the batch size in evaluation."""
    return FLAGS.evaluation_batch_size or _device_batch_size()


def evaluation_threat():
    """Returns the ball of the evaluation."""
    return _threat(FLAGS.epsilon if FLAGS.evaluation_epsilon is None else FLAGS.evaluation_epsilon)


def attacks(names):
    """Returns a dictionary from names to attacks in the ball of the evaluation."""
    return presets(names, evaluation_threat(), source())


@functools.cache
def _loaded(path):
    return serving.load(path)


def source():
    """Returns the source model of transfer attacks, `None` without --source."""
    return None if FLAGS.source is None else _loaded(FLAGS.source)


def ball():
    """Returns the ball of the evaluation as text."""
    return f"{FLAGS.threat} ball of {evaluation_threat().epsilon:.4g}"


def model(method):
    """Returns the compiled, untrained model of a method."""
    arguments = method_arguments(method)
    arguments |= {"weight_average": FLAGS.weight_average, "label_smoothing": FLAGS.label_smoothing}
    if FLAGS.weight_average_start:
        arguments["weight_average_start"] = FLAGS.weight_average_start * steps()
    if METHODS[method].has_adversary:
        arguments |= {"attack": training_attack(), "attack_mode": FLAGS.attack_mode, "statistics": FLAGS.statistics}
    if METHODS[method].has_radius and FLAGS.epsilon_warmup:
        growing = max(round(FLAGS.epsilon_warmup * steps()), 1)
        arguments["epsilon_schedule"] = keras.optimizers.schedules.PolynomialDecay(0.0, growing, FLAGS.epsilon)
    if FLAGS.awp_gamma is not None:
        arguments["weight_perturbation"] = AWP(FLAGS.awp_gamma, FLAGS.awp_warmup)
    if METHODS[method].needs_index:
        extra_images = 0 if FLAGS.extra is None else len(datasets.load_extra(FLAGS.extra, FLAGS.data_dir).images)
        arguments["num_examples"] = _examples("train") + extra_images
    if "teacher" in arguments:
        arguments["teacher"] = _loaded(FLAGS.teacher)
    built = METHODS[method](network(), seed=FLAGS.seed, **arguments)
    validation_attack = attacks([VALIDATION_ATTACK])[VALIDATION_ATTACK] if built.has_adversary else None
    built.compile(
        optimizer(steps()), validation_attack=validation_attack, jit_compile=_jit_compile(), on_nan=FLAGS.on_nan,
        steps_per_execution=FLAGS.steps_per_execution, accumulate=FLAGS.accumulate, decay_all=FLAGS.decay_all,
    )  # fmt: skip
    return built


def _jit_compile():
    return {"auto": "auto", "true": True, "false": False}[FLAGS.jit_compile]


def loaded(directory, which):
    """Returns the model to evaluate: that of --model, or of the "best" or "last" checkpoint of a run."""
    model = directory.load(getattr(directory, which)) if FLAGS.model is None else _given_model(FLAGS.model)
    compile_by_xla(network_of(model), _jit_compile())
    return model


@functools.cache
def _given_model(path):
    described = _described()
    if path.startswith(TORCH):
        model = _zoo_network(path, num_classes=described.num_classes, input_shape=described.input_shape)
    else:
        model = network_of(serving.load(path))
    return _adapted(model, path, input_shape=described.input_shape)


def evaluation_options():
    """Returns the arguments that `evaluate` and `diagnose` share."""
    precision = EVALUATION_PRECISIONS[FLAGS.evaluation_precision]
    return {"batch_size": evaluation_batch_size(), "seed": FLAGS.seed, "precision": precision}


def check(methods):
    """Builds everything that the flags describe; raises ValueError if something is wrong."""
    all_attacks = [training_attack(), *attacks(FLAGS.attacks).values()]
    described = _described()
    augmentation.parse_augment(augmentations()).check(described.input_shape)
    image = np.zeros((1, *described.input_shape), "float32")
    for method in methods:
        built = model(method)
        built_network = built.network
        if "teacher" in arguments_of(method):
            checks.same_task(built.teacher, built_network, image, "the teacher")
    for attack in all_attacks:
        attack.check_images(image.shape)
    if source() is not None:
        checks.same_task(network_of(source()), built_network, image)
    if FLAGS.extra is not None:
        _check_extra(described.num_classes, image)


def _check_extra(num_classes, image):
    if FLAGS.labeller is not None:
        labeller = network_of(_loaded(FLAGS.labeller))
        try:
            checks.batch(labeller, image, [0])
        except ValueError as error:
            raise ValueError(f"--labeller must label the images: {error}") from error
        classes = checks.classes(labeller, image)
        if classes != num_classes:
            raise ValueError(f"--labeller must have as many classes as --dataset, {num_classes}. Received: {classes}")
    checks.labels(extra()[1], num_classes, f" in --extra={FLAGS.extra}")
    training_data(METHODS[FLAGS.method[0]], lambda: 0)
