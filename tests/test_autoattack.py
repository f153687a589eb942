"""Auto-PGD, FAB, Square and AutoAttack: the contract of every attack, and comparisons with exact results."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import Counting, conv_network, images_and_labels, linear_network
from keras import ops

import keras_mart as km
from keras_mart import losses, randomness
from keras_mart.attacks import apgd, autoattack, fab, gradients, square, survivors

ROUNDING = 1e-5
THREATS = [km.Linf(0.1), km.L2(0.4)]
every_threat = pytest.mark.parametrize("threat", THREATS, ids=repr)
SHORT = {
    "apgd-ce": functools.partial(km.APGDCE, steps=3),
    "apgd-dlr": functools.partial(km.APGDDLR, steps=3),
    "apgd-t": functools.partial(km.APGDT, steps=3),
    "fab-t": functools.partial(km.FABT, steps=3),
    "square": functools.partial(km.Square, queries=6),
}
ATTACKS = SHORT | {
    "fgsm": km.FGSM,
    "pgd": functools.partial(km.PGD, steps=2),
    "cw": functools.partial(km.CW, steps=2),
    "noise": functools.partial(km.Noise, samples=2),
    "fmn": functools.partial(km.FMN, steps=5),
    "autoattack": functools.partial(km.AutoAttack, version=("apgd-dlr", "apgd-t", "fab-t", "square")),
}
IN_ROUNDS = ("apgd-t", "fab-t", "square", "autoattack")  # these keep natural images that are misclassified


def every_attack(test):
    return pytest.mark.parametrize("name", ATTACKS)(every_threat(test))


def every_single_attack(test):
    return pytest.mark.parametrize("name", [name for name in ATTACKS if name != "autoattack"])(every_threat(test))


@pytest.fixture(autouse=True)
def short_rounds_and_stages(monkeypatch):
    """AutoAttack made of short attacks, and Square in two rounds."""
    monkeypatch.setattr(square, "ROUND", 4)
    for name, attack in SHORT.items():
        monkeypatch.setitem(autoattack.STAGES, name, attack)


@pytest.fixture
def eagerly():
    """Runs functions eagerly: tracing does not pay for a single call."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# --- the contract of every attack ---

X, _ = images_and_labels(8, (5, 5, 1))


@pytest.fixture(scope="module")
def network():
    """Shared by all tests, so that each attack is traced once."""
    return keras.Sequential([keras.Input(X.shape[1:]), Counting(), conv_network(X.shape[1:])])


@pytest.fixture(scope="module")
def labels(network):
    """Two of eight are misclassified."""
    predicted = np.argmax(network(X), axis=1)
    predicted[[2, 5]] = (predicted[[2, 5]] + 1) % 3
    return predicted


def assert_keeps_the_rules(found, images, threat):
    assert found.dtype == "float32" and found.shape == images.shape and np.all(np.isfinite(found))
    assert np.all(threat.distance(found, images) <= threat.epsilon + ROUNDING)
    assert np.min(found) >= 0 and np.max(found) <= 1


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("fgsm", "pgd", "cw")])  # in test_attacks.py
@every_threat
def test_contract(name, threat, network, labels):
    attack = ATTACKS[name](threat)
    found = attack(network, X, labels, seed=1)
    assert_keeps_the_rules(found, X, threat)
    assert np.any(np.abs(found - X) > 0.01)
    np.testing.assert_array_equal(attack(network, X, labels, seed=1), found)
    if name in IN_ROUNDS:
        np.testing.assert_array_equal(found.numpy()[[2, 5]], X[[2, 5]])
    calls = Counting.calls
    for batch in (5, 1):  # also when ever fewer examples remain
        few = ATTACKS[name](threat)(network, X[:batch], labels[:batch], seed=1)
        assert_keeps_the_rules(few, X[:batch], threat)
    assert Counting.calls == calls


def linear(classes, flat=False, dtype="float32"):
    """Returns a network, images, and the labels that it predicts."""
    weights = np.random.default_rng(1).normal(size=(25, classes))
    images = X.reshape(8, -1) if flat else X
    network = linear_network(weights, np.zeros(classes), images.shape[1:], dtype=dtype)
    return network, images, np.argmax(network(images), axis=1)


@every_single_attack
def test_epsilon_zero_returns_the_natural_images(name, threat, eagerly):
    network, images, labels = linear(3)
    np.testing.assert_array_equal(ATTACKS[name](type(threat)(0))(network, images, labels, seed=1), images)


@pytest.mark.parametrize("classes, flat, dtype", [(2, False, "mixed_float16"), (4, True, "float32")])
@every_single_attack
def test_classes_shapes_and_precision(name, threat, classes, flat, dtype, eagerly):
    network, images, labels = linear(classes, flat and name != "square", dtype)
    found = ATTACKS[name](threat)(network, images, labels, seed=1)
    assert_keeps_the_rules(found, images, threat)
    assert name == "noise" or np.any(np.argmax(network(found), axis=1) != labels)


@every_threat
def test_square_needs_pixels(threat, eagerly):
    with pytest.raises(ValueError, match=r"needs images \[batch, height, width, channels\].* Received: shape \(.*25\)"):
        km.Square(threat)(*linear(3, flat=True))


@every_attack
def test_values(name, threat):
    attack = ATTACKS[name](threat)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(attack))
    assert type(again) is type(attack) and again == attack and hash(again) == hash(attack)
    assert attack == ATTACKS[name](threat) and attack != ATTACKS[name](km.Linf(0.2))
    assert repr(attack).startswith(f"{type(attack).__name__}(threat={threat!r}")


@pytest.mark.parametrize("name", IN_ROUNDS)
def test_rounds_run_eagerly(name, network, labels):
    attack = tf.function(lambda images, labels: ATTACKS[name](THREATS[0])(network, images, labels, seed=1))
    with pytest.raises(ValueError, match=r"runs eagerly, not inside a tf\.function\. Received: "):
        attack(tf.constant(X), tf.constant(labels))


LINF = THREATS[0]


@pytest.mark.parametrize(
    "build, message",
    [
        *((lambda a=a: a(LINF, 0), "`steps` must be a positive integer. Received: steps=0")
          for a in (km.APGDCE, km.APGDDLR, km.APGDT, km.FABT)),
        *((lambda a=a: a(LINF, targets=0), "`targets` must be a positive integer. Received: targets=0")
          for a in (km.APGDT, km.FABT)),
        *((lambda a=a: a(LINF, rho=1.5), r"`rho` must lie in \[0, 1\]. Received: rho=1.5")
          for a in (km.APGDCE, km.APGDDLR, km.APGDT)),
        (lambda: km.APGDCE(LINF, rho=-0.1), r"`rho` must lie in \[0, 1\]. Received: rho=-0.1"),
        (lambda: km.APGDCE(LINF, rho=np.nan), r"`rho` must lie in \[0, 1\]. Received: rho=nan"),
        *((lambda a=a: a(LINF, gradient_samples=0), "`gradient_samples` must be a positive integer. Received: .*=0")
          for a in (km.APGDCE, km.APGDDLR, km.APGDT)),
        (lambda: km.Square(LINF, 0), "`queries` must be a positive integer. Received: queries=0"),
        (lambda: km.Square(LINF, p_init=0), r"`p_init` must lie in \(0, 1\]. Received: p_init=0"),
        (lambda: km.Square(LINF, p_init=1.1), r"`p_init` must lie in \(0, 1\]. Received: p_init=1.1"),
        (lambda: km.Square(km.L2(0.1)).check_images((1, 4, 4, 1)), r"images of 5 x 5 or more. .* \(1, 4, 4, 1\)"),
        (lambda: km.APGDCE(0.1), "`threat` must be a ball such as .* Received: 0.1"),
        (lambda: km.AutoAttack(LINF, "standart"), "Received: 'standart'. Did you mean 'standard'?"),
        (lambda: km.AutoAttack(LINF, ("apgd-c",)), "Received: 'apgd-c'. Did you mean 'apgd-ce'?"),
        (lambda: km.AutoAttack(LINF, ()), r"`version` must name each attack once. Received: version=\(\)"),
        (lambda: km.AutoAttack(LINF, ("fab-t", "fab-t")), "must name each attack once. Received: .*'fab-t', 'fab-t'"),
    ],
)  # fmt: skip
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- linear networks, whose best adversarial examples are known ---


def nearest(threat, images, normal, value):
    """Returns the smallest offset at which a linear function is 0 inside [0, 1], else the corner, by float64 bisection.

    Each value moves against its normal at the optimal speed for the norm, until it reaches 0 or 1.
    """
    direction = -np.sign(value)[:, None] * np.sign(normal)
    speed = np.abs(normal) if isinstance(threat, km.L2) else np.ones_like(normal)
    slack = np.where(direction > 0, 1 - images, images)
    low, high = np.zeros(len(images)), np.full(len(images), 1e6)
    for _ in range(200):
        middle = (low + high) / 2
        reached = np.sum(np.abs(normal) * np.minimum(middle[:, None] * speed, slack), axis=1) >= np.abs(value)
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return direction * np.minimum(high[:, None] * speed, slack)


def linear_case(classes, interior):
    """Returns a network, 24 images of 12 values inside [0, 1] or also at its limits, and labels, two of them wrong."""
    random = np.random.default_rng(2)
    images = random.uniform(0.3, 0.7, size=(24, 12)) if interior else random.normal(0.5, 0.5, size=(24, 12))
    images = np.clip(images, 0, 1).astype("float32")
    weights, bias = random.normal(size=(12, classes)).astype("float32"), random.normal(size=classes) / 4
    labels = np.argmax(images @ weights + bias, axis=1)
    labels[:2] = (labels[:2] + 1) % classes
    return linear_network(weights, bias), images, labels


def exact_distance(threat, network, images, labels):
    """Returns the [batch] distance of the nearest misclassified image, infinite if there is none."""
    weights, bias = (np.asarray(each, "float64") for each in network.get_weights())
    distances = []
    for number, label in enumerate(labels):
        normals = np.delete(weights - weights[:, [label]], label, axis=1).T
        values = images[number] @ normals.T + np.delete(bias - bias[label], label)
        offsets = nearest(threat, np.tile(images[number].astype("float64"), (len(values), 1)), normals, values)
        left = values + np.sum(offsets * normals, axis=1)
        norms = np.linalg.norm(offsets, ord=2 if isinstance(threat, km.L2) else np.inf, axis=1)
        distances.append(0 if values.max() > 0 else np.where(np.abs(left) > 1e-6, np.inf, norms).min())
    return np.array(distances)


DUAL = {km.Linf: 1, km.L2: 2}  # the order of the dual norm
both = pytest.mark.parametrize("norm", [km.Linf, km.L2])


def dividing(distances):
    """Returns an epsilon that about half of the distances exceed, and that differs from all of them by at least 3%."""
    ordered = np.sort(distances)
    ratios = ordered[9:16] / ordered[8:15]
    at = 8 + np.argmax(ratios)
    assert ratios.max() > 1.07
    return np.sqrt(ordered[at] * ordered[at + 1])


@pytest.mark.parametrize("interior", [True, False], ids=["interior", "walls"])
@both
def test_fab_finds_the_nearest_adversarial_image(norm, interior):
    network, images, labels = linear_case(2, interior)
    expected = exact_distance(norm(0), network, images, labels)
    if interior:  # the distance is the margin over the dual norm
        normal = np.subtract(*network.get_weights()[0].T)
        margins = np.maximum(-losses.margin(labels, network(images)), 0)
        np.testing.assert_allclose(expected, margins / np.linalg.norm(normal, DUAL[norm]), atol=1e-6)
    found = norm(0).distance(km.FABT(norm(1.0 if norm is km.Linf else 3.0), 30)(network, images, labels), images)
    # FAB deliberately goes beyond the boundary: by half a per cent of the way in the end, a little more at the limits.
    assert np.all(found >= (1 - 1e-4) * expected) and np.all(found <= (1.006 if interior else 1.015) * expected)


TO_THE_END = {
    "apgd-ce": lambda threat: km.APGDCE(threat, 20),
    "apgd-dlr": lambda threat: km.APGDDLR(threat, 20),
    "apgd-t": lambda threat: km.APGDT(threat, 20),
    "fab-t": lambda threat: km.FABT(threat, 20),
    "autoattack": lambda threat: km.AutoAttack(threat, ("apgd-ce", "apgd-t", "fab-t")),
}


@pytest.mark.parametrize(
    "name, classes, interior",
    # With more than two classes, the cross-entropy and the ratio may rise in a different direction than the boundary.
    # Where [0, 1] cuts the L2 ball, clipped steps are shorter, and ascent does not reach the best corner; FAB does.
    [("apgd-ce", 2, True), ("apgd-dlr", 2, True), ("apgd-t", 4, True), ("fab-t", 4, False), ("autoattack", 4, False)],
)  # fmt: skip
@both
def test_breaks_what_can_be_broken(norm, name, classes, interior, request):
    if name == "autoattack":
        request.getfixturevalue("eagerly")
    network, images, labels = linear_case(classes, interior)
    distances = exact_distance(norm(0), network, images, labels)
    threat = norm(dividing(distances))
    found = TO_THE_END[name](threat)(network, images, labels, seed=1)
    robust = distances > threat.epsilon
    np.testing.assert_array_equal(np.argmax(network(found), axis=1) == labels, robust)
    if name.startswith("apgd-") and classes == 2:  # the robust ones come as near to the boundary as possible
        slope = np.subtract(*network.get_weights()[0].T)
        best = losses.margin(labels, network(images)) + threat.epsilon * np.linalg.norm(slope, DUAL[norm])
        np.testing.assert_allclose(losses.margin(labels, network(found))[robust], best[robust], atol=2e-3)


# --- Auto-PGD ---


def test_the_checkpoints_of_auto_pgd():
    # For 100 steps: a window of 22, then each 3 shorter, down to 6.
    after = {100: [22, 41, 57, 70, 80, 87, 93, 99], 40: [8, 15, 21, 26, 30, 33, 35, 37, 39], 4: [1, 2, 3, 4], 1: [1]}
    for steps, expected in after.items():
        windows = np.array(apgd._checkpoint_windows(steps))
        assert list(np.flatnonzero(windows) + 1) == expected
        np.testing.assert_array_equal(windows[windows > 0], np.diff([0, *expected]))


# Not on the grid of halved steps, where rounding would decide.
CENTRES = [[0.4257, 0.4526, 0.5542], [0.5148, 0.4269, 0.4882], [0.9137, 0.1149, 0.5127], [0.4293, 0.4661, 0.4541]]
CENTRES = np.array(CENTRES, "float32")
STEEPNESS, HEIGHTS = np.array([1.0, 3.0, 10.0], "float32"), np.array([-0.2, 0.012, 1.0, 0.05], "float32")


def hill(images, maths=np):
    """A [batch] quadratic with values below, around and above 0; images right of 0.5 are 'misclassified'."""
    return HEIGHTS - maths.sum(STEEPNESS * (images - CENTRES) ** 2, axis=1), images[:, 0] > 0.5


def official_auto_pgd(threat, images, start, steps, rho):
    """Runs the algorithm of the official code on `hill`, example by example, in NumPy."""

    def project(x, point):
        offset = point - x
        if isinstance(threat, km.Linf):
            return np.clip(x + np.clip(offset, -threat.epsilon, threat.epsilon), 0, 1)
        return np.clip(x + offset * min(1, threat.epsilon / max(np.linalg.norm(offset), 1e-12)), 0, 1)

    best_images, fooled, adversarial = start.copy(), np.zeros(len(images), bool), start.copy()
    for i, x in enumerate(images.astype("float64")):

        def value(point, i=i):
            return HEIGHTS[i] - np.sum(STEEPNESS * (point - CENTRES[i]) ** 2)

        def direction(point, i=i):
            gradient = -2 * STEEPNESS * (point - CENTRES[i])
            return np.sign(gradient) if isinstance(threat, km.Linf) else gradient / np.linalg.norm(gradient)

        point = old = best = start[i].astype("float64")
        best_value = best_at_checkpoint = value(point)
        fooled[i] = point[0] > 0.5
        history = {-1: 0.0}
        step_size, window, since, halved_at_checkpoint = 2 * threat.epsilon, max(int(0.22 * steps), 1), 0, True
        for step in range(steps):
            momentum, old = point - old, point
            share = 0.75 if step else 1.0
            moved = project(x, point + step_size * direction(point))
            point = project(x, point + share * (moved - point) + (1 - share) * momentum)
            if point[0] > 0.5:
                fooled[i], adversarial[i] = True, point
            history[step] = value(point)
            if history[step] > best_value:
                best, best_value = point, history[step]
            since += 1
            if since == window:
                increases = sum(history[step - k] > history[step - k - 1] for k in range(window))
                halved = increases <= rho * window or (not halved_at_checkpoint and best_at_checkpoint >= best_value)
                halved_at_checkpoint, best_at_checkpoint = halved, best_value
                if halved:
                    step_size, point = step_size / 2, best
                window, since = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)), 0
        best_images[i] = best
    return best_images, fooled, adversarial


@pytest.mark.parametrize("steps, rho", [(9, 0.75), (30, 0.75), (30, 0.4)])
@pytest.mark.parametrize("threat", [km.Linf(0.1), km.L2(0.15)], ids=repr)
def test_auto_pgd_is_the_official_algorithm(threat, steps, rho):
    images = np.full((4, 3), 0.5, "float32")
    images[2] = [0.95, 0.02, 0.5]  # its ball is cut by [0, 1]
    attack = km.APGDCE(threat, steps, rho=rho)
    found = apgd.ascend(attack, functools.partial(hill, maths=ops), tf.constant(images), None, tf.constant([1, 2]))
    start = threat.sample_boundary(tf.constant(images), [1, 2]).numpy()
    best, fooled, adversarial = official_auto_pgd(threat, images, start, steps, rho)
    np.testing.assert_allclose(found[0], best, atol=1e-5)
    np.testing.assert_array_equal(found[1], fooled)
    np.testing.assert_allclose(found[2], adversarial, atol=1e-5)


class Contrary(km.APGDCE):
    """Climbs away from misclassification."""

    def loss(self, labels, logits):
        return -losses.margin(labels, logits)


@every_threat
def test_auto_pgd_returns_a_misclassified_image_it_has_left(threat):
    slope, images, labels = [[1.0], [-1.0], [0.5]], tf.fill([20, 3], 0.5), tf.zeros([20], "int32")
    network = linear_network(np.hstack([np.zeros_like(slope), slope]), [0, -0.25])
    found = Contrary(threat, 5).perturb(network, images, labels, tf.constant([1, 2]))
    fooled_at_start = np.asarray(losses.margin(labels, network(threat.sample_boundary(images, [1, 2])))) > 0
    assert 5 < np.sum(fooled_at_start) < 15
    np.testing.assert_array_equal(np.asarray(losses.margin(labels, network(found))) > 0, fooled_at_start)


@both
def test_auto_pgd_takes_an_epsilon_for_each_example(norm):
    epsilon, slope = np.array([0, 0.01, 0.1, 0.3], "float32"), np.array([1, -2, 0.5], "float32")
    attack = km.APGDCE(norm(0.2), 9)
    found = attack.maximise(lambda images: ops.sum(slope * images, axis=1), tf.fill([4, 3], 0.5), epsilon, seed=1)
    uphill = np.sign(slope) if norm is km.Linf else slope / np.linalg.norm(slope)
    np.testing.assert_allclose(found, 0.5 + epsilon[:, None] * uphill, atol=1e-3)


def test_a_gradient_is_the_mean_of_its_samples():
    slopes = [1.0, 2.0, 6.0]
    calls = []

    def objective(images):
        calls.append(slopes[len(calls) % 3])
        return ops.sum(calls[-1] * images, axis=1), tf.zeros([2], "bool")

    images = tf.fill([2, 4], 0.5)
    gradient, *_ = gradients.gradient_of(objective, images, samples=3)
    np.testing.assert_allclose(gradient, [[3.0] * 4] * 2)
    calls.clear()
    attack = km.APGDCE(km.Linf(0.1), 4, gradient_samples=3)
    apgd.ascend(attack, objective, images, None, tf.constant([1, 2]))
    assert len(calls) == attack.gradients == (4 + 1) * 3


@both
def test_several_samples_of_one_gradient_are_that_gradient(norm, eagerly):
    network, images, labels = linear_case(2, True)
    one, three = (km.APGDCE(norm(0.05), 5, gradient_samples=n)(network, images, labels, seed=1) for n in (1, 3))
    np.testing.assert_allclose(three, one, atol=ROUNDING)


# --- FAB ---


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_the_nearest_point_of_a_hyperplane_in_the_box(threat):
    random = np.random.default_rng(0)
    images = np.clip(random.normal(0.5, 0.4, size=(60, 9)), 0, 1).astype("float32")
    normal = random.normal(size=(60, 9)).astype("float32")
    normal[:20, :4], normal[20:24] = 0, 0  # values without influence; no hyperplane
    value = random.normal(size=60).astype("float32")
    value[24:28], value[28:32], value[20] = 0, 100, 0  # already on it; beyond the corner
    images[32] = normal[32] > 0  # in the corner furthest from the hyperplane
    value[32] = 1
    normal[33:40] *= 1e-4
    value[33:40] *= 1e-4
    offset = fab.offset_to_hyperplane(threat, tf.constant(images), tf.constant(normal), tf.constant(value)).numpy()
    expected = nearest(threat, images.astype("float64"), normal.astype("float64"), value.astype("float64"))
    np.testing.assert_allclose(offset, expected, atol=ROUNDING)
    left = np.abs(value + np.sum(normal * offset, axis=1)) < ROUNDING * (1 + np.abs(value))
    assert np.sum(left) > 30 and np.sum(left[28:32]) == 0
    moved = images + offset
    assert np.min(moved) >= -1e-6 and np.max(moved) <= 1 + 1e-6


# --- Square ---


class Rounding(keras.layers.Layer):
    """Rounds to sixteenths: its gradient is 0."""

    def call(self, images):
        return tf.round(images * 16) / 16


def test_square_needs_no_gradient(eagerly):
    weights = np.random.default_rng(1).normal(size=(25, 2))
    inner = linear_network(weights, [0, 0], X.shape[1:])
    network = keras.Sequential([keras.Input(X.shape[1:]), Rounding(), inner])
    labels = np.argmax(network(X), axis=1)
    threat = km.Linf(0.4)
    np.testing.assert_array_equal(km.FGSM(threat)(network, X, labels), X)
    found = km.Square(threat, 60)(network, X, labels, seed=1)
    assert_keeps_the_rules(found, X, threat)
    assert np.mean(np.argmax(network(found), axis=1) == labels) < 0.3


@every_threat
def test_square_never_loses_what_it_has_gained(threat, network, labels):
    def logits(images):
        return network(images, training=False)

    candidates, margins = tf.constant(X), []
    for number in range(3):
        candidates = km.Square(threat, 20).perturb(
            logits, tf.constant(X), labels, tf.constant([number, 1]), tf.constant(number), candidates
        )
        margins.append(losses.margin(labels, logits(candidates)).numpy())
        assert_keeps_the_rules(candidates, X, threat)
    assert np.all(np.diff(margins, axis=0) >= 0) and np.any(np.diff(margins, axis=0) > 0)


@every_threat
def test_square_does_not_change_examples_that_it_has_fooled(threat, network, labels, monkeypatch):
    monkeypatch.setattr(square, "ROUND", 8)

    def after(queries, number, candidates):
        arguments = (tf.constant(X), labels, tf.constant([number, 1]), tf.constant(number), candidates)
        found = km.Square(threat, queries).perturb(logits, *arguments)
        return found, losses.margin(labels, logits(found)).numpy()

    logits = functools.partial(network, training=False)
    (_, some), (found, more) = after(4, 0, tf.constant(X)), after(8, 0, tf.constant(X))
    fooled = some > 0
    assert np.any(fooled)
    np.testing.assert_array_equal(more[fooled], some[fooled])
    # A round only gets examples that are not fooled, unless the fast view rounds differently: it must change these.
    for number in range(20, 22):  # with small squares, which make progress on almost every example
        found, further = after(5000, number, found)
    assert np.all(further[more > 0] >= more[more > 0]) and np.any(further[more > 0] > more[more > 0])


GREY = tf.fill([3, 10, 10, 2], 0.5)


def test_linf_squares():
    start, change = square._linf(0.1, GREY, tf.constant([1, 2]))
    stripes = start().numpy()
    np.testing.assert_allclose(np.abs(stripes - 0.5), 0.1, atol=1e-6)
    np.testing.assert_array_equal(stripes, np.repeat(stripes[:, :1], 10, axis=1))  # vertical
    assert len(np.unique(stripes[:, 0], axis=0)) == 3  # different ones for each example
    for area, side in [(0.8, 9), (0.4, 6), (0.05, 2), (0.001, 1)]:  # round(sqrt(area * 100)), at least 1
        squares = change(GREY, area, side).numpy() - 0.5  # from the middle nothing is clipped
        np.testing.assert_allclose(np.unique(np.abs(squares).round(6)), [0, 0.1], atol=1e-6)
        rows, columns = np.nonzero(squares[0, :, :, 0])
        assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == side and len(rows) == side**2
        np.testing.assert_array_equal(squares, np.repeat(squares[:1], 3, axis=0))  # the same for all examples
        for channel in range(2):
            assert len(np.unique(squares[0, rows, columns, channel])) == 1
        from_below = change(GREY - 0.1, area, side) - 0.5  # a square crosses the whole ball
        np.testing.assert_allclose(np.abs(from_below), 0.1, atol=1e-6)


def test_l2_squares_have_full_length():
    threat = km.L2(0.7)
    start, change = square._l2(threat.epsilon, GREY, tf.constant([1, 2]))
    candidates = start()
    np.testing.assert_allclose(threat.distance(candidates, GREY), threat.epsilon, rtol=1e-5)
    assert np.all(np.abs(candidates - 0.5) > 1e-4)  # tiles cover the image
    for number, area in enumerate([0.8, 0.2, 0.05, 0.001]):
        changed = change(candidates, area, number)
        np.testing.assert_allclose(threat.distance(changed, GREY), threat.epsilon, rtol=1e-5)
        assert np.any(np.abs(changed - candidates) > 1e-3)
        candidates = changed


def test_the_squares_shrink():
    after = [0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 6000, 6001, 8000, 8001, 9999]
    area = km.Square(LINF, 10000)._area
    np.testing.assert_allclose([area(query) for query in after], [0.8 / 2**k for k in np.arange(20) // 2], rtol=1e-6)


def test_queries_are_numbered_from_round_to_round(monkeypatch, eagerly):
    seen = []
    monkeypatch.setattr(km.Square, "_area", lambda attack, query: seen.append(int(query)) or 0.1)
    network, images, labels = linear(2)
    km.Square(km.Linf(1e-4), 9)(network, images, labels)  # fools no example; 4, 4 and 1 queries
    assert seen == list(range(9))


def official_eta(size):
    """Returns the pattern of the official code: rectangles that grow around the middle of each half."""
    halves = []
    for height in (size // 2, size - size // 2):
        delta = np.zeros((height, size))
        for grown in range(max(height // 2, size // 2) + 1):
            top, left = height // 2 - grown, size // 2 - grown
            delta[max(top, 0) : top + 2 * grown + 1, max(left, 0) : left + 2 * grown + 1] += 1 / (grown + 1) ** 2
        halves.append(delta / np.sqrt(np.sum(delta**2)))
    both = np.concatenate([halves[0], -halves[1]])
    return both / np.sqrt(np.sum(both**2))


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_the_bumps_are_the_official_pattern(size):
    expected, seen = official_eta(size), set()
    for seed in range(8):
        bumps = square._bumps(9, 8, 1, 0, size, tf.constant([seed, 1])).numpy()[0, :, :, 0]
        np.testing.assert_allclose(np.sqrt(np.sum(bumps**2)), 1, rtol=1e-6)
        window = bumps[1 : 1 + size, :size]
        turned = bool(np.abs(window - expected.T).max() < np.abs(window - expected).max())
        np.testing.assert_allclose(window, expected.T if turned else expected, atol=1e-6)
        seen.add(turned)
    assert seen == {True, False}


# --- attacks in sequence ---

# One value, three classes: below 0.4 class 0, up to 0.6 class 1, above class 2.
STEPS = ([[0.0, 10.0, 20.0]], [0.0, -4.0, -10.0])
FIVE, ONES = tf.constant([[0.5], [0.52], [0.45], [0.55], [0.1]]), tf.ones([5], "int32")  # the last is misclassified


class Recording:
    """Returns fixed images, and records which examples it was given in each round."""

    reuses_candidates = False

    def __init__(self, *answers, rounds=1):
        self.answers, self.shown, self.seeds = answers, [], []
        self.rounds = lambda classes: rounds

    def in_round(self, network, images, labels, seeds, number, candidates):
        which = [FIVE.numpy().tolist().index(image) for image in images.numpy().tolist()]
        self.shown.append(which)
        self.seeds.append(np.asarray(seeds).tolist())
        return tf.constant([[self.answers[each]] for each in which])


class Compound:
    def __init__(self, **stages):
        self.stages = stages


SEEDS = np.stack([np.full(5, 7), np.arange(5)], axis=1)


def run(**stages):
    return survivors.attack_survivors(linear_network(*STEPS), Compound(**stages), FIVE, ONES, SEEDS)


def test_later_attacks_get_the_survivors_of_earlier_ones():
    first, second, third = Recording(0.7, 0.55, 0.48, 0.1, 0), Recording(0, 0.53, 0.1, 0, 0), Recording(*[0.9] * 5)
    found = run(first=first, second=second)
    assert first.shown == [[0, 1, 2, 3]] and second.shown == [[1, 2]]
    # 0.55 is nearer to a boundary than 0.53.
    np.testing.assert_allclose(found, [[0.7], [0.55], [0.1], [0.1], [0.1]])
    run(first=third, second=second)
    assert len(second.shown) == 1  # no example was left


def test_each_stage_has_other_seeds_of_the_same_examples():
    attack = Recording(0.5, 0.5, 0.5, 0.5, 0)
    run(first=attack, second=attack)
    assert [[number for _, number in seeds] for seeds in attack.seeds] == [[0, 1, 2, 3]] * 2
    assert attack.seeds[0][0] != attack.seeds[1][0]


def test_each_round_of_an_attack_has_other_seeds(monkeypatch, eagerly):
    seeds = []

    def recording(attack, logits, images, labels, seed, loss):
        seeds.append(np.asarray(seed))
        return images

    monkeypatch.setattr(apgd, "adversarial", recording)
    network, images, labels = linear(3)
    km.APGDT(LINF, 1)(network, images, labels, seed=1)
    first, second = seeds
    assert np.all(first[:, 0] != second[:, 0]) and np.all(first[:, 1] == second[:, 1])


class Creeping(Recording):
    """Two rounds, the second of which starts where the first ended."""

    reuses_candidates = True

    def in_round(self, network, images, labels, seeds, number, candidates):
        return candidates + 0.06


def test_a_round_starts_where_the_last_one_ended():
    # 0.55 is misclassified at 0.61 and not attacked again.
    np.testing.assert_allclose(run(creeping=Creeping(rounds=2)), [[0.62], [0.64], [0.57], [0.61], [0.1]], atol=1e-6)


def test_padded_batches_give_the_same_result(monkeypatch):
    network, images, labels = linear_case(4, True)
    threat = km.Linf(dividing(exact_distance(km.Linf(0), network, images, labels)))
    attack = km.FABT(threat, 10)
    expected = attack(network, images, labels)
    monkeypatch.setattr(survivors, "uses_xla", lambda network: True)  # only in this module: nothing is compiled
    np.testing.assert_allclose(attack(network, images, labels), expected, atol=ROUNDING)
    first, second = Recording(0.7, 0.5, 0.5, 0.5, 0), Recording(0.9, 0.9, 0.1, 0.1, 0)
    found = run(first=first, second=second)
    assert first.shown == [[0, 1, 2, 3, 0]] and second.shown == [[1, 2, 3, 1, 2]]
    np.testing.assert_allclose(found, [[0.7], [0.9], [0.1], [0.1], [0.1]])


def test_a_tie_does_not_hide_a_later_success():
    network = linear_network(np.eye(3), np.zeros(3))
    images, labels = tf.constant([[0.2, 0.8, 0.1]]), tf.constant([1], "int32")

    class Moving(Recording):
        def in_round(self, network, images, labels, seeds, number, candidates):
            return tf.constant([self.answers])

    stages = Compound(still_right=Moving(0.2, 0.5, 0.5), wrong=Moving(0.5, 0.5, 0.1))  # both of margin 0
    found = survivors.attack_survivors(network, stages, images, labels, SEEDS[:1])
    np.testing.assert_allclose(found, [[0.5, 0.5, 0.1]])


# --- AutoAttack ---


def test_the_versions_of_auto_attack(monkeypatch):
    monkeypatch.undo()  # use the real stages
    threat = km.Linf(0.1)
    standard, random = km.AutoAttack(threat), km.AutoAttack(threat, version="rand")
    assert tuple(standard.stages) == ("apgd-ce", "apgd-t", "fab-t", "square")
    expected = (km.APGDCE(threat, 100), km.APGDT(threat, 100, targets=9), km.FABT(threat, 100), km.Square(threat, 5000))
    assert standard.attacks == expected
    assert random.stages == {
        "apgd-ce": km.APGDCE(threat, gradient_samples=20), "apgd-dlr": km.APGDDLR(threat, gradient_samples=20)
    }  # fmt: skip
    named = km.AutoAttack(threat, ["square", "apgd-dlr"])
    assert named.version == ("square", "apgd-dlr") and named.attacks == (km.Square(threat), km.APGDDLR(threat))
    assert len({standard, random, named, km.AutoAttack(threat, "standard")}) == 3


def test_auto_attack_is_its_stages_on_the_survivors(network, labels, eagerly):
    attack, seed = km.AutoAttack(km.Linf(0.08), ("fab-t", "apgd-ce")), tf.constant([3, 4])
    first, second = attack.attacks

    def margins(images, of):
        return losses.margin(labels[of], network(images)).numpy()

    expected = X.copy()
    correct = np.flatnonzero(margins(X, np.arange(8)) < 0)
    expected[correct] = first(network, X[correct], labels[correct])
    left = correct[margins(expected[correct], correct) < 0]
    seeds = randomness.fold_in(randomness.example_seeds(seed, tf.constant(left, "int32")), 1)  # the second stage's
    found = second.in_round(network, tf.constant(X[left]), tf.constant(labels[left], "int32"), seeds).numpy()
    broken = left[margins(found, left) > 0]
    better = margins(found, left) > margins(expected[left], left)
    expected[left[better]] = found[better]
    assert 6 == len(correct) > len(left) > len(broken) > 0  # each stage fools some examples
    np.testing.assert_allclose(attack(network, X, labels, seed=seed), expected, atol=ROUNDING)
