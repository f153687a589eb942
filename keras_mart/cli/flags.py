"""The flags of the command line, in groups."""

import sys

from absl import flags

from keras_mart import zoo
from keras_mart.attacks.pgd import STARTS
from keras_mart.cli import parsers
from keras_mart.datasets import AUGMENTATIONS
from keras_mart.distribution import STRATEGIES
from keras_mart.methods import METHODS
from keras_mart.methods.guard import ON_NAN
from keras_mart.methods.model import ATTACK_MODES, STATISTICS

FLAGS = flags.FLAGS
MODES = ("train", "evaluate", "report", "export")
OPTIMIZERS = ("sgd", "adam", "adamw", "lion")
SCHEDULES = ("steps", "cosine", "onecycle", "constant")
NETWORKS = (
    "small_cnn", "resnet18", "resnet", "preact_resnet18", "wide_resnet", "vit_tiny", "imagenet_resnet50",
)  # fmt: skip
EVALUATION_PRECISIONS = {"float32": "float32", "none": None}
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def _choice(group, name, default, choices, text):
    parser = parsers.Choice(choices, name, optional=default is None)
    flags.DEFINE(parser, name, default, f"{text} One of {', '.join(choices)}.", module_name=group)


def _number(group, name, default, text):
    flags.DEFINE(parsers.Number(optional=default is None), name, default, text, module_name=group)


def _integer(group, name, default, text, least=1):
    flags.DEFINE(parsers.Integer(least, optional=default is None), name, default, text, module_name=group)


def _text(group, name, default, text):
    flags.DEFINE_string(name, default, text, module_name=group)


def _choices(group, name, default, choices, text):
    parser = parsers.List(parsers.Choice(choices, name), least=1)
    flags.DEFINE(parser, name, default, f"{text} A list of {', '.join(choices)}.", module_name=group)


RUN, DATA, NETWORK = "Run", "Data", "Network"
METHOD, ATTACK, TRAINING, EVALUATION = "Method", "Attack in training", "Training", "Evaluation"
GROUPS = (RUN, METHOD, ATTACK, DATA, NETWORK, TRAINING, EVALUATION)

_choices(RUN, "mode", ",".join(MODES), MODES, "The stages to run, always in this order.")
_text(RUN, "workdir", None, "The run directory; runs/<dataset>-<network> by default.")
flags.DEFINE_bool("resume", False, "Resume the run in an existing run directory.", module_name=RUN)
_integer(RUN, "seed", 0, "Seed for weights, data order, augmentation and attacks.", least=0)
_strategy = "The tf.distribute strategy. auto: multiworker in a cluster, mirrored on several GPUs."
_choice(RUN, "strategy", "auto", STRATEGIES, _strategy)
_integer(RUN, "workers", 1, "Number of processes on this machine that train together, to try out a cluster.")
_choice(RUN, "precision", "float32", PRECISIONS, "The Keras dtype policy.")
_choice(RUN, "jit_compile", "auto", ("auto", "true", "false"), "Compile training and attacks with XLA. auto: on GPUs.")
_integer(RUN, "steps_per_execution", 1, "Number of training steps to run without returning to Python.")
_fold = "Attack and train through faster, equivalent views of the network; --nofold uses the network itself."
flags.DEFINE_bool("fold", True, _fold, module_name=RUN)

_choices(METHOD, "method", "mart", tuple(METHODS), "The training method; several are run in turn and compared.")
_number(
    METHOD,
    "beta",
    None,
    "Weight of the regularisation term of the loss (all but standard, at, mma, rslad); by default the method's own.",
)
_text(
    METHOD,
    "teacher",
    None,
    "The teacher, a .keras or .h5 file: a network trained without an adversary (hat) or a robust one (rslad).",
)
_number(
    METHOD,
    "alpha",
    None,
    "Weight of the cross-entropy between p and q (dkl), or share of the adversarial images (rslad).",
)
_number(METHOD, "gamma", None, "Weight of the helper image (hat), 0.5 by default.")
_number(
    METHOD,
    "helper_scale",
    None,
    "Distance of the helper image in units of the adversarial perturbation (hat), 2 by default.",
)
_number(METHOD, "temperature", None, "Temperature of the softmax whose class means are used (dkl), 4 by default.")
_choice(
    METHOD,
    "form",
    None,
    ("mart", "original"),
    "The loss as in the MART paper, by default, or in the method's own paper (alp, clp).",
)
_number(
    METHOD, "max_epsilon", None, "The hinge threshold d_max (mma); 32/255 for CIFAR-10 and 0.45 for MNIST in its paper."
)
_number(METHOD, "min_margin", None, "Radius of the smallest ball searched (mma), 0.005 by default.")
_integer(METHOD, "bisection_steps", None, "Steps of the bisection (mma), 10 by default.")

_choice(
    ATTACK, "threat", "linf", ("linf", "l2"), "The norm of the ball around each image in which the attack searches."
)
_number(ATTACK, "epsilon", "8/255", "Radius of the ball, for images in [0, 1].")
_choice(ATTACK, "attack", "pgd", ("pgd", "nfgsm"), "The attack. nfgsm takes one step from a noisy image.")
_integer(ATTACK, "steps", 10, "Number of PGD steps.")
_step = "Step size; by default max(epsilon / 10, 2.5 epsilon / steps), for nfgsm epsilon."
_number(ATTACK, "step_size", None, _step)
_number(ATTACK, "noise", 2.0, "Radius of the noise, in multiples of epsilon (nfgsm).")
_choice(ATTACK, "start", "uniform", STARTS, "The starting point of PGD.")
_number(
    ATTACK,
    "epsilon_warmup",
    0.0,
    "Number of epochs over which the radius grows linearly from 0 to --epsilon, at every step.",
)
_mode = "The mode of BatchNormalization and Dropout while the attack runs."
_choice(ATTACK, "attack_mode", "evaluation", ATTACK_MODES, _mode)

_text(DATA, "dataset", "digits", "The dataset: digits, tfds:<name>, npz:<path> or folder:<path>.")
_text(DATA, "data_dir", None, "The directory in which TFDS stores its data.")
_size = "Height and width to which images are resized; by default they are not resized, and must all have one size."
_integer(DATA, "image_size", None, _size)
_text(DATA, "cache", None, "A directory that caches the decoded images of tfds: and folder: datasets.")
_augment = "Augmentations of the training images, applied in order; with --image_size, crops have a random size."
_choices(DATA, "augment", "none", ("none", *AUGMENTATIONS), _augment)
_integer(DATA, "batch_size", 128, "Batch size, over all replicas and including the examples of --extra.")
_extra = (
    "Additional training images, generated or unlabelled: npz:<path> with image and, optionally, label, or a dataset "
    "as in --dataset."
)
_text(DATA, "extra", None, _extra)
_number(
    DATA, "extra_fraction", 0.5, "Share of --extra in each batch, which contains at least one example of each kind."
)
_number(DATA, "extra_weight", 1.0, "Weight of an extra example in the loss; others have weight 1.")
_labeller = "A .keras file or SavedModel that labels the images of --extra, in place of their own labels."
_text(DATA, "labeller", None, _labeller)

_network = f"The network: {', '.join(NETWORKS)}, applications:<name> from keras.applications, or a .keras or .h5 file."
flags.DEFINE(parsers.Network(NETWORKS), "network", "small_cnn", _network, module_name=NETWORK)
_weights = (
    "Initial weights: torch:<path>, a PyTorch file for a network of this package; for applications:<name>, imagenet or "
    "a weights file; none by default."
)
flags.DEFINE(parsers.Weights(optional=True), "weights", None, _weights, module_name=NETWORK)
_preprocessing = (
    "The preprocessing that the network in a file or --model expects, if not images in [0, 1]: tf, torch, caffe, or "
    "the largest pixel value, such as 255."
)
flags.DEFINE(parsers.Preprocessing(optional=True), "preprocessing", None, _preprocessing, module_name=NETWORK)
_depth = (
    "Number of layers (wide_resnet, 34 by default; resnet: 18, 34 or 50, 18 by default) or blocks (vit_tiny, 12 by "
    "default)."
)
_integer(NETWORK, "depth", None, _depth)
_width = "Widening factor (wide_resnet, 10 by default) or embedding size (vit_tiny, 192 by default)."
_integer(NETWORK, "width", None, _width)
_number(NETWORK, "dropout", None, "Dropout rate (small_cnn, wide_resnet); by default the network's own.")
_of_recipes = "(preact_resnet18, wide_resnet)"
_choice(NETWORK, "activation", None, zoo.ACTIVATIONS, f"The activation {_of_recipes}, relu by default.")
_momentum = (
    f"Momentum of BatchNormalization: the share of the old statistics in the new ones {_of_recipes}, 0.9 by default."
)
_number(NETWORK, "bn_momentum", None, _momentum)
_padding = (
    f"Padding of strided 3x3 convolutions {_of_recipes}. torch, the default: one pixel on each side; same: as in "
    "TensorFlow."
)
_choice(NETWORK, "padding", None, zoo.PADDINGS, _padding)
_shortcut = "Convolution of shortcuts where the number of filters changes (preact_resnet18), 1x1 by default."
_choice(NETWORK, "shortcut", None, zoo.SHORTCUTS, _shortcut)
_normalisation = (
    "Mean and standard deviation with which a network of this package normalises images; by default the network's own."
)
_choice(NETWORK, "normalisation", None, tuple(zoo.NORMALISATIONS), _normalisation)

_integer(TRAINING, "epochs", 120, "Number of epochs.")
_choice(TRAINING, "optimizer", "sgd", OPTIMIZERS, "The optimizer.")
_number(TRAINING, "learning_rate", 0.01, "The peak learning rate.")
_schedule = (
    "The learning rate after the warm-up. steps: divided by 10 at each of --decay_epochs; cosine: decays to 0 over all "
    "epochs along a cosine; onecycle: decays to 0 linearly; constant: does not change."
)
_choice(TRAINING, "schedule", "steps", SCHEDULES, _schedule)
_decay = "Epochs, counted from 1, at whose start the learning rate is divided by 10: a list such as 75,90."
flags.DEFINE(parsers.List(parsers.Integer()), "decay_epochs", "", _decay, module_name=TRAINING)
_warmup = "Number of epochs, such as 10 or 1/2, over which the learning rate rises linearly from 0, at every step."
_number(TRAINING, "warmup_epochs", 0.0, _warmup)
_number(TRAINING, "momentum", 0.9, "Momentum (sgd).")
flags.DEFINE_bool("nesterov", False, "Use Nesterov momentum (sgd).", module_name=TRAINING)
_decay = "Weight decay: added to the gradient as in PyTorch (sgd), or decoupled (adamw, lion)."
_number(TRAINING, "weight_decay", 0.0, _decay)
_all = "Decay all weights; --nodecay_all excludes biases and the parameters of BatchNormalization."
flags.DEFINE_bool("decay_all", True, _all, module_name=TRAINING)
_number(TRAINING, "clip_norm", None, "The norm to which the gradient over all weights is clipped.")
_smoothing = "Label smoothing in the training loss: the share of each label spread over all classes; none by default."
_number(TRAINING, "label_smoothing", None, _smoothing)
_statistics = "The training forward passes that update BatchNormalization's running statistics."
_choice(TRAINING, "statistics", "all", STATISTICS, _statistics)
_number(
    TRAINING, "weight_average", None, "Decay of a moving average of the weights, which is then evaluated and exported."
)
_integer(
    TRAINING,
    "weight_average_start",
    0,
    "Number of epochs before averaging begins; until then the average is a copy of the weights.",
    least=0,
)
_number(
    TRAINING,
    "awp_gamma",
    None,
    "Size of the adversarial weight perturbation (AWP); 0.01 (at) and 0.005 (trades) in its official code.",
)
_integer(TRAINING, "awp_warmup", 0, "Number of initial epochs without weight perturbation.", least=0)
_on_nan = "The reaction to a loss or gradient that is not finite: stop the run, or skip the step."
_choice(TRAINING, "on_nan", "stop", ON_NAN, _on_nan)
_parts = "Number of parts into which each batch is split, to save memory."
_integer(TRAINING, "accumulate", 1, _parts)
_every = "Interval between two saved states, in steps (100 or 100steps) or epochs (1epoch)."
flags.DEFINE(parsers.Every(), "save_every", "1epoch", _every, module_name=TRAINING)
_integer(
    TRAINING,
    "validate_every",
    1,
    "Number of epochs between validations; the first and the last epoch are always validated.",
)

_attacks = (
    "The attacks: a list of fgsm, pgd<steps> such as pgd20, cw, apgd, apgd-ce, apgd-dlr, apgd-t, fab-t, square, fmn, "
    "autoattack, and paper, which stands for fgsm,pgd20,cw; transfer-<attack> runs an attack on --source."
)
flags.DEFINE(parsers.List(parsers.Name()), "attacks", "paper,autoattack", _attacks, module_name=EVALUATION)
_number(EVALUATION, "evaluation_epsilon", None, "Radius of the ball in evaluation; by default --epsilon.")
_integer(EVALUATION, "examples", None, "Number of test images, a random sample determined by --seed; all by default.")
_size = "Batch size in evaluation; by default --batch_size / --accumulate."
_integer(EVALUATION, "evaluation_batch_size", None, _size)
_early = "Run each attack only on the images classified correctly under all attacks before it."
flags.DEFINE_bool("stop_early", False, _early, module_name=EVALUATION)
_model = (
    "A model to evaluate, report and export in place of a run's checkpoints: a .keras or .h5 file, a SavedModel, or "
    "torch:<path>, a PyTorch file with the weights of --network."
)
_text(EVALUATION, "model", None, _model)
_precision = "The precision in which networks of lower precision are evaluated; none: their own precision."
_choice(EVALUATION, "evaluation_precision", "float32", tuple(EVALUATION_PRECISIONS), _precision)
_text(EVALUATION, "source", None, "The source model of transfer attacks: a .keras file or SavedModel.")
_integer(
    EVALUATION, "checked_examples", 100, "Number of test images on which --mode=report checks for false robustness."
)


def parse(argv):
    """Parses the flags; an invalid flag ends the program with a message and exit status 2."""
    try:
        return FLAGS(argv)
    except flags.Error as error:
        print(f"keras_mart: {error}\nAll flags: --help", file=sys.stderr)
        sys.exit(2)


def own_flags():
    """Returns the absl flags defined here, in order."""
    return [flag for group in GROUPS for flag in FLAGS.flags_by_module_dict()[group]]
