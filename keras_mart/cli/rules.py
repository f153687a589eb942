"""Checks combinations of flags, and selects the flags that a run directory keeps."""

import inspect

from keras_mart import clusters, zoo
from keras_mart.cli.flags import FLAGS, METHOD, NETWORKS, own_flags
from keras_mart.cli.parsers import FILES
from keras_mart.datasets.augmentation import MIXERS, parse_augment
from keras_mart.methods import METHODS, AdversarialModel

FILE = "<file>"  # the kind of a network that is read from a file
# Flags of a single command, which a run directory does not keep.
COMMAND_FLAGS = ("mode", "workdir", "resume", "workers")
# Flags of the evaluation; --evaluation_epsilon is also the ball in which the best checkpoint is chosen.
EVALUATION_FLAGS = (
    "attacks", "evaluation_epsilon", "evaluation_batch_size", "evaluation_precision", "examples", "stop_early",
    "source", "checked_examples",
)  # fmt: skip
# Flags that may differ from those of the training if a run is only evaluated, reported or exported.
CHANGEABLE_WITHOUT_TRAINING = (
    *COMMAND_FLAGS, "method", "seed", "strategy", "jit_compile", "fold", "dataset", "data_dir", "image_size", "cache",
    "batch_size", "accumulate", "threat", "epsilon", *EVALUATION_FLAGS,
)  # fmt: skip
# Flags that are arguments of the zoo's networks.
NETWORK_ARGUMENTS = (
    "depth", "width", "dropout", "activation", "bn_momentum", "padding", "shortcut", "normalisation",
)  # fmt: skip
_ARGUMENTS = {name: inspect.signature(getattr(zoo, name)).parameters for name in NETWORKS}
# Flags that apply only to some values of another flag.
APPLIES_TO = {
    **{flag: ("network", tuple(name for name in NETWORKS if flag in _ARGUMENTS[name])) for flag in NETWORK_ARGUMENTS},
    "weights": ("network", ("applications", *NETWORKS)),
    "preprocessing": ("network", (FILE,)),
    "start": ("attack", ("pgd",)),
    "noise": ("attack", ("nfgsm",)),
    "momentum": ("optimizer", ("sgd",)),
    "nesterov": ("optimizer", ("sgd",)),
    "weight_decay": ("optimizer", ("sgd", "adamw", "lion")),
    "decay_all": ("optimizer", ("sgd", "adamw", "lion")),
    "decay_epochs": ("schedule", ("steps",)),
}
# Schedules whose rate depends on --epochs from the first step on.
WHOLE_RUN_SCHEDULES = ("cosine", "onecycle")
# Flags that have no effect without another flag.
REQUIRES = {
    "awp_warmup": "awp_gamma", "extra_fraction": "extra", "extra_weight": "extra", "labeller": "extra",
    "weight_average_start": "weight_average",
}  # fmt: skip


def arguments_of(method):
    """Returns the names of the constructor arguments of a method, including those of its base classes."""
    classes = (each for each in METHODS[method].__mro__ if issubclass(each, AdversarialModel))
    constructors = (each.__init__ for each in classes if "__init__" in vars(each))
    return {name for constructor in constructors for name in inspect.signature(constructor).parameters}


def method_arguments(method):
    """Returns the flags specific to a method that were set, as arguments of its constructor."""
    own = (flag for flag in FLAGS.flags_by_module_dict()[METHOD] if flag.name in arguments_of(method))
    return {flag.name: flag.value for flag in own if flag.value is not None}


def network_arguments():
    """Returns the flags of the zoo's networks that were set, as arguments of the network."""
    return {name: FLAGS[name].value for name in NETWORK_ARGUMENTS if FLAGS[name].value is not None}


def as_text(methods):
    """Returns the flags that were set, as a flagfile for these methods."""
    own = set().union(*map(arguments_of, methods))
    of_other_methods = {flag.name for flag in FLAGS.flags_by_module_dict()[METHOD]} - own
    lines = [f"--method={','.join(methods)}"] if methods else []
    for flag in own_flags():
        if flag.value != flag.default and flag.name not in {*of_other_methods, *COMMAND_FLAGS}:
            lines.append(f"--{flag.name}={_text(flag.value)}")
    return "\n".join(lines) + "\n"


def _text(value):
    """Returns the value of a flag as it is written on the command line."""
    return "" if value is None else ",".join(map(str, value if isinstance(value, list) else [value]))


def check_model():
    """Raises ValueError if --model cannot be combined with the other flags."""
    others = [f"--method={','.join(FLAGS.method)}"] if FLAGS["method"].present else []
    others += [f"--mode={','.join(FLAGS.mode)}"] if "train" in FLAGS.mode else []
    others += [f"--weights={FLAGS.weights}"] if FLAGS.weights is not None else []
    if others:
        raise ValueError(
            "--model can be evaluated, reported and exported (--mode=evaluate,report,export); --network trains a file. "
            f"Received: --model={FLAGS.model} with {' '.join(others)}"
        )


def check():
    """Raises ValueError if flags cannot be combined."""
    for flag in FLAGS.flags_by_module_dict()[METHOD]:
        applies_to = [name for name in METHODS if flag.name in arguments_of(name)]
        if flag.name != "method" and flag.value is not None:
            _check_applies(flag.name, applies_to, "method", FLAGS.method)
    for name, (by, applies_to) in APPLIES_TO.items():
        if FLAGS[name].value != FLAGS[name].default:
            _check_applies(name, applies_to, by, [FLAGS[by].value], _kind(FLAGS[by].value))
    if FLAGS.epsilon_warmup:
        applies_to = [name for name, method in METHODS.items() if method.has_radius]
        _check_applies("epsilon_warmup", applies_to, "method", FLAGS.method)
    if not FLAGS.epsilon_warmup >= 0:
        raise ValueError(f"--epsilon_warmup must not be negative. Received: --epsilon_warmup={FLAGS.epsilon_warmup}")
    if "mma" in FLAGS.method and FLAGS.max_epsilon is None:
        raise ValueError("--method=mma needs --max_epsilon, for example 32/255 for CIFAR-10. Received: none.")
    if FLAGS.attack == "nfgsm" and FLAGS.steps not in (1, FLAGS["steps"].default):
        raise ValueError(f"--attack=nfgsm takes one step. Received: --steps={FLAGS.steps}")
    taught = [name for name in FLAGS.method if "teacher" in arguments_of(name)]
    if taught and FLAGS.teacher is None:
        raise ValueError(f"--method={taught[0]} needs --teacher, a network to learn from. Received: none.")
    for name, needed in REQUIRES.items():
        if FLAGS[name].value != FLAGS[name].default and FLAGS[needed].value is None:
            raise ValueError(f"--{name} needs --{needed}. Received: only --{name}={FLAGS[name].value}")
    if not 0 < FLAGS.extra_fraction < 1:
        raise ValueError(f"--extra_fraction must lie between 0 and 1. Received: {FLAGS.extra_fraction}")
    if FLAGS.extra is not None and FLAGS.batch_size < 2:
        raise ValueError(f"--extra needs a --batch_size of at least 2. Received: --batch_size={FLAGS.batch_size}")
    _check_augment()
    if _kind(FLAGS.network) == FILE and FLAGS.precision != "float32":
        raise ValueError(
            "A network from a file keeps its own precision. "
            f"Received: --network={FLAGS.network} --precision={FLAGS.precision}"
        )
    _check_optimizer()


def _check_optimizer():
    for name in ("learning_rate", "clip_norm"):
        if FLAGS[name].value is not None and not FLAGS[name].value > 0:
            raise ValueError(f"--{name} must be positive. Received: --{name}={FLAGS[name].value}")
    if FLAGS.weight_decay < 0:
        raise ValueError(f"--weight_decay must not be negative. Received: --weight_decay={FLAGS.weight_decay}")
    if not 0 <= FLAGS.warmup_epochs < FLAGS.epochs:
        raise ValueError(
            "--warmup_epochs must be at least 0 and below --epochs. "
            f"Received: --warmup_epochs={FLAGS.warmup_epochs} --epochs={FLAGS.epochs}"
        )
    if FLAGS.decay_epochs and min(FLAGS.decay_epochs) - 1 < FLAGS.warmup_epochs:
        raise ValueError(
            "--decay_epochs must begin after the warm-up. "
            f"Received: --decay_epochs={_text(FLAGS.decay_epochs)} --warmup_epochs={FLAGS.warmup_epochs}"
        )


def check_workers():
    """Raises ValueError if --workers cannot start processes."""
    if FLAGS.strategy not in ("auto", "multiworker"):
        raise ValueError(
            "--workers starts processes that train together: --strategy must be auto or multiworker. "
            f"Received: --workers={FLAGS.workers} --strategy={FLAGS.strategy}"
        )
    cluster = clusters.from_environment()
    if cluster is not None and len(cluster.addresses) > 1:
        raise ValueError(
            "--workers starts processes only on this machine; in a cluster, start one process per worker. "
            f"Received: --workers={FLAGS.workers} and a cluster of {', '.join(cluster.addresses)}"
        )


def augmentations():
    """Returns the names in --augment, without none."""
    return [name for name in FLAGS.augment if name != "none"]


def _check_augment():
    names = augmentations()
    if names and names != FLAGS.augment:
        raise ValueError(
            f"--augment=none cannot be combined with other names. Received: --augment={','.join(FLAGS.augment)}"
        )
    indexed = [method for method in FLAGS.method if METHODS[method].needs_index]
    if parse_augment(names).mixes and indexed:
        raise ValueError(
            f"--method={indexed[0]} keeps state per image and cannot train on mixed images: leave out "
            f"{' and '.join(MIXERS)}. Received: --augment={','.join(names)}"
        )


def _kind(value):
    """Returns the kind of network that a value of --network is; other values unchanged."""
    return FILE if value.endswith(FILES) else value.partition(":")[0]


def _check_applies(name, applies_to, by, chosen, *kinds):
    if not set(applies_to) & {*chosen, *kinds}:
        raise ValueError(
            f"--{name} applies only to --{by}={', '.join(applies_to)}. Received: --{by}={','.join(chosen)} with "
            f"--{name}={_text(FLAGS[name].value)}. To unset it: --{name}={_text(FLAGS[name].default)}"
        )
