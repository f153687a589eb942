"""The losses against a float64 transcription of each formula, hand-computed values, and finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mart import losses

EXAMPLES = 7  # odd: the last example has no partner for CLP
BETA, MAX_EPSILON = 1.5, 0.1
ALPHA, GAMMA = 0.75, 0.5
EPSILON = np.array([0.0, 0.02, 0.0999, 0.1, 0.2, 0.05, 0.0], "float32")  # MMA's: below MAX_EPSILON, at it, above
STEP = 1e-5  # of the finite differences


# --- the formulas, in float64 ---


def log_sum_exp(z):
    largest = z.max(axis=1)
    return largest + np.log(np.exp(z - largest[:, None]).sum(axis=1))


def log_softmax(z):
    return z - log_sum_exp(z)[:, None]


def softmax(z):
    return np.exp(log_softmax(z))


def of_label(y, values):
    return values[np.arange(len(y)), y]


def others(y, values):
    return np.stack([np.delete(row, label) for label, row in zip(y, values, strict=True)])


def cross_entropy(y, z):
    return -of_label(y, log_softmax(z))


def margin(y, z):
    return others(y, z).max(axis=1) - of_label(y, z)


def soft_margin(y, z):
    return log_sum_exp(others(y, z)) - of_label(y, z)


def kl_divergence(natural, adversarial):
    return (softmax(natural) * (log_softmax(natural) - log_softmax(adversarial))).sum(axis=1)


def boosted_cross_entropy(y, adversarial):
    return cross_entropy(y, adversarial) - np.log(1.0001 - others(y, softmax(adversarial)).max(axis=1))


def misclassification_weight(y, natural):
    return 1 - of_label(y, softmax(natural))


def mart(y, natural, adversarial, beta):
    divergence = kl_divergence(natural, adversarial)
    return boosted_cross_entropy(y, adversarial) + beta * divergence * (1 - of_label(y, softmax(natural)))


def trades(y, natural, adversarial, beta):
    return cross_entropy(y, natural) + beta * kl_divergence(natural, adversarial)


def alp(y, natural, adversarial, beta):
    return cross_entropy(y, adversarial) + beta * ((softmax(natural) - softmax(adversarial)) ** 2).sum(axis=1)


def alp_original(y, natural, adversarial, beta):
    mean = (cross_entropy(y, natural) + cross_entropy(y, adversarial)) / 2
    return mean + beta * ((natural - adversarial) ** 2).sum(axis=1)


def clp(y, natural, adversarial, beta):
    return cross_entropy(y, natural) + beta * ((softmax(natural) - softmax(adversarial)) ** 2).sum(axis=1)


def clp_original(y, natural, noisy, beta):
    distance = np.zeros(len(y))
    for left in range(0, len(y) - 1, 2):
        distance[left : left + 2] = ((noisy[left] - noisy[left + 1]) ** 2).sum()
    return cross_entropy(y, noisy) + beta * distance


def mma(y, natural, adversarial, epsilon, max_epsilon):
    boundary = np.where(epsilon < max_epsilon, cross_entropy(y, adversarial), 0)
    return cross_entropy(y, natural) / 3 + 2 / 3 * boundary


def soft_cross_entropy(natural, adversarial, held=None):
    return -(softmax(natural if held is None else held) * log_softmax(adversarial)).sum(axis=1)


def weighted_pair_distance(y, natural, adversarial, class_means):
    pairs = [z[:, :, None] - z[:, None, :] for z in (natural, adversarial)]
    weights = class_means[y][:, :, None] * class_means[y][:, None, :]
    return (weights * (pairs[0] - pairs[1]) ** 2).sum(axis=(1, 2)) / 4


def dkl(y, natural, adversarial, class_means, alpha, beta, held=None):
    distance = weighted_pair_distance(y, natural, adversarial, class_means)
    robust = alpha * soft_cross_entropy(natural, adversarial, held)
    return cross_entropy(y, natural) + robust + beta * distance


def hat(y, natural, adversarial, helper, helper_labels, beta, gamma):
    return trades(y, natural, adversarial, beta) + gamma * cross_entropy(helper_labels, helper)


def rslad(y, natural, adversarial, teacher, alpha):
    return (1 - alpha) * kl_divergence(teacher, natural) + alpha * kl_divergence(teacher, adversarial)


TERMS = (cross_entropy, margin, soft_margin, kl_divergence, boosted_cross_entropy, misclassification_weight)
TRAINING = (mart, trades, alp, alp_original, clp, clp_original, mma, hat, dkl, rslad)
every_loss = pytest.mark.parametrize("formula", [*TERMS, *TRAINING], ids=lambda formula: formula.__name__)
every_training_loss = pytest.mark.parametrize("formula", TRAINING, ids=lambda formula: formula.__name__)
two_and_five_classes = pytest.mark.parametrize("classes", [2, 5])


def arguments(formula, labels, natural, adversarial):
    """Returns the arguments of the package's function and of the transcription of the same name."""
    if formula is kl_divergence:
        return natural, adversarial
    if formula is mma:
        return labels, natural, adversarial, np.resize(EPSILON, len(labels)), np.float32(MAX_EPSILON)
    classes = natural.shape[1]
    if formula is dkl:
        means = softmax(np.cos(np.arange(classes**2.0)).reshape(classes, classes)).astype("float32")
        return labels, natural, adversarial, means, ALPHA, BETA
    if formula is hat:
        return labels, natural, adversarial, adversarial[::-1], np.arange(len(natural)) % classes, BETA, GAMMA
    if formula is rslad:
        return labels, natural, adversarial, np.sin(np.arange(len(natural) * classes)).reshape(-1, classes), ALPHA
    return (labels, natural, adversarial, BETA) if formula in TRAINING else (labels, adversarial)


def loss(formula, *logits):
    return getattr(losses, formula.__name__)(*arguments(formula, *logits))


def expected(formula, labels, *logits, **held):
    logits = [keras.ops.convert_to_numpy(keras.ops.cast(each, "float64")) for each in logits]
    return formula(*arguments(formula, labels, *logits), **held)


def labels_and_logits(classes, dtype="float32"):
    random = np.random.default_rng(0)
    natural, adversarial = (tf.constant(random.normal(scale=2, size=(EXAMPLES, classes)), dtype) for _ in range(2))
    return random.integers(classes, size=EXAMPLES), natural, adversarial


# --- values ---


@two_and_five_classes
@every_loss
def test_value(formula, classes):
    case = labels_and_logits(classes)
    np.testing.assert_allclose(loss(formula, *case), expected(formula, *case), rtol=1e-5, atol=1e-6)


def test_worked_by_hand():
    # Logits (ln 3, 0) give p = (3/4, 1/4), logits (0, ln 3) give q = (1/4, 3/4); the label is 0.
    natural, adversarial = [[np.log(3), 0]], [[0, np.log(3)]]
    # KL(p, q) = 3/4 ln 3 + 1/4 ln(1/3) = 1/2 ln 3 = 0.549306
    # MART, beta 4: -ln(1/4) - ln(1.0001 - 3/4) + 4 * 0.549306 * (1 - 3/4) = 1.386294 + 1.385894 + 0.549306
    np.testing.assert_allclose(losses.mart([0], natural, adversarial, 4.0), [3.321495], rtol=1e-6)
    # TRADES, beta 6: -ln(3/4) + 6 * 0.549306 = 0.287682 + 3.295837
    np.testing.assert_allclose(losses.trades([0], natural, adversarial, 6.0), [3.583519], rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
def test_mma_takes_one_epsilon_for_all(epsilon):
    case = labels_and_logits(3)
    one = losses.mma(*case, epsilon, MAX_EPSILON)
    np.testing.assert_array_equal(one, losses.mma(*case, np.full(EXAMPLES, epsilon, "float32"), MAX_EPSILON))


LINEAR = (cross_entropy, boosted_cross_entropy, misclassification_weight, *TRAINING)


@two_and_five_classes
@pytest.mark.parametrize("formula", LINEAR, ids=lambda formula: formula.__name__)
def test_of_soft_labels_it_is_the_mean_over_labels_drawn_from_them(formula, classes):
    _, *logits = labels_and_logits(classes)
    shares = np.random.default_rng(1).dirichlet(np.ones(classes), EXAMPLES)
    of_each = [expected(formula, np.full(EXAMPLES, label), *logits) for label in range(classes)]
    mean = np.sum(shares * np.stack(of_each, axis=1), axis=1)
    np.testing.assert_allclose(loss(formula, shares, *logits), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("formula", [margin, soft_margin, *LINEAR], ids=lambda formula: formula.__name__)
def test_one_hot_labels_give_the_values_and_gradients_of_integers(formula):
    labels, *logits = labels_and_logits(5)
    results = []
    for each in (labels, np.eye(5)[labels]):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            values = loss(formula, each, *logits)
        gradients = tape.gradient(values, logits, unconnected_gradients="zero")
        results.append([values, *gradients])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_one_hot_labels_keep_the_gradient_of_a_confident_example():
    logits = tf.constant([[30.0, 0.0, -1.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = losses.cross_entropy([[1.0, 0.0, 0.0]], logits)
    gradient = tape.gradient(value, logits)[0]
    np.testing.assert_allclose(gradient, [-1.28e-13, 9.36e-14, 3.44e-14], rtol=0.01)


def test_smoothed_labels():
    np.testing.assert_allclose(losses.smoothed([2, 0], 4, 0.2), [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    np.testing.assert_allclose(losses.smoothed([[0.5, 0.5]], 2, 0.2), [[0.5, 0.5]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@every_loss
def test_low_precision_logits_are_computed_in_float32(formula, dtype):
    labels, *logits = labels_and_logits(5, dtype)
    values = loss(formula, labels, *logits)
    assert values.dtype == "float32"
    np.testing.assert_array_equal(values, loss(formula, labels, *(tf.cast(each, "float32") for each in logits)))


@pytest.mark.parametrize("formula", TERMS, ids=lambda formula: formula.__name__)
def test_the_number_of_classes_may_be_unknown_in_a_graph(formula):
    labels, *logits = labels_and_logits(5)
    traced = tf.function(lambda *logits: loss(formula, labels, *logits), [tf.TensorSpec([None, None])] * 2)
    np.testing.assert_allclose(traced(*logits), loss(formula, labels, *logits), rtol=1e-6)


# --- the objectives of AutoAttack, which take targets ---


def dlr(y, z):
    largest = -np.sort(-z, axis=1)
    return margin(y, z) / (largest[:, 0] - largest[:, 2]) if z.shape[1] > 2 else margin(y, z)


def logit_difference(y, z, targets):
    return of_label(targets, z) - of_label(y, z)


def targeted_dlr(y, z, targets):
    largest = -np.sort(-z, axis=1)
    ratio = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 if z.shape[1] > 3 else 1
    return logit_difference(y, z, targets) / ratio


def objective_case(formula, classes, dtype="float32"):
    """Returns arguments in which the label has the largest, the second largest or another logit."""
    labels, logits, _ = labels_and_logits(classes, dtype)
    targets = (labels + 1 + np.arange(EXAMPLES) % (classes - 1)) % classes
    return (labels, logits) if formula is dlr else (labels, logits, targets)


every_objective = pytest.mark.parametrize("formula", [dlr, targeted_dlr, logit_difference], ids=lambda f: f.__name__)


@every_objective
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_value_of_an_objective(formula, classes):
    labels, logits, *targets = objective_case(formula, classes)
    values = getattr(losses, formula.__name__)(labels, logits, *targets)
    np.testing.assert_allclose(values, formula(labels, logits.numpy().astype("float64"), *targets), rtol=1e-5)


def test_objectives_worked_by_hand():
    # Label 1 has logit 3, the others 7, 1 and 2: (7 - 3) / (7 - 2); to target 3: (2 - 3) / (7 - (2 + 1) / 2).
    # Then it has 9: (7 - 9) / (9 - 2); to target 3: (2 - 9) / (9 - (2 + 1) / 2).
    logits = np.array([[7, 3, 1, 2], [7, 9, 1, 2]], "float32")
    np.testing.assert_allclose(losses.dlr([1, 1], logits), [4 / 5, -2 / 7], rtol=1e-6)
    np.testing.assert_allclose(losses.targeted_dlr([1, 1], logits, [3, 3]), [-1 / 5.5, -7 / 7.5], rtol=1e-6)
    np.testing.assert_allclose(losses.logit_difference([1, 1], logits, [3, 0]), [-1, -2], rtol=1e-6)


@pytest.mark.parametrize("formula", [dlr, targeted_dlr], ids=lambda formula: formula.__name__)
def test_a_ratio_does_not_depend_on_the_scale_of_logits(formula):
    labels, logits, *targets = objective_case(formula, 5)
    function = getattr(losses, formula.__name__)
    for scale in (1e-3, 1e3):
        np.testing.assert_allclose(
            function(labels, scale * logits, *targets), function(labels, logits, *targets), rtol=1e-4
        )


@every_objective
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("kind", ["equal", "saturated", "float16"])
def test_the_gradient_of_an_objective_is_finite(formula, classes, kind):
    labels, logits, *targets = objective_case(formula, classes, "float16" if kind == "float16" else "float32")
    logits = {"equal": tf.zeros_like(logits), "saturated": 1e4 * logits, "float16": logits}[kind]
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = getattr(losses, formula.__name__)(labels, logits, *targets)
    assert values.dtype == "float32"
    assert np.all(np.isfinite(values)) and np.all(np.isfinite(tape.gradient(values, logits)))


# --- gradients ---


def value_and_gradients(formula, labels, *logits):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = loss(formula, labels, *logits)
    return values, *tape.gradient(values, logits, unconnected_gradients="zero")


def finite_differences(formula, labels, *logits):
    """Central differences of the summed float64 transcription, with respect to both logits."""
    logits = np.array(logits, "float64")
    gradient = np.zeros_like(logits)
    held = {"held": logits[0].copy()} if formula is dkl else {}  # the p held fixed
    for entry in np.ndindex(logits.shape):
        for sign in (1, -1):
            moved = logits.copy()
            moved[entry] += sign * STEP
            gradient[entry] += sign * expected(formula, labels, *moved, **held).sum() / (2 * STEP)
    return gradient


@two_and_five_classes
@every_training_loss
def test_gradients_flow_through_natural_and_adversarial_logits(formula, classes):
    case = labels_and_logits(classes)
    _, *found = value_and_gradients(formula, *case)
    np.testing.assert_allclose(found, finite_differences(formula, *case), rtol=1e-4, atol=1e-5)


@two_and_five_classes
@every_loss
def test_saturated_logits(formula, classes):
    # The label's or another logit is far above or below the rest, in all pairs of natural and adversarial logits.
    corners = np.zeros((4, classes), "float32")
    corners[[0, 1, 2, 3], [0, 0, 1, 1]] = [1e4, -1e4, 1e4, -1e4]
    natural, adversarial = (tf.constant(corners[rows]) for rows in np.indices((4, 4)).reshape(2, -1))
    case = np.zeros(16, "int32"), natural, adversarial
    values, *gradients = value_and_gradients(formula, *case)
    np.testing.assert_allclose(values, expected(formula, *case), rtol=1e-4, atol=1e-6)
    assert np.all(np.isfinite(gradients))


# --- gradients of images, which GradAlign compares ---


def misalignment(left, right):
    left, right = (each.reshape(len(each), -1) for each in (left, right))
    return 1 - (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


def test_gradients_are_aligned_or_not():
    left, right = np.random.default_rng(0).normal(size=(2, 6, 4, 3, 2))
    left[1] = -3 * right[1]
    tiny = left * 10.0 ** -np.arange(0, 30, 5).reshape(-1, 1, 1, 1)  # squares of these underflow
    moving = tf.constant(right, "float32")
    labels, _, logits = (each[:6] for each in labels_and_logits(3))
    with tf.GradientTape() as tape:
        tape.watch(moving)
        values = losses.grad_align(labels, None, logits, tf.constant(tiny, "float32"), moving, BETA)
    difference = misalignment(left, right)
    of_logits = cross_entropy(labels, logits.numpy().astype("float64"))
    np.testing.assert_allclose(values, of_logits + BETA * difference, rtol=1e-5)
    assert difference[1] == pytest.approx(2)
    direction = np.random.default_rng(1).normal(size=right.shape)
    slope = misalignment(left, right + STEP * direction) - misalignment(left, right - STEP * direction)
    found = BETA * slope / (2 * STEP)
    np.testing.assert_allclose(
        np.sum(tape.gradient(values, moving) * direction, (1, 2, 3)), found, rtol=1e-4, atol=1e-6
    )


def test_a_gradient_of_zero_counts_as_aligned():
    one, none = tf.constant([[1.0, 2.0]] * 3), tf.constant([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch([one, none])
        values = losses.misalignment(tf.concat([one[:1], none[1:]], 0), none)
    np.testing.assert_allclose(values, [0, 0, 0], atol=1e-6)
    assert all(np.all(np.isfinite(each)) for each in tape.gradient(values, [one, none]))
