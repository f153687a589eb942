"""The attacks: a contract for all of them, and results where the best adversarial example is known."""

import gc
import re
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import Counting, conv_network, images_and_labels, linear_network
from keras import ops

import keras_mart as km
from keras_mart import losses
from keras_mart.attacks import base, gradients
from keras_mart.attacks.bisection import bisection
from keras_mart.attacks.inference import inference

X, Y = images_and_labels()
ROUNDING = 1e-6


def pgd(attack=km.PGD, steps=3, **arguments):
    return lambda threat: attack(threat, steps, step_size=threat.epsilon / 4, **arguments)


ATTACKS = {
    "fgsm": km.FGSM,
    "pgd-uniform": pgd(),
    "pgd-gaussian": pgd(start="gaussian"),
    "pgd-restarts": pgd(restarts=3),
    "cw-zero": pgd(km.CW, start="zero"),
    "nfgsm": km.NFGSM,
}
RANDOM = ("nfgsm", "pgd-uniform", "pgd-gaussian", "pgd-restarts")
THREAT = km.Linf(0.1)
THREATS = [THREAT, km.L2(0.5)]
every_threat = pytest.mark.parametrize("threat", THREATS, ids=repr)


def every_attack(test):
    return pytest.mark.parametrize("name", ATTACKS)(every_threat(test))


@pytest.fixture(scope="module")
def network():
    """Shared by all tests, so that each attack is traced once."""
    return keras.Sequential([keras.Input(X.shape[1:]), Counting(), conv_network()])


@pytest.fixture
def eagerly():
    """Runs functions eagerly: tracing does not pay for a few steps on one network."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# --- the contract of every attack ---


@every_attack
def test_stays_in_the_ball_and_the_box(name, threat, network):
    adversarial = ATTACKS[name](threat)(network, X, Y, seed=1)
    distance = threat.distance(adversarial, X)
    assert np.all(distance <= threat.epsilon + ROUNDING) and np.all(distance > threat.epsilon / 2)
    assert adversarial.dtype == "float32" and np.min(adversarial) >= 0 and np.max(adversarial) <= 1


@every_attack
def test_the_seed_decides(name, threat, network):
    attack = ATTACKS[name](threat)
    first = attack(network, X, Y, seed=1)
    np.testing.assert_array_equal(attack(network, X, Y, seed=1), first)
    others = [attack(network, X, Y, seed=seed) for seed in (2, [1, 1], None, None)]
    results = {adversarial.numpy().tobytes() for adversarial in (first, *others)}
    assert len(results) == (5 if name in RANDOM else 1)


@every_attack
def test_a_smaller_batch_and_an_equal_attack_are_not_traced_again(name, threat, network):
    ATTACKS[name](threat)(network, X, Y, seed=1)
    calls = Counting.calls
    for batch in (5, 1):
        assert ATTACKS[name](threat)(network, X[:batch], Y[:batch], seed=1).shape == X[:batch].shape
    assert Counting.calls == calls


def test_an_attack_that_keeps_more_than_its_fields_is_refused():
    class Mine(km.PGD):
        def __init__(self, threat, sharpness):
            super().__init__(threat)
            self.sharpness = sharpness  # not part of equality, and so of the trace's key

    with pytest.raises(ValueError, match=r"field of its frozen dataclass.* Received: Mine, which also has sharpness"):
        Mine(THREATS[0], 5)(conv_network(), X, Y)


def test_a_network_with_other_variables_is_traced_again():
    network = linear_network(2 * np.eye(3), np.zeros(3))
    images, labels = np.eye(3, dtype="float32"), np.arange(3)
    attack = km.FGSM(km.Linf(0.1))
    before = attack(network, images, labels)
    dense = network.layers[-1]
    dense.enable_lora(1)
    dense.lora_kernel_a.assign(np.float32([[1], [0], [0]]))
    dense.lora_kernel_b.assign(np.float32([[-4, 0, 0]]))
    # The first value of an image was evidence for class 0 before, and is evidence against it now.
    table = km.evaluate(network, (images, labels), {"fgsm": attack}, verbose=0)
    assert table["natural"] == pytest.approx(2 / 3)
    after = attack(network, images, labels)
    assert np.array(before)[1, 0] == pytest.approx(0.1) and np.array(after)[1, 0] == 0


def test_attacks_are_equal_by_value():
    threat = km.Linf(0.5)
    assert km.PGD(threat) == km.PGD(km.Linf(0.5), 20, step_size=0.0625, start="uniform", restarts=1)
    different = [km.PGD(threat, 10), km.PGD(threat, start="zero"), km.PGD(threat, restarts=2), km.PGD(km.L2(0.5))]
    assert len({km.PGD(threat), km.CW(threat, 20), km.FGSM(threat), *different}) == 7
    assert repr(km.FGSM(threat)) == "FGSM(threat=Linf(epsilon=0.5))"


@every_attack
def test_the_networks_state_is_left_alone(name, threat, network):
    before = [variable.numpy() for variable in network.variables]
    assert any("seed" in variable.path for variable in network.variables)  # Dropout's
    ATTACKS[name](threat)(network, X, Y, seed=1)
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


def test_new_weights_are_seen():
    network = linear_network([[1.0, -1.0]], [0.0, 0.0])
    images, labels = [[0.5]], [0]
    np.testing.assert_allclose(km.FGSM(km.Linf(0.1))(network, images, labels), [[0.4]])
    network.set_weights([-weight for weight in network.get_weights()])
    np.testing.assert_allclose(km.FGSM(km.Linf(0.1))(network, images, labels), [[0.6]])


def test_a_network_is_collected_after_an_attack():
    network = conv_network()
    km.PGD(km.Linf(0.1), 2, restarts=2)(network, X, Y)
    km.evaluate(network, (X, Y), {}, verbose=0)
    reference = weakref.ref(network)
    del network
    gc.collect()
    assert reference() is None


# --- networks and data ---


class Subclassed(keras.Model):
    def __init__(self, weights, bias):
        super().__init__()
        self.flatten, self.dense = keras.layers.Flatten(), keras.layers.Dense(len(bias))
        self.dense.build(weights.shape[:1])
        self.dense.set_weights([weights, bias])

    def call(self, images):
        return self.dense(self.flatten(images))


def test_every_kind_of_network_gives_the_same_examples():
    random = np.random.default_rng(0)
    weights, bias = random.normal(size=(36, 3)), random.normal(size=3)
    attack = km.PGD(THREATS[0], 3)
    sequential = linear_network(weights, bias, X.shape[1:])
    functional = keras.Model(sequential.inputs, sequential.outputs)
    expected = attack(sequential, X, Y, seed=1)
    for other in (functional, Subclassed(weights, bias), km.AT(functional, attack)):
        np.testing.assert_allclose(attack(other, X, Y, seed=1), expected, atol=ROUNDING)


def test_labels_may_have_an_axis_more(network):
    attack = km.FGSM(THREATS[0])
    np.testing.assert_array_equal(attack(network, X, Y[:, None]), attack(network, X, Y))


@pytest.mark.parametrize(
    "images, labels, message",
    [
        ((255 * X).astype("uint8"), Y, r"must lie in \[0, 1\]. Received: values from . to 25.\. Divide .* by 255"),
        (X - 0.5, Y, r"must lie in \[0, 1\]\. Received: values from -0\.49"),
        (np.full_like(X, np.nan), Y, "must not contain NaN"),
        (X[..., 0], Y, r"must have shape \(None, 6, 6, 1\).* Received: \(8, 6, 6\)"),
        (X[:0], Y[:0], "must not be empty"),
        (X, Y[:-1], "Every image must have a label. Received: 8 images, 7 labels"),
        (X, np.eye(4)[Y], r"Soft labels must be \[batch, 3\].* Received: shape \(8, 4\)"),
        (X, Y.astype("float32"), "must be integers. Received: dtype float32"),
        (X, Y + 1, r"must lie in \[0, 3\)\. Received: labels from 1 to 3"),
        (X, Y - 1, r"must lie in \[0, 3\)\. Received: labels from -1 to 1"),
    ],
)
def test_images_and_labels_that_do_not_fit(images, labels, message, network):
    with pytest.raises(ValueError, match=message):
        km.FGSM(THREATS[0])(network, images, labels)


@pytest.mark.parametrize("ending", [{"activation": "softmax"}, {"units": 1}])
def test_a_network_must_return_logits(ending):
    network = keras.Sequential(
        [keras.Input(X.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(**{"units": 3} | ending)]
    )
    with pytest.raises(ValueError, match="`network` must return logits"):
        km.FGSM(THREATS[0])(network, X, Y)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: km.PGD(THREAT, 0), "`steps` must be a positive integer. Received: steps=0"),
        (lambda: km.PGD(THREAT, -1), "`steps` must be a positive integer. Received: steps=-1"),
        (lambda: km.PGD(THREAT, 2.5), "`steps` must be a positive integer. Received: steps=2.5"),
        (lambda: km.CW(THREAT, 0), "`steps` must be a positive integer. Received: steps=0"),
        (lambda: km.PGD(THREAT, restarts=0), "`restarts` must be a positive integer. Received: restarts=0"),
        (lambda: km.PGD(THREAT, step_size=0), "`step_size` must be positive. Received: step_size=0"),
        (lambda: km.PGD(THREAT, step_size=-0.1), "`step_size` must be positive. Received: step_size=-0.1"),
        (lambda: km.PGD(THREAT, step_size=np.nan), "`step_size` must be positive. Received: step_size=nan"),
        (lambda: km.NFGSM(THREAT, noise=-1), "`noise` must be finite and not negative. Received: noise=-1"),
        (lambda: km.NFGSM(THREAT, step_size=8), "`step_size` must be at most 2 epsilon"),
        (lambda: km.PGD(THREAT, start="unifrom"), "Received: 'unifrom'. Did you mean 'uniform'?"),
    ],
)
def test_constructor_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- strength ---

INTERIOR, BINARY = images_and_labels(8, (12,), classes=2, low=0.3, high=0.7)  # no ball below reaches 0 or 1
WEIGHTS = np.random.default_rng(1).normal(size=(12, 2)).astype("float32")
CONVERGED = {
    "fgsm": km.FGSM,
    "pgd-uniform": lambda threat: km.PGD(threat, 10, step_size=threat.epsilon),
    "pgd-gaussian": lambda threat: km.PGD(threat, 10, step_size=threat.epsilon, start="gaussian"),
    "pgd-restarts": lambda threat: km.PGD(threat, 10, step_size=threat.epsilon, restarts=2),
    "cw-zero": lambda threat: km.CW(threat, 10, step_size=threat.epsilon, start="zero"),
}


def uphill(labels, weights=WEIGHTS):
    """Returns the [batch, values] gradient of the margin of a linear network with two classes."""
    return (weights[:, 1 - labels] - weights[:, labels]).T


@pytest.mark.parametrize("threat", [km.Linf(0.1), km.L2(0.2)], ids=repr)
@pytest.mark.parametrize("name", CONVERGED)
def test_reaches_the_best_margin_of_a_linear_network(name, threat, eagerly):
    network = linear_network(WEIGHTS, [0.1, -0.1])
    adversarial = CONVERGED[name](threat)(network, INTERIOR, BINARY, seed=1)
    # The margin rises by epsilon times the dual norm of its gradient: L1 for Linf, L2 for L2.
    dual_norm = np.linalg.norm(uphill(BINARY), ord=1 if isinstance(threat, km.Linf) else 2, axis=1)
    best = losses.margin(BINARY, network(INTERIOR)) + threat.epsilon * dual_norm
    np.testing.assert_allclose(losses.margin(BINARY, network(adversarial)), best, atol=1e-5)


def moved(attack, images, labels, weights=WEIGHTS):
    """Returns how far `maximise` moves each value uphill on a linear network, in multiples of epsilon."""

    def objective(candidates):
        return losses.cross_entropy(labels, ops.matmul(candidates, weights))

    offsets = attack.maximise(objective, tf.constant(images), seed=1) - images
    return np.array(offsets * np.sign(uphill(labels, weights))) / attack.threat.epsilon


MANY = np.full((500, 12), 0.5, "float32"), np.arange(500) % 2


def test_fgsm_rs_is_a_pgd_of_one_step():
    # Fast adversarial training (2001.03994): u in [-1, 1], a step of 1.25, projection: the result is 1 in 5 of 8 cases.
    found = moved(km.PGD(km.Linf(0.1), 1, step_size=0.125), *MANY)
    assert found.min() == pytest.approx(0.25, abs=0.01) and found.max() == pytest.approx(1, abs=1e-5)
    assert np.mean(found > 1 - 1e-5) == pytest.approx(5 / 8, abs=0.03)


def test_n_fgsm_steps_from_noise_and_is_projected_only_outside_training():
    attack = km.NFGSM(km.Linf(0.1))
    found = moved(attack, *MANY)  # u in [-2, 2] and a step of 1
    assert found.min() == pytest.approx(-1, abs=0.01) and found.max() == pytest.approx(3, abs=0.01)
    assert (found.mean(), found.std()) == pytest.approx((1, 4 / np.sqrt(12)), abs=0.03)
    fixed = moved(km.NFGSM(km.Linf(0.1), 0, step_size=0.05), *MANY)
    np.testing.assert_allclose(fixed, 0.5, rtol=1e-4)
    halved = attack.maximise(lambda candidates: ops.sum(candidates, axis=1), tf.constant(MANY[0]), 0.05, seed=1)
    assert np.max(halved) == pytest.approx(0.5 + 3 * 0.05, abs=1e-3)
    assert np.max(attack.maximise(lambda candidates: ops.sum(candidates, axis=1), tf.ones((9, 12)), seed=1)) == 1
    projected = attack(linear_network(WEIGHTS, [0, 0]), *MANY, seed=1)
    assert km.Linf(1).distance(projected, MANY[0]).numpy().max() <= 0.1 + ROUNDING


@pytest.mark.parametrize("confidence, steepness", [(30, 1), (0, 200)], ids=["underflow", "overflow"])
@pytest.mark.parametrize("name", CONVERGED)
def test_a_float16_gradient_neither_underflows_nor_overflows(name, confidence, steepness, eagerly):
    # Logits (confidence, 0) on a grey image: at scale 1 the gradient of 30 underflows, at 1024 that of 200 overflows.
    weights = steepness * WEIGHTS[:, 1]
    network = linear_network(
        np.stack([0 * weights, weights], 1), [confidence, -weights.sum() / 2], dtype="mixed_float16"
    )
    grey = tf.fill([4, 12], 0.5)
    adversarial = CONVERGED[name](km.Linf(0.01))(network, grey, [0] * 4, seed=1)
    np.testing.assert_allclose(adversarial, grey + 0.01 * np.sign(weights), atol=ROUNDING)


@every_threat
def test_a_gradient_that_is_not_finite_counts_as_none(threat):
    slope, grey = np.array([[np.nan], [np.inf], [1.0]], "float32"), tf.fill([3, 4], 0.5)
    found = km.FGSM(threat).maximise(lambda images: ops.sum(slope * images, axis=1), grey)
    # Without a gradient, L2 moves in a random direction.
    moved = [0, 0, threat.epsilon] if isinstance(threat, km.Linf) else [threat.epsilon] * 3
    np.testing.assert_allclose(threat.distance(found, grey), moved, atol=ROUNDING)


def test_cw_climbs_the_margin_and_pgd_the_cross_entropy(eagerly):
    # At 0.5 the other classes have logits 0.5 and 0.4 and slopes 1 and -3: the larger logit rises to the right, their
    # sum of exponentials to the left.
    network = linear_network([[0, 1, -3]], [0, 0, 1.9])
    threat, images, labels = km.Linf(0.01), [[0.5]], [0]
    np.testing.assert_allclose(km.CW(threat, 5, start="zero")(network, images, labels), [[0.51]], atol=ROUNDING)
    for attack in (km.FGSM(threat), km.PGD(threat, 5, start="zero")):
        np.testing.assert_allclose(attack(network, images, labels), [[0.49]], atol=ROUNDING)


def two_hills():
    """Ten classes, label 0, one value: a larger cross-entropy left of 0.5, a misclassification right of it.

    At 0.1 the nine other classes have logits -0.2 and the cross-entropy is ln(1 + 9 exp(-0.2)) = 2.12; at 0.9 one has
    0.4, the rest -5, and it is ln(1 + exp(0.4) + 8 exp(-5)) = 0.93.
    """
    hidden = keras.layers.Dense(2, activation="relu")
    network = keras.Sequential([keras.Input((1,)), hidden, keras.layers.Dense(10)])
    others = np.ones(9)
    to_logits = [[0, *12 * others], [0, 13.5, *0 * others[1:]]]
    network.set_weights([np.array([[-1, 1]]), np.array([0.5, -0.5]), np.array(to_logits), np.array([0, *-5 * others])])
    return network, np.full((16, 1), 0.5, "float32"), np.zeros(16, "int32")


def test_restarts_keep_images_with_nan_scores():
    def objective(candidates):
        values = ops.sum(candidates, axis=(1, 2, 3))
        return ops.where(values > ops.sum(X, axis=(1, 2, 3)) + 1, float("nan"), values)

    found = km.PGD(km.Linf(0.1), 1, step_size=0.1, restarts=3).maximise(objective, tf.constant(X), seed=1)
    assert np.all(np.isnan(objective(found)))


def test_restarts_keep_the_worst_of_each_example():
    network, images, labels = two_hills()

    def objective(candidates):
        return losses.cross_entropy(labels, network(candidates))

    def found(restarts):
        attack = km.PGD(km.Linf(0.4), 5, restarts=restarts)
        return objective(attack.maximise(objective, tf.constant(images), seed=1))

    one, two, many = map(found, (1, 2, 10))
    assert np.min(one) < 1 and np.max(one) > 2  # single runs end on either hill
    assert np.all(one <= many + ROUNDING) and np.all(two <= many + ROUNDING)
    np.testing.assert_allclose(many, np.log(1 + 9 * np.exp(-0.2)), rtol=1e-4)


def test_restarts_prefer_a_misclassification_to_a_larger_loss():
    network, images, labels = two_hills()
    adversarial = km.PGD(km.Linf(0.4), restarts=10)(network, images, labels, seed=1)
    np.testing.assert_allclose(adversarial, np.full((16, 1), 0.9), atol=ROUNDING)


HALF_WAY = pgd(steps=2, start="zero")  # two steps of epsilon / 4


@pytest.mark.parametrize("attack, share", [(km.FGSM, 1), (HALF_WAY, 0.5), (CONVERGED["pgd-gaussian"], 1)])
@every_threat
def test_maximise_takes_an_epsilon_for_each_example(attack, share, threat):
    epsilon, direction = np.array([0, 0.01, 0.05, 0.1, 0.1, 0.2, 0.25, 0.3], "float32"), uphill(BINARY)

    def objective(images):
        return ops.sum(images * direction, axis=1)

    found = attack(threat).maximise(objective, tf.constant(INTERIOR), epsilon, seed=1)
    np.testing.assert_allclose(threat.distance(found, INTERIOR), share * epsilon, atol=1e-5)


def test_bisection_finds_the_distance_of_a_linear_boundary():
    direction = uphill(BINARY)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    distance = np.array([0.003, 0.05, 0.1, 0.15, 0.2, 0.25, 0.29, 0.5], "float32")  # the last beyond max_radius

    def margin(images):
        return 10 * (ops.sum((images - INTERIOR) * direction, axis=1) - distance)

    for steps in (1, 5, 10):
        radius, there = bisection(margin, INTERIOR, direction, np.full(8, 0.02, "float32"), 0.3, steps)
        np.testing.assert_allclose(radius, np.minimum(distance, 0.3), atol=0.3 / 2**steps)
        np.testing.assert_allclose(there, INTERIOR + radius[:, None] * direction, atol=ROUNDING)


# --- step sizes and units ---


@pytest.mark.parametrize(
    ("steps", "share"), [(1, 2.0), (2, 1.25), (5, 0.5), (10, 0.25), (20, 0.125), (25, 0.1), (100, 0.1)]
)
@pytest.mark.parametrize("kind", [km.PGD, km.CW])
def test_default_steps_reach_the_far_side(kind, steps, share):
    assert kind(km.Linf(0.4), steps).step_size == pytest.approx(0.4 * share)


@every_threat
@pytest.mark.parametrize("steps", [2, 3, 7, 10, 20])
def test_from_any_start_the_default_ends_in_the_worst_corner(steps, threat, eagerly):
    """On two classes that differ in one direction, where the worst image of the ball is known."""
    normal = np.float32([[0.5, -0.5]] * 5)
    network = linear_network(normal, [0, 0])
    images, labels = np.full((200, 5), 0.5, "float32"), np.zeros(200, int)
    small = type(threat)(0.3 * threat.epsilon)
    adversarial = np.asarray(km.PGD(small, steps)(network, images, labels, seed=0))
    share = 1 if isinstance(threat, km.Linf) else 5**-0.5
    reached = (0.5 - adversarial).sum(1) / (5 * small.epsilon * share)
    assert reached.min() > (1 - 1e-4 if isinstance(threat, km.Linf) else 0.9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: km.Linf(8), r"`epsilon` must be at most 1.*Received: epsilon=8\. Did you mean 8 / 255\?"),
        (lambda: km.Linf(1.01), "`epsilon` must be at most 1"),
        (
            lambda: km.PGD(km.Linf(8 / 255), step_size=2),
            r"`step_size` must be at most 2 epsilon.*Did you mean 2 / 255\?",
        ),
        (lambda: km.CW(km.L2(0.5), step_size=1.1), "`step_size` must be at most 2 epsilon"),
        (lambda: km.PGD(km.L2(13))(conv_network(), X, Y), r"`epsilon` must be at most 6, the largest L2 distance.*13"),
        (lambda: km.AutoAttack(km.L2(13)).check_images(X.shape), "`epsilon` must be at most 6"),
        (
            lambda: km.evaluate(conv_network(), (X, Y), {"f": km.FGSM(km.L2(7))}, verbose=0),
            "`epsilon` must be at most 6",
        ),
        (lambda: fitted(km.AT(conv_network(), km.PGD(km.L2(7)))), "`epsilon` must be at most 6"),
        (
            lambda: km.MMA(conv_network(), km.PGD(km.Linf(0.1)), num_examples=9, max_epsilon=32),
            r"`max_epsilon` must be at most 1.*Did you mean 32 / 255\?",
        ),
    ],
)
def test_lengths_in_units_of_255_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def fitted(model):
    model.compile("sgd")
    return model.fit(X, Y, verbose=0)


def test_the_largest_lengths_are_accepted(eagerly):
    for threat in (km.Linf(1), km.L2(6.0)):
        assert km.PGD(threat, 2, step_size=2 * threat.epsilon)(conv_network(), X, Y).shape == X.shape
    assert km.PGD(km.Linf(0), step_size=0.1).step_size == 0.1  # in a ball of radius 0 the step size does not matter


# --- changed networks, and channels-first images ---


CHANGES = {
    "a new head": (lambda network: (network.pop(), network.add(keras.layers.Dense(5))), 5),
    "a layer without weights more": (lambda network: network.add(keras.layers.Rescaling(-1.0)), 3),
    "a layer without weights less": (lambda network: network.pop(), 3),
    "inside": (lambda network: (network.layers[0].pop(), network.layers[0].add(keras.layers.Rescaling(-1.0))), 3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_is_traced_again(change):
    def build():
        keras.utils.set_random_seed(0)
        inner = keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Flatten(), keras.layers.Rescaling(1.0)])
        return keras.Sequential(
            [keras.Input(X.shape[1:]), inner, keras.layers.Dense(3), keras.layers.Rescaling(-1.0)]
            if change == "a layer without weights less"
            else [keras.Input(X.shape[1:]), inner, keras.layers.Dense(3)]
        )

    alter, classes = CHANGES[change]
    attack = {"fgsm": km.FGSM(km.Linf(0.2))}
    network, fresh = build(), build()
    km.evaluate(network, (X, Y), attack, verbose=0)
    alter(network), alter(fresh)
    fresh.set_weights(network.get_weights())
    labels = np.arange(len(X)) % classes
    table = km.evaluate(network, (X, labels), attack, verbose=0)
    expected = km.evaluate(fresh, (X, labels), attack, verbose=0)
    for name, predicted in expected.predictions.items():
        np.testing.assert_array_equal(table.predictions[name], predicted)
    with pytest.raises(ValueError, match=rf"Labels must lie in \[0, {classes}\)"):
        attack["fgsm"](network, X, labels + 1)


def test_the_cache_of_a_network_is_dropped_with_its_variables():
    from keras_mart import memory

    network = linear_network(np.eye(3), np.zeros(3))
    cache = memory.cache_of(network)
    assert memory.cache_of(network) is cache
    network.layers[-1].kernel = network.layers[-1].kernel  # the same variable
    assert memory.cache_of(network) is cache
    network.layers[-1].trainable = False  # attributes are not watched
    assert memory.cache_of(network) is cache
    network.add(keras.layers.ReLU())
    assert memory.cache_of(network) is not cache


@pytest.mark.parametrize("threat", [km.Linf(0.05), km.L2(0.5)], ids=repr)
def test_square_on_images_with_their_channels_first(threat):
    shape = (7, 6, 3)
    network = linear_network(np.random.default_rng(1).normal(size=(126, 3)), np.zeros(3), shape)
    images, _ = images_and_labels(shape=shape, examples=16)
    labels = np.argmax(network(images), -1)
    turned = keras.Input((3, 7, 6))
    first = keras.Model(turned, network(keras.layers.Permute((2, 3, 1))(turned)))
    attack = km.Square(threat, 150)
    expected = np.asarray(attack(network, images, labels, seed=1))
    found = np.asarray(attack(first, images.transpose(0, 3, 1, 2), labels, seed=1))
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), expected, atol=1e-5)
    assert np.abs(expected - images).max() > 0.01


# --- rounding ---


def test_rounding_is_clipped():
    images = X.copy()
    images[:4, 0, 0, 0] = [-2.98e-8, -9e-7, 1 + 1.2e-7, 1 + 9e-7]
    network = conv_network()
    adversarial = np.asarray(km.PGD(km.Linf(0.1), 1)(network, images, Y, seed=0))
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    seen = []

    def looks(network, images, labels, seed):
        seen.append(np.asarray(images))
        return images

    km.evaluate(network, (images, Y), {"looks": looks}, verbose=0)
    assert seen[0].min() >= 0 and seen[0].max() <= 1
    model = km.MART(network, km.PGD(km.Linf(0.1), 1))
    assert np.isfinite(fitted_on(model, tf.data.Dataset.from_tensor_slices((images, Y)).batch(4)))


def fitted_on(model, data):
    model.compile("sgd", run_eagerly=True)
    return model.fit(data, verbose=0).history["loss"][0]


@pytest.mark.parametrize(("off", "shown"), [(1 + 2.4e-6, r"to 1\.0000023|to 1\.0000024"), (-2e-6, "from -1.99.*e-06")])
def test_more_than_rounding_is_refused_with_enough_digits(off, shown):
    images = X.copy()
    images[0, 0, 0, 0] = off
    with pytest.raises(ValueError, match=shown):
        km.FGSM(km.Linf(0.1))(conv_network(), images, Y)


# --- loops ---

# Name to (attack, number of loops, number of loops of unknown length: FAB's projections end when they have converged).
LOOPS = {
    "pgd": (km.PGD(km.Linf(0.1), 7, restarts=3), 2, 0),
    "l2": (km.PGD(km.L2(0.5), 7, start="zero"), 1, 0),
    "apgd-ce": (km.APGDCE(km.Linf(0.1), 7, gradient_samples=2), 3, 0),
    "apgd-t": (km.APGDT(km.Linf(0.1), 7), 1, 0),
    "fab-t": (km.FABT(km.Linf(0.1), 7), 3, 2),
    "square": (km.Square(km.L2(0.5), 200), 2, 0),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_of_a_compiled_attack_have_a_known_length(name):
    """Otherwise a GPU waits for the host in every iteration."""
    attack, loops, unknown = LOOPS[name]
    network = linear_network(np.random.default_rng(0).normal(size=(36, 3)), np.zeros(3), X.shape[1:])
    arguments = [tf.constant(X), tf.constant(Y, tf.int32), tf.constant([1, 2])]
    if isinstance(attack, base.Rounds):
        arguments += [tf.constant(0), tf.constant(X)]
    perturb = tf.function(lambda *tensors: attack.perturb(inference(network), *tensors), jit_compile=True)
    program = perturb.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    whiles = re.findall(r"= .* while\(.*", program)
    assert (len(whiles), sum("known_trip_count" not in line for line in whiles)) == (loops, unknown)


def test_a_gradient_for_float16_is_scaled_exactly():
    upstream = np.float32([[3e-30, -1e-31, 0], [0, 0, 0], [700, 1, -1], [-1, 1, 0]])
    with tf.GradientTape() as tape:
        logits = tf.zeros([4, 3])
        tape.watch(logits)
        passed = gradients.with_scaled_gradient(logits)
    scaled = tape.gradient(passed, logits, output_gradients=tf.constant(upstream)).numpy()
    factors = np.exp2(-np.floor(np.log2([3e-30, 1, 700, 1])))
    np.testing.assert_array_equal(scaled, upstream * factors[:, None].astype("float32"))
    assert (np.abs(scaled[[0, 2, 3]]).max(1) >= 1).all() and (np.abs(scaled).max(1) < 2).all()


class NotCompilable(keras.layers.Layer):
    """Calls Python, which XLA cannot compile."""

    def call(self, images):
        return tf.ensure_shape(tf.numpy_function(lambda each: each, [images], "float32"), images.shape)


@pytest.mark.parametrize(("choice", "preferred"), [("auto", False), ("auto", True), (True, False), (False, True)])
def test_xla_compiles_attacks_as_compile_says(choice, preferred, monkeypatch):
    monkeypatch.setattr("keras_mart.distribution.prefers_xla", lambda: preferred)
    layers = [NotCompilable(), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = km.Standard(keras.Sequential([keras.Input(X.shape[1:]), *layers]))
    model.compile("sgd", jit_compile=choice)

    def evaluate():
        return km.evaluate(model, (X, Y), {"n": km.Noise(km.Linf(0.1))}, verbose=0)

    if choice is False or (choice == "auto" and not preferred):
        assert evaluate().examples == len(X)
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match="XLA"):
            evaluate()
    model.compile("sgd", jit_compile=False)  # a changed choice takes effect
    assert evaluate().examples == len(X)
