"""The losses against a float64 transcription of each formula, worked values, and their gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mart import losses

BETA, MAX_EPSILON = 1.5, 0.1
EXAMPLES = 7  # odd: the last one of CLP's pairs has no partner
EPSILON = np.array([0.0, 0.02, 0.099, 0.1, 0.2, 0.05, 0.0], "float32")  # MMA's, on both sides of MAX_EPSILON and at it
STEP = 1e-5  # of the finite differences


# --- the formulas, in float64 ---


def softmax(z):
    exponentials = np.exp(z - z.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def of_label(y, values):
    return values[np.arange(len(y)), y]


def others(y, values):
    return np.stack([np.delete(row, label) for label, row in zip(y, values, strict=True)])


def cross_entropy(y, z):
    return -np.log(of_label(y, softmax(z)))


def margin(y, z):
    return others(y, z).max(axis=1) - of_label(y, z)


def soft_margin(y, z):
    return np.log(np.exp(others(y, z)).sum(axis=1)) - of_label(y, z)


def kl_divergence(natural, adversarial):
    p, q = softmax(natural), softmax(adversarial)
    return (p * np.log(p / q)).sum(axis=1)


def boosted_cross_entropy(y, adversarial):
    q = softmax(adversarial)
    return -np.log(of_label(y, q)) - np.log(1.0001 - others(y, q).max(axis=1))


def misclassification_weight(y, natural):
    return 1 - of_label(y, softmax(natural))


def mart(y, natural, adversarial):
    divergence = kl_divergence(natural, adversarial)
    return boosted_cross_entropy(y, adversarial) + BETA * divergence * misclassification_weight(y, natural)


def trades(y, natural, adversarial):
    return cross_entropy(y, natural) + BETA * kl_divergence(natural, adversarial)


def alp(y, natural, adversarial):
    return cross_entropy(y, adversarial) + BETA * ((softmax(natural) - softmax(adversarial)) ** 2).sum(axis=1)


def alp_original(y, natural, adversarial):
    mean = (cross_entropy(y, natural) + cross_entropy(y, adversarial)) / 2
    return mean + BETA * ((natural - adversarial) ** 2).sum(axis=1)


def clp(y, natural, adversarial):
    return cross_entropy(y, natural) + BETA * ((softmax(natural) - softmax(adversarial)) ** 2).sum(axis=1)


def clp_original(y, natural, noisy):
    distance = np.zeros(len(y))
    for first in range(0, len(y) - 1, 2):
        distance[first] = distance[first + 1] = ((noisy[first] - noisy[first + 1]) ** 2).sum()
    return cross_entropy(y, noisy) + BETA * distance


def mma(y, natural, adversarial):
    hinge = np.where(EPSILON[: len(y)] < MAX_EPSILON, cross_entropy(y, adversarial), 0)
    return cross_entropy(y, natural) / 3 + 2 / 3 * hinge


# Name to (the package's function, its transcription). All take labels, natural and adversarial logits.
TRAINING = {
    name: (lambda y, p, q, loss=getattr(losses, name): loss(y, p, q, BETA), globals()[name])
    for name in ("mart", "trades", "alp", "alp_original", "clp", "clp_original")
}
TRAINING["mma"] = (lambda y, p, q: losses.mma(y, p, q, EPSILON[: len(y)], MAX_EPSILON), mma)
TERMS = {
    name: (lambda y, p, q, loss=getattr(losses, name): loss(y, q), lambda y, p, q, loss=globals()[name]: loss(y, q))
    for name in ("cross_entropy", "margin", "soft_margin", "boosted_cross_entropy", "misclassification_weight")
}
TERMS["kl_divergence"] = (
    lambda y, p, q: losses.kl_divergence(p, q),
    lambda y, p, q: kl_divergence(p, q),
)
ALL = TRAINING | TERMS


def labels_and_logits(classes, dtype="float32"):
    random = np.random.default_rng(0)
    natural, adversarial = (tf.constant(random.normal(scale=2, size=(EXAMPLES, classes)), dtype) for _ in range(2))
    return random.integers(classes, size=EXAMPLES), natural, adversarial


def float64(*tensors):
    return [keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64")) for tensor in tensors]


# --- values ---


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", ALL)
def test_value(name, classes):
    loss, formula = ALL[name]
    labels, natural, adversarial = labels_and_logits(classes)
    expected = formula(labels, *float64(natural, adversarial))
    np.testing.assert_allclose(loss(labels, natural, adversarial), expected, rtol=1e-5, atol=1e-6)


def test_worked_by_hand():
    # Logits (ln 3, 0) give p = (3/4, 1/4) and (0, ln 3) give q = (1/4, 3/4); the label is 0.
    natural, adversarial = [[np.log(3), 0]], [[0, np.log(3)]]
    # KL(p, q) = 3/4 ln 3 + 1/4 ln(1/3) = 1/2 ln 3 = 0.549306
    # MART, beta 4: -ln(1/4) - ln(1.0001 - 3/4) + 4 * 0.549306 * (1 - 3/4) = 1.386294 + 1.385894 + 0.549306
    np.testing.assert_allclose(losses.mart([0], natural, adversarial, 4.0), [3.321495], rtol=1e-6)
    # TRADES, beta 6: -ln(3/4) + 6 * 0.549306 = 0.287682 + 3.295837
    np.testing.assert_allclose(losses.trades([0], natural, adversarial, 6.0), [3.583519], rtol=1e-6)


def test_mma_takes_one_epsilon_for_all():
    labels, natural, adversarial = labels_and_logits(3)
    for epsilon in (0.05, 0.2):
        one = losses.mma(labels, natural, adversarial, epsilon, MAX_EPSILON)
        each = losses.mma(labels, natural, adversarial, np.full(EXAMPLES, epsilon, "float32"), MAX_EPSILON)
        np.testing.assert_array_equal(one, each)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ALL)
def test_low_precision_logits_are_computed_in_float32(name, dtype):
    loss, _ = ALL[name]
    labels, natural, adversarial = labels_and_logits(5, dtype)
    values = loss(labels, natural, adversarial)
    assert values.dtype == "float32"
    np.testing.assert_array_equal(values, loss(labels, *(tf.cast(z, "float32") for z in (natural, adversarial))))


# --- gradients ---


def gradients(loss, labels, natural, adversarial):
    with tf.GradientTape() as tape:
        tape.watch((natural, adversarial))
        values = loss(labels, natural, adversarial)
    return values, tape.gradient(values, (natural, adversarial), unconnected_gradients="zero")


def differences(formula, labels, natural, adversarial):
    """Central differences of the summed formula with respect to both logits."""
    arguments, results = [natural, adversarial], []
    for changed in range(2):
        gradient = np.zeros_like(arguments[changed])
        for entry in np.ndindex(gradient.shape):
            for sign in (1, -1):
                moved = [argument.copy() for argument in arguments]
                moved[changed][entry] += sign * STEP
                gradient[entry] += sign * formula(labels, *moved).sum() / (2 * STEP)
        results.append(gradient)
    return results


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", TRAINING)
def test_gradient_flows_through_both_logits(name, classes):
    loss, formula = TRAINING[name]
    labels, natural, adversarial = labels_and_logits(classes)
    _, found = gradients(loss, labels, natural, adversarial)
    expected = differences(formula, labels, *float64(natural, adversarial))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", ALL)
def test_saturated_logits_are_finite(name, classes):
    # The label's logit, or another's, far above or below the rest; in natural and adversarial logits, all four.
    corners = np.zeros((4, classes))
    corners[[0, 1, 2, 3], [0, 0, 1, 1]] = [1e4, -1e4, 1e4, -1e4]
    natural, adversarial = (corners[rows] for rows in np.indices((4, 4)).reshape(2, -1))
    for logits in np.split(np.stack([natural, adversarial], axis=1), 4):  # MMA's EPSILON has room for so many
        logits = tf.constant(logits, "float32")
        values, found = gradients(ALL[name][0], np.zeros(4, int), logits[:, 0], logits[:, 1])
        for tensor in (values, *found):
            assert np.all(np.isfinite(tensor)), (logits, tensor)
