"""The command line's flags, in groups, and what can be wrong with them before any work."""

import fractions
import inspect

from absl import flags

from keras_mart import checks
from keras_mart.attacks.pgd import STARTS
from keras_mart.datasets import AUGMENTATIONS
from keras_mart.distribution import STRATEGIES
from keras_mart.methods import METHODS, AdversarialModel

FLAGS = flags.FLAGS
MODES = ("train", "evaluate", "export")
NETWORKS = ("small_cnn", "resnet18", "wide_resnet")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# The flags of a run rather than of what is trained: a run directory does not keep them.
OF_THE_COMMAND = ("mode", "workdir", "resume")


class NumberParser(flags.ArgumentParser):
    """Reads 0.031 and 8/255 alike."""

    def parse(self, argument):
        try:
            return float(fractions.Fraction(str(argument).replace(" ", "")))
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"must be a number or a fraction such as 8/255. Received: {argument!r}") from error

    def flag_type(self):
        return "number"


class ChoicesParser(flags.ListParser):
    """Reads a comma-separated list of names, each one of the choices."""

    def __init__(self, choices, what):
        super().__init__()
        self.choices, self.what = choices, what

    def parse(self, argument):
        names = [name.lower() for name in super().parse(argument)]
        if not names:
            raise ValueError(f"`{self.what}` must name at least one of {', '.join(self.choices)}. Received: none.")
        for name in names:
            checks.one_of(name, self.choices, self.what)
        return names


class ChoiceParser(flags.ArgumentParser):
    """Reads one of the choices."""

    def __init__(self, choices, what):
        super().__init__()
        self.choices, self.what = choices, what

    def parse(self, argument):
        checks.one_of(argument, self.choices, self.what)
        return argument


def _choice(group, name, default, choices, text):
    text = f"{text} One of {', '.join(choices)}."
    flags.DEFINE(ChoiceParser(choices, name), name, default, text, module_name=group)


def _number(group, name, default, text):
    flags.DEFINE(NumberParser(), name, default, text, module_name=group)


def _choices(group, name, default, choices, text):
    text = f"{text} A comma-separated list of {', '.join(choices)}."
    flags.DEFINE(ChoicesParser(choices, name), name, default, text, module_name=group)


RUN, DATA, NETWORK = "The run", "The data", "The network"
METHOD, ATTACK, TRAINING, EVALUATION = "The method", "The attack in training", "The training", "The evaluation"
GROUPS = (RUN, METHOD, ATTACK, DATA, NETWORK, TRAINING, EVALUATION)

_choices(RUN, "mode", ",".join(MODES), MODES, "What to do, in this order.")
flags.DEFINE_string("workdir", None, "The run directory, runs/<dataset>-<network> by default.", module_name=RUN)
flags.DEFINE_bool("resume", False, "Go on with the run in an existing run directory.", module_name=RUN)
flags.DEFINE_integer("seed", 0, "Seed of weights, order, augmentation and attacks.", 0, module_name=RUN)
_choice(RUN, "strategy", "auto", STRATEGIES, "The tf.distribute strategy.")
_choice(RUN, "precision", "float32", PRECISIONS, "The Keras dtype policy.")
_choice(RUN, "jit_compile", "auto", ("auto", "true", "false"), "XLA for attack and gradient; auto: on GPUs.")

_choices(METHOD, "method", "mart", tuple(METHODS), "The method; several are run one after the other and compared.")
_number(METHOD, "beta", None, "Weight of the second term (mart, trades, alp, clp); the method's own by default.")
_choice(METHOD, "form", None, ("mart", "original"), "As the MART paper or the method's own has it (alp, clp).")
_number(METHOD, "max_epsilon", None, "The hinge d_max (mma); 32/255 for CIFAR-10 and 0.45 for MNIST in its paper.")
_number(METHOD, "min_margin", None, "The smallest ball searched (mma).")
flags.DEFINE_integer("bisection_steps", None, "Halvings of the bisection (mma).", module_name=METHOD)

_choice(ATTACK, "threat", "linf", ("linf", "l2"), "The norm of the ball.")
_number(ATTACK, "epsilon", "8/255", "Radius of the ball.")
flags.DEFINE_integer("steps", 10, "Steps of PGD.", module_name=ATTACK)
_number(ATTACK, "step_size", None, "Length of a step; a quarter of epsilon by default.")
_choice(ATTACK, "start", "uniform", STARTS, "Where PGD starts.")

flags.DEFINE_string("dataset", "digits", "digits, tfds:<name>, npz:<path> or folder:<path>.", module_name=DATA)
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.", module_name=DATA)
_choice(DATA, "augment", "none", ("none", *AUGMENTATIONS), "Augmentation of the training images.")
flags.DEFINE_integer("batch_size", 128, "Examples in a batch, over all replicas.", 1, module_name=DATA)

_choice(NETWORK, "network", "small_cnn", NETWORKS, "The network.")
flags.DEFINE_integer("depth", None, "Number of convolutions (wide_resnet), 34 by default.", module_name=NETWORK)
flags.DEFINE_integer("width", None, "Widening factor (wide_resnet), 10 by default.", module_name=NETWORK)
_number(NETWORK, "dropout", None, "Share of units left out (small_cnn, wide_resnet); the network's own by default.")

flags.DEFINE_integer("epochs", 120, "Number of epochs.", 1, module_name=TRAINING)
_choice(TRAINING, "optimizer", "sgd", ("sgd", "adam"), "The optimizer; sgd has PyTorch's weight decay.")
_number(TRAINING, "learning_rate", 0.01, "Learning rate of the first epoch.")
flags.DEFINE_list("decay_epochs", [], "Epochs, from 1, from which on the rate is a tenth.", module_name=TRAINING)
_number(TRAINING, "momentum", 0.9, "Momentum (sgd).")
_number(TRAINING, "weight_decay", 0.0, "Weight decay, added to the gradient (sgd).")
flags.DEFINE_integer("validate_every", 1, "Epochs between validations.", 1, module_name=TRAINING)

flags.DEFINE_list("attacks", ["fgsm", "pgd20", "cw"], "Attacks: fgsm, pgd<steps>, cw.", module_name=EVALUATION)
_number(EVALUATION, "evaluation_epsilon", None, "Radius in evaluation; --epsilon by default.")


def help_text():
    """All flags with their help, group by group."""
    usage = "Trains, evaluates and exports a robust classifier.\n"
    example = "  python -m keras_mart.main --flagfile=configs/digits.cfg"
    return "\n".join([usage, example, *(FLAGS.module_help(group) for group in GROUPS)])


def own_flags():
    """The absl flags defined here, in their order."""
    return [flag for group in GROUPS for flag in FLAGS.flags_by_module_dict()[group]]


def as_text(**changed):
    """The flags that were set, as a flagfile; `changed` ones have another value here."""
    lines = []
    for flag in own_flags():
        if flag.name in OF_THE_COMMAND:
            continue
        if flag.name in changed:
            lines.append(f"--{flag.name}={changed[flag.name]}")
        elif flag.value != flag.default:
            value = ",".join(flag.value) if isinstance(flag.value, list) else flag.value
            lines.append(f"--{flag.name}={value}")
    return "\n".join(lines) + "\n"


def arguments_of(method):
    """Names of a method's constructor arguments, those of the classes it derives from included."""
    classes = [each for each in method.__mro__ if issubclass(each, AdversarialModel) and "__init__" in vars(each)]
    return {name for each in classes for name in inspect.signature(each.__init__).parameters}


def method_arguments(method):
    """The chosen method's own flags that were set, as arguments of its constructor."""
    taken = arguments_of(METHODS[method])
    own = (flag for flag in FLAGS.flags_by_module_dict()[METHOD] if flag.name in taken)
    return {flag.name: flag.value for flag in own if flag.value is not None}


def check():
    """Raises ValueError where flags do not go together."""
    for flag in FLAGS.flags_by_module_dict()[METHOD]:
        takers = [name for name, method in METHODS.items() if flag.name in arguments_of(method)]
        if flag.name != "method" and flag.value is not None and not set(takers) & set(FLAGS.method):
            raise ValueError(
                f"--{flag.name} is taken by {', '.join(takers)} alone. Received: --method={','.join(FLAGS.method)}"
            )
    if "mma" in FLAGS.method and FLAGS.max_epsilon is None:
        raise ValueError("--method=mma needs --max_epsilon, for example 32/255 for CIFAR-10. Received: none.")
    of_networks = {"depth": ("wide_resnet",), "width": ("wide_resnet",), "dropout": ("small_cnn", "wide_resnet")}
    for name, takers in of_networks.items():
        if FLAGS[name].value is not None and FLAGS.network not in takers:
            raise ValueError(f"--{name} is taken by {', '.join(takers)} alone. Received: --network={FLAGS.network}")
    if FLAGS.optimizer == "adam" and FLAGS.weight_decay:
        raise ValueError(f"--weight_decay is taken by sgd alone. Received: --weight_decay={FLAGS.weight_decay}")
    for epoch in FLAGS.decay_epochs:
        if not epoch.isdigit() or int(epoch) < 1:
            raise ValueError(f"--decay_epochs must be positive integers. Received: {epoch!r}")
