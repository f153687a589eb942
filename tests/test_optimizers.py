"""SGD against PyTorch's update written out in NumPy, and what Keras does with it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mart.optimizers import SGD

RATES = (0.1, 0.1, 0.01, 0.01)  # a step schedule: PyTorch's and Keras's momentum part at the third step
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
    kernel, bias = keras.Variable([1.0], name="kernel"), keras.Variable([1.0], name="bias")
    optimizer = SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply([tf.zeros(1), tf.zeros(1)], [kernel, bias])
    np.testing.assert_allclose([kernel.numpy(), bias.numpy()], [[0.95], [1.0]], atol=1e-6)


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


def test_a_saved_model_goes_on_where_it_stopped(tmp_path):
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
