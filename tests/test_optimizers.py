"""SGD against PyTorch's update in NumPy and against Keras, exclusions from weight decay, and warm-up."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import images_and_labels
from keras.optimizers import schedules

import keras_mart as km
from keras_mart.optimizers import SGD, Warmup

RATES = (0.1, 0.1, 0.01, 0.01)  # a step schedule: PyTorch's and Keras's momentum differ from the third step on
WEIGHT_DECAY = 0.3


def pytorch_sgd(weights, gradients, rates, momentum, nesterov, weight_decay):
    """torch.optim.SGD for one parameter, float64."""
    velocity = np.zeros_like(weights)
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient = gradient + weight_decay * weights
        velocity = momentum * velocity + gradient
        weights = weights - rate * (gradient + momentum * velocity if nesterov else velocity)
    return weights


def run(optimizer, start, gradients, rates=RATES):
    variable = keras.Variable(start)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([tf.constant(gradient, "float32")], [variable])
    return variable.numpy()


@pytest.fixture
def problem():
    random = np.random.default_rng(0)
    return random.normal(size=(3, 2)), random.normal(size=(len(RATES), 3, 2))


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_follows_pytorch_when_the_learning_rate_changes(problem, momentum, nesterov):
    start, gradients = problem
    optimizer = SGD(RATES[0], momentum=momentum, nesterov=nesterov, weight_decay=WEIGHT_DECAY)
    expected = pytorch_sgd(start, gradients, RATES, momentum, nesterov, WEIGHT_DECAY)
    np.testing.assert_allclose(run(optimizer, start, gradients), expected, atol=1e-6)


def test_worked_by_hand():
    # w = 1, gradient 1, decay 0.5, momentum 0.5. Step 1, rate 0.1: g = 1.5, v = 1.5, w = 0.85.
    # Step 2, rate 0.01: g = 1.425, v = 0.75 + 1.425 = 2.175, w = 0.85 - 0.02175 = 0.82825.
    optimizer = SGD(0.1, momentum=0.5, weight_decay=0.5)
    np.testing.assert_allclose(run(optimizer, [1.0], [[1.0], [1.0]], rates=(0.1, 0.01)), [0.82825], atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, None])
@pytest.mark.parametrize("nesterov", [False, True])
def test_equals_keras_at_a_constant_rate_without_decay(problem, nesterov, weight_decay):
    start, gradients = problem
    ours = run(SGD(0.1, 0.9, nesterov, weight_decay), start, gradients, rates=[0.1] * 4)
    theirs = run(keras.optimizers.SGD(0.1, 0.9, nesterov), start, gradients, rates=[0.1] * 4)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_decay_reaches_batch_normalisation_and_biases():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
    for variable in network.trainable_variables:
        variable.assign(tf.ones_like(variable.value))
    optimizer = SGD(0.1, momentum=0.9, weight_decay=0.5)
    zeros = [tf.zeros_like(variable.value) for variable in network.trainable_variables]
    optimizer.apply(zeros, network.trainable_variables)
    assert {variable.path.split("/")[-1] for variable in network.trainable_variables} == {
        "kernel",
        "bias",
        "gamma",
        "beta",
    }
    for variable in network.trainable_variables:
        np.testing.assert_allclose(variable.numpy(), 0.95, atol=1e-6, err_msg=variable.path)


def test_excluded_variables_do_not_decay():
    variables = [keras.Variable([1.0], name=name) for name in ("kernel", "bias", "scale", "offset")]
    optimizer = SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    optimizer.exclude_from_weight_decay(var_list=[variables[2]], var_names=["^bia", "set"])  # replaces it
    optimizer.apply([tf.zeros(1)] * 4, variables)
    np.testing.assert_allclose([each.numpy()[0] for each in variables], [0.95, 1.0, 1.0, 1.0], atol=1e-6)
    with pytest.raises(ValueError, match=r"must be called before the optimizer is built\. Received: an optimizer"):
        optimizer.exclude_from_weight_decay(var_names=["kernel"])


def test_clipping_sees_the_gradient_before_decay():
    # The gradient 10 is clipped to 1, then 0.5 * 4 is added: w = 4 - 0.1 * (1 + 2).
    optimizer = SGD(0.1, weight_decay=0.5, clipvalue=1.0)
    np.testing.assert_allclose(run(optimizer, [4.0], [[10.0]], rates=[0.1]), [3.7], atol=1e-6)


@pytest.mark.parametrize("momentum, weight_decay", [(0.0, 0.0), (0.9, 0.0), (0.9, 0.5)])
def test_sparse_gradients_equal_dense_ones(momentum, weight_decay):
    sparse, dense = keras.Variable(np.ones((3, 2))), keras.Variable(np.ones((3, 2)))
    slices = tf.IndexedSlices(tf.constant([[1.0, 2.0]]), tf.constant([1]), tf.constant([3, 2]))
    optimizers = [SGD(0.1, momentum=momentum, weight_decay=weight_decay) for _ in range(2)]
    for _ in range(2):
        optimizers[0].apply([slices], [sparse])
        optimizers[1].apply([tf.convert_to_tensor(slices)], [dense])
    np.testing.assert_allclose(sparse.numpy(), dense.numpy(), atol=1e-6)


def test_loss_scaling_leaves_the_decay_alone():
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(0.1, weight_decay=0.5), initial_scale=1024.0)
    np.testing.assert_allclose(run(optimizer, [1.0], [[1024.0]], rates=[0.1]), [0.85], atol=1e-6)


def test_config_round_trip():
    optimizer = SGD(0.1, momentum=0.9, nesterov=True, weight_decay=3.5e-3, clipnorm=1.0)
    serialised = keras.optimizers.serialize(optimizer)
    assert serialised["registered_name"] == "keras_mart>SGD"
    again = keras.optimizers.deserialize(serialised)
    assert type(again) is SGD
    assert again.get_config() == optimizer.get_config()
    assert (again.momentum, again.nesterov, again.weight_decay, again.clipnorm) == (0.9, True, 3.5e-3, 1.0)


def test_a_saved_model_resumes_where_it_stopped(tmp_path):
    random = np.random.default_rng(0)
    images, targets = random.normal(size=(8, 3)), random.normal(size=(8, 1))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(SGD(0.1, momentum=0.9, weight_decay=0.1), loss="mse")
    model.fit(images, targets, batch_size=8, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, again):
        each.fit(images, targets, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for ours, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("weight_decay", [-1e-4, float("nan")])
def test_refuses_a_negative_weight_decay(weight_decay):
    with pytest.raises(ValueError, match=r"`weight_decay` must not be negative\. Received: weight_decay="):
        SGD(weight_decay=weight_decay)


# Warm-up


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        (0.4, 4, [0, 0.1, 0.2, 0.3, 0.4, 0.4]),
        (0.4, 0, [0.4] * 6),
        (schedules.PiecewiseConstantDecay([1], [0.4, 0.3]), 2, [0, 0.2, 0.4, 0.4, 0.3, 0.3]),
        (schedules.PolynomialDecay(0.4, 4, end_learning_rate=0.0), 2, [0, 0.2, 0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_the_rate_rises_linearly_to_the_first_of_the_schedule(schedule, steps, expected):
    rate = Warmup(schedule, steps)
    np.testing.assert_allclose([float(rate(step)) for step in range(6)], expected, atol=1e-7)


def test_warm_up_is_that_of_kerass_cosine_decay():
    own = schedules.CosineDecay(0.0, 7, warmup_target=0.3, warmup_steps=5)
    rate = Warmup(schedules.CosineDecay(0.3, 7), 5)
    for step in range(15):
        assert float(rate(step)) == pytest.approx(float(own(step)), abs=1e-8)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("schedule", [0.1, schedules.CosineDecay(0.1, 3)], ids=["constant", "cosine"])
def test_an_optimizer_is_saved_with_its_warm_up_and_follows_it(schedule, scaled):
    optimizer = SGD(Warmup(schedule, 2))
    if scaled:  # as Keras does in mixed_float16
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    variable = keras.Variable([0.0])
    for expected in (0.0, -0.05, -0.15):  # rates 0, 0.05, 0.1
        optimizer.apply([tf.constant([8.0 if scaled else 1.0])], [variable])
        np.testing.assert_allclose(variable.numpy(), [expected], atol=1e-7)
    if scaled:  # an overflow does not count as a step
        optimizer.apply([tf.constant([np.inf])], [variable])
        assert int(optimizer.iterations) == 3


@pytest.mark.parametrize(
    ("schedule", "steps", "message"),
    [
        (0.1, -1, r"`steps` must be an integer of at least 0\. Received: steps=-1"),
        (0.1, 1.5, r"`steps` must be an integer of at least 0\. Received: steps=1.5"),
        ("cosine", 1, r"`schedule` must be a LearningRateSchedule or a float\. Received: schedule='cosine'"),
    ],
)
def test_refuses_invalid_warm_ups(schedule, steps, message):
    with pytest.raises(ValueError, match=message):
        Warmup(schedule, steps)


# Exclusions by `compile(decay_all=False)`


def after_one_step(kind, decay, path, precision, strategy):
    """Returns names and values of the weights of a saved and loaded model after one step."""
    images, labels = images_and_labels()
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(0)
        features = [keras.Input(images.shape[1:]), keras.layers.Flatten(), keras.layers.BatchNormalization()]
        model = km.Standard(keras.Sequential([*features, keras.layers.Dense(3, dtype=precision)]), seed=0)
        for variable in model.trainable_variables:
            variable.assign_add(tf.ones_like(variable.value))  # a bias of 0 would not decay
        model.compile(kind(0.1, weight_decay=decay), decay_all=False, run_eagerly=strategy is None)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "mixed_float16")
        model.save(path / "model.keras")
        model = keras.saving.load_model(path / "model.keras")
    model.fit(images, labels, batch_size=8, verbose=0)
    return [(variable.name, variable.numpy()) for variable in model.network.trainable_variables]


@pytest.mark.parametrize(
    ("kind", "precision", "replicas"),
    [(SGD, "float32", 2), (keras.optimizers.AdamW, "float32", 1), (keras.optimizers.Lion, "mixed_float16", 1)],
)
def test_biases_and_batch_normalisation_do_not_decay(kind, precision, replicas, request, tmp_path):
    strategy = request.getfixturevalue("two_replicas") if replicas == 2 else None
    decayed, kept = (after_one_step(kind, decay, tmp_path, precision, strategy) for decay in (0.5, 0.0))
    same = {name: np.array_equal(one, other) for (name, one), (_, other) in zip(decayed, kept, strict=True)}
    assert same == {"kernel": False, "bias": True, "gamma": True, "beta": True}


def test_an_optimizer_that_is_built_cannot_leave_weights_out():
    model = km.Standard(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))
    optimizer = SGD(0.1, weight_decay=0.1)
    model.compile(optimizer)
    with pytest.raises(ValueError, match=r"`decay_all=False` needs an optimizer that is not built yet"):
        model.compile(optimizer, decay_all=False)
