"""The command line's flags, in groups."""

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


RUN, DATA, NETWORK = "The run", "The data", "The network"
METHOD, ATTACK, TRAINING, EVALUATION = "The method", "The attack in training", "The training", "The evaluation"
GROUPS = (RUN, METHOD, ATTACK, DATA, NETWORK, TRAINING, EVALUATION)

_choices(RUN, "mode", ",".join(MODES), MODES, "What to do, in this order.")
_text(RUN, "workdir", None, "The run directory, runs/<dataset>-<network> by default.")
flags.DEFINE_bool("resume", False, "Go on with the run in an existing run directory.", module_name=RUN)
_integer(RUN, "seed", 0, "Seed of weights, order, augmentation and attacks.", least=0)
_strategy = "The tf.distribute strategy; auto: multiworker in a cluster, mirrored where there are several GPUs."
_choice(RUN, "strategy", "auto", STRATEGIES, _strategy)
_integer(RUN, "workers", 1, "Processes on this machine that train together, to try a cluster.")
_choice(RUN, "precision", "float32", PRECISIONS, "The Keras dtype policy.")
_choice(RUN, "jit_compile", "auto", ("auto", "true", "false"), "XLA for training and attacks; auto: on GPUs.")
_integer(RUN, "steps_per_execution", 1, "Training steps that are run without a word to Python between them.")
_fold = "Attack and train through faster, equal views of the network; --nofold takes it as it is."
flags.DEFINE_bool("fold", True, _fold, module_name=RUN)

_choices(METHOD, "method", "mart", tuple(METHODS), "The method; several are run one after the other and compared.")
_number(
    METHOD,
    "beta",
    None,
    "Weight of a term of the loss (all but standard, at, mma, rslad); the method's own by default.",
)
_text(METHOD, "teacher", None, "A .keras or .h5 file: a network of standard training (hat) or a robust one (rslad).")
_number(METHOD, "alpha", None, "Weight of the cross-entropy of p and q (dkl), share of the adversarial images (rslad).")
_number(METHOD, "gamma", None, "Weight of the helper image (hat), 0.5 by default.")
_number(METHOD, "helper_scale", None, "How far out the helper lies, 1 being the adversarial image (hat); 2 by default.")
_number(METHOD, "temperature", None, "Of the softmax of the class means (dkl), 4 by default.")
_choice(
    METHOD, "form", None, ("mart", "original"), "As the MART paper, by default, or as its own paper has it (alp, clp)."
)
_number(METHOD, "max_epsilon", None, "The hinge d_max (mma); 32/255 for CIFAR-10 and 0.45 for MNIST in its paper.")
_number(METHOD, "min_margin", None, "The smallest ball searched (mma), 0.005 by default.")
_integer(METHOD, "bisection_steps", None, "Halvings of the bisection (mma), 10 by default.")

_choice(ATTACK, "threat", "linf", ("linf", "l2"), "The norm of the ball round each image that the attack stays in.")
_number(ATTACK, "epsilon", "8/255", "Radius of the ball, for images in [0, 1].")
_choice(ATTACK, "attack", "pgd", ("pgd", "nfgsm"), "The attack; nfgsm takes one step from a noisy image.")
_integer(ATTACK, "steps", 10, "Steps of PGD.")
_step = "Length of a step; by default max(epsilon / 10, 2.5 epsilon / steps), of nfgsm epsilon."
_number(ATTACK, "step_size", None, _step)
_number(ATTACK, "noise", 2.0, "Radius of the noise in multiples of epsilon (nfgsm).")
_choice(ATTACK, "start", "uniform", STARTS, "Where PGD starts.")
_number(ATTACK, "epsilon_warmup", 0.0, "Epochs in which the ball grows from 0 to --epsilon, step by step.")
_mode = "How BatchNormalization and Dropout work while the attack runs."
_choice(ATTACK, "attack_mode", "evaluation", ATTACK_MODES, _mode)

_text(DATA, "dataset", "digits", "digits, tfds:<name>, npz:<path> or folder:<path>.")
_text(DATA, "data_dir", None, "Where TFDS keeps its data.")
_size = "Height and width that images are resized to; by default they stay as they are, and must be of one size."
_integer(DATA, "image_size", None, _size)
_text(DATA, "cache", None, "A folder for the decoded images of tfds: and folder:, which are then decoded only once.")
_augment = (
    "Augmentations of the training images, one after the other; with --image_size crops are parts of random size."
)
_choices(DATA, "augment", "none", ("none", *AUGMENTATIONS), _augment)
_integer(DATA, "batch_size", 128, "Examples in a batch, over all replicas; those of --extra are among them.")
_extra = "More training images, generated or unlabelled: npz:<path> with image and label or without, or as --dataset."
_text(DATA, "extra", None, _extra)
_number(DATA, "extra_fraction", 0.5, "Share of --extra in a batch, which keeps one example of each kind at least.")
_number(DATA, "extra_weight", 1.0, "Weight of an extra example in the loss; the others have 1.")
_labeller = "A .keras file or a SavedModel that labels the images of --extra, whose own labels are then not used."
_text(DATA, "labeller", None, _labeller)

_network = f"The network: {', '.join(NETWORKS)}, applications:<name> of keras.applications, or a .keras or .h5 file."
flags.DEFINE(parsers.Network(NETWORKS), "network", "small_cnn", _network, module_name=NETWORK)
_weights = (
    "Weights to train on: torch:<path> of a PyTorch file for this package's networks; none, by default, imagenet or a "
    "weights file for applications:<name>."
)
flags.DEFINE(parsers.Weights(optional=True), "weights", None, _weights, module_name=NETWORK)
_preprocessing = (
    "What a network's file or --model wants instead of images in [0, 1]: tf, torch, caffe, or the largest value as 255."
)
flags.DEFINE(parsers.Preprocessing(optional=True), "preprocessing", None, _preprocessing, module_name=NETWORK)
_depth = "Layers (wide_resnet, 34 by default; resnet: 18, 34 or 50, 18 by default) or blocks (vit_tiny, 12 by default)."
_integer(NETWORK, "depth", None, _depth)
_width = "Widening factor (wide_resnet), 10 by default, or units of a token (vit_tiny), 192 by default."
_integer(NETWORK, "width", None, _width)
_number(NETWORK, "dropout", None, "Share of units left out (small_cnn, wide_resnet); the network's own by default.")
_of_recipes = "(preact_resnet18, wide_resnet)"
_choice(NETWORK, "activation", None, zoo.ACTIVATIONS, f"The activation {_of_recipes}, relu by default.")
_momentum = f"Share of BatchNormalization's old statistics in the new ones {_of_recipes}, 0.9 by default."
_number(NETWORK, "bn_momentum", None, _momentum)
_padding = f"Of strided 3x3 convolutions {_of_recipes}, torch by default: one pixel on each side, or TensorFlow's same."
_choice(NETWORK, "padding", None, zoo.PADDINGS, _padding)
_shortcut = "Shortcuts where the number of filters changes (preact_resnet18), 1x1 by default."
_choice(NETWORK, "shortcut", None, zoo.SHORTCUTS, _shortcut)
_normalisation = (
    "Mean and deviation by which a network of this package normalises images; the network's own by default."
)
_choice(NETWORK, "normalisation", None, tuple(zoo.NORMALISATIONS), _normalisation)

_integer(TRAINING, "epochs", 120, "Number of epochs.")
_choice(TRAINING, "optimizer", "sgd", OPTIMIZERS, "The optimizer.")
_number(TRAINING, "learning_rate", 0.01, "The largest learning rate.")
_schedule = (
    "The rate after the warm-up. steps: a tenth of it from each of --decay_epochs on; cosine: down to 0 at the end of "
    "all epochs by half a cosine; onecycle: the same in a straight line; constant: it stays."
)
_choice(TRAINING, "schedule", "steps", SCHEDULES, _schedule)
_decay = "Epochs, counted from 1, from which on the rate is a tenth of what it was: a list such as 75,90."
flags.DEFINE(parsers.List(parsers.Integer()), "decay_epochs", "", _decay, module_name=TRAINING)
_warmup = "Epochs, such as 10 or 1/2, over which the rate rises from 0 in a straight line, step by step."
_number(TRAINING, "warmup_epochs", 0.0, _warmup)
_number(TRAINING, "momentum", 0.9, "Momentum (sgd).")
flags.DEFINE_bool("nesterov", False, "Nesterov's form of the momentum (sgd).", module_name=TRAINING)
_decay = "Weight decay: added to the gradient as in PyTorch (sgd), or apart from it (adamw, lion)."
_number(TRAINING, "weight_decay", 0.0, _decay)
_all = "Decay all weights; --nodecay_all leaves biases and BatchNormalization's parameters out."
flags.DEFINE_bool("decay_all", True, _all, module_name=TRAINING)
_number(TRAINING, "clip_norm", None, "The norm that the gradient of all weights together is clipped to.")
_smoothing = "Share of each label that is spread over all classes in the training loss, none by default."
_number(TRAINING, "label_smoothing", None, _smoothing)
_statistics = "The training forwards that BatchNormalization's running statistics see."
_choice(TRAINING, "statistics", "all", STATISTICS, _statistics)
_number(TRAINING, "weight_average", None, "Decay of a moving average of the weights, then judged and exported.")
_integer(TRAINING, "weight_average_start", 0, "Epochs before the average begins; until then it is a copy.", least=0)
_number(TRAINING, "awp_gamma", None, "Size of adversarial weight perturbation: 0.01 (at), 0.005 (trades) in its code.")
_integer(TRAINING, "awp_warmup", 0, "Epochs without weight perturbation at the beginning.", least=0)
_on_nan = "A loss that is not finite ends the run, or the step is left out."
_choice(TRAINING, "on_nan", "stop", ON_NAN, _on_nan)
_parts = "Parts in which a step takes its batch, one after the other, where memory is short."
_integer(TRAINING, "accumulate", 1, _parts)
_every = "Steps or epochs between two saved states, such as 100 or 100steps, and 1epoch."
flags.DEFINE(parsers.Every(), "save_every", "1epoch", _every, module_name=TRAINING)
_integer(TRAINING, "validate_every", 1, "Epochs between validations; the first and the last are always validated.")

_attacks = (
    "A list of fgsm, pgd<steps> such as pgd20, cw, apgd, square, fmn, autoattack, its parts apgd-ce, apgd-dlr, apgd-t "
    "and fab-t, and paper (fgsm,pgd20,cw); transfer-<attack> runs one on --source."
)
flags.DEFINE(parsers.List(parsers.Name()), "attacks", "paper,autoattack", _attacks, module_name=EVALUATION)
_number(EVALUATION, "evaluation_epsilon", None, "Radius of the ball in evaluation; --epsilon by default.")
_integer(EVALUATION, "examples", None, "Number of test images, chosen at random by --seed; all by default.")
_size = "Examples in a batch in evaluation; by default those of a part of a training step, --batch_size / --accumulate."
_integer(EVALUATION, "evaluation_batch_size", None, _size)
_early = "Run each attack only on what is classified correctly under all before it."
flags.DEFINE_bool("stop_early", False, _early, module_name=EVALUATION)
_model = (
    "What to evaluate, report and export in place of a run's checkpoints: a .keras or .h5 file, a SavedModel, or "
    "torch:<path>, a PyTorch file with the weights of --network."
)
_text(EVALUATION, "model", None, _model)
_precision = "What networks of lower precision are judged in; none: as they were trained."
_choice(EVALUATION, "evaluation_precision", "float32", tuple(EVALUATION_PRECISIONS), _precision)
_text(EVALUATION, "source", None, "The model of transfer attacks: a .keras file or a SavedModel.")
_integer(EVALUATION, "checked_examples", 100, "Number of test images that --mode=report checks the attacks on.")


def parse(argv):
    """Reads the flags; what cannot be read ends the program with a message and exit status 2."""
    try:
        return FLAGS(argv)
    except flags.Error as error:
        print(f"keras_mart: {error}\nAll flags: --help", file=sys.stderr)
        sys.exit(2)


def own_flags():
    """The absl flags defined here, in their order."""
    return [flag for group in GROUPS for flag in FLAGS.flags_by_module_dict()[group]]
