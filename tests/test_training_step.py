"""One full training step of MART and TRADES against an independent float64 computation in NumPy.

The network is convolution, BatchNormalization, ReLU, dense: small enough to differentiate by hand, and with everything
that the step involves: the attack in evaluation mode, two forward passes in training mode, BatchNormalization's
statistics, momentum and coupled weight decay. All derivatives below are written out, without TensorFlow or the package.
"""

import keras
import numpy as np
import pytest
from agreement import replace_random_numbers

import keras_mart as km

EPSILON, STEP, STEPS, BETA = 0.1, 0.04, 3, 5.0
RATE, MOMENTUM, DECAY = 0.1, 0.9, 0.01
BN_MOMENTUM, BN_EPSILON = 0.9, 1e-3
OFFSET = 1.0001
BATCH, SIDE, FILTERS, CLASSES = 6, 5, 3, 4


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def patches(x):
    """Returns the [batch, 3, 3, 9] 3x3 windows of [batch, 5, 5, 1] images."""
    rows = [[x[:, i : i + 3, j : j + 3, 0].reshape(len(x), 9) for j in range(SIDE - 2)] for i in range(SIDE - 2)]
    return np.stack([np.stack(row, 1) for row in rows], 1)


class Reference:
    """The network with its parameters, in float64."""

    def __init__(self, weights):
        self.kernel, self.gamma, self.beta, self.mean, self.variance, self.dense, self.bias = (
            np.asarray(w, "float64") for w in weights
        )
        self.kernel = self.kernel.reshape(9, FILTERS)

    def parameters(self):
        return [self.kernel, self.gamma, self.beta, self.dense, self.bias]

    def forward(self, x, training):
        columns = patches(x)
        convolved = columns @ self.kernel
        mean, variance = self.mean, self.variance
        if training:
            mean, variance = convolved.mean((0, 1, 2)), convolved.var((0, 1, 2))
            self.mean = BN_MOMENTUM * self.mean + (1 - BN_MOMENTUM) * mean
            self.variance = BN_MOMENTUM * self.variance + (1 - BN_MOMENTUM) * variance
        deviation = np.sqrt(variance + BN_EPSILON)
        normal = (convolved - mean) / deviation
        scaled = self.gamma * normal + self.beta
        hidden = np.maximum(scaled, 0).reshape(len(x), -1)
        return hidden @ self.dense + self.bias, (columns, normal, deviation, scaled, hidden, training)

    def backward(self, slope, cache):
        """Returns the gradients of parameters and images, from the [batch, classes] gradients of the logits."""
        columns, normal, deviation, scaled, hidden, training = cache
        at_scaled = (slope @ self.dense.T).reshape(scaled.shape) * (scaled > 0)
        at_normal = at_scaled * self.gamma
        if training:
            centred = at_normal - at_normal.mean((0, 1, 2)) - normal * (at_normal * normal).mean((0, 1, 2))
        else:
            centred = at_normal
        at_convolved = centred / deviation
        at_columns = at_convolved @ self.kernel.T
        at_images = np.zeros((len(hidden), SIDE, SIDE, 1))
        for i in range(SIDE - 2):
            for j in range(SIDE - 2):
                at_images[:, i : i + 3, j : j + 3, 0] += at_columns[:, i, j].reshape(-1, 3, 3)
        kernel = np.einsum("bijp,bijf->pf", columns, at_convolved)
        axes = (0, 1, 2)
        parameters = [kernel, (at_scaled * normal).sum(axes), at_scaled.sum(axes), hidden.T @ slope, slope.sum(0)]
        return parameters, at_images


def divergence_slopes(p, q):
    """Returns KL(p, q) and its gradients with respect to the logits of p and of q."""
    divergence = (p * np.log(p / q)).sum(-1, keepdims=True)
    return divergence, p * (np.log(p / q) - divergence), q - p


def mart_slopes(y, p, q):
    """Returns MART's [batch] loss and its gradients with respect to both logits."""
    rows = np.arange(len(y))
    one_hot = np.eye(CLASSES)[y]
    other = np.where(one_hot > 0, -1, q).argmax(-1)
    q_other, p_true = q[rows, other][:, None], p[rows, y][:, None]
    divergence, at_p, at_q = divergence_slopes(p, q)
    boosted = -np.log(q[rows, y]) - np.log(OFFSET - q_other[:, 0])
    boosted_slope = (q - one_hot) + q_other * (np.eye(CLASSES)[other] - q) / (OFFSET - q_other)
    loss = boosted + BETA * (divergence * (1 - p_true))[:, 0]
    natural = BETA * (at_p * (1 - p_true) - divergence * p_true * (one_hot - p))
    return loss, natural, boosted_slope + BETA * (1 - p_true) * at_q


def trades_slopes(y, p, q):
    """Returns TRADES's [batch] loss and its gradients with respect to both logits."""
    divergence, at_p, at_q = divergence_slopes(p, q)
    loss = -np.log(p[np.arange(len(y)), y]) + BETA * divergence[:, 0]
    return loss, p - np.eye(CLASSES)[y] + BETA * at_p, BETA * at_q


def attack_slope(method, y, p, q):
    return q - np.eye(CLASSES)[y] if method == "mart" else q - p


def fixed_start(x):
    """Replaces the random start, inside the ball."""
    return np.clip(x + 0.05 * np.cos(50 * x), 0, 1)


def reference_steps(method, weights, x, y, steps):
    """Returns losses, the first adversarial images, and the reference network after some steps."""
    network = Reference(weights)
    velocities = [np.zeros_like(parameter) for parameter in network.parameters()]
    losses, first = [], None
    for _ in range(steps):
        p = softmax(network.forward(x, False)[0])
        z = fixed_start(x)
        for _ in range(STEPS):
            logits, cache = network.forward(z, False)
            z = z + STEP * np.sign(network.backward(attack_slope(method, y, p, softmax(logits)), cache)[1])
            z = np.clip(np.clip(z, x - EPSILON, x + EPSILON), 0, 1)
        first = z if first is None else first
        natural, natural_cache = network.forward(x, True)
        adversarial, adversarial_cache = network.forward(z, True)
        slopes = (mart_slopes if method == "mart" else trades_slopes)(y, softmax(natural), softmax(adversarial))
        losses.append(slopes[0].mean())
        gradients = [
            one + two
            for one, two in zip(
                network.backward(slopes[1] / BATCH, natural_cache)[0],
                network.backward(slopes[2] / BATCH, adversarial_cache)[0],
                strict=True,
            )
        ]
        for parameter, velocity, gradient in zip(network.parameters(), velocities, gradients, strict=True):
            velocity *= MOMENTUM
            velocity += gradient + DECAY * parameter
            parameter -= RATE * velocity
    return losses, first, network


def build_network():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 1)),
            keras.layers.Conv2D(FILTERS, 3, use_bias=False),
            keras.layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=BN_EPSILON),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES),
        ]
    )


def relative_error(got, expected):
    got, expected = np.asarray(got, "float64").ravel(), np.asarray(expected).ravel()
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("method", [km.MART, km.TRADES])
@pytest.mark.parametrize("steps", [1, 3])
def test_steps_agree_with_float64(method, steps, monkeypatch, record_property):
    random = np.random.default_rng(0)
    x, y = random.uniform(size=(BATCH, SIDE, SIDE, 1)), random.integers(CLASSES, size=BATCH)
    replace_random_numbers(monkeypatch.setattr)
    network = build_network()
    losses, attacked, expected = reference_steps(method.__name__.lower(), network.get_weights(), x, y, steps)

    model = method(network, km.PGD(km.Linf(EPSILON), STEPS, step_size=STEP), beta=BETA, seed=0)
    images, seed = keras.ops.cast(x, "float32"), keras.ops.convert_to_tensor([0, 0])
    errors = {"attack": relative_error(model.perturb(images, keras.ops.convert_to_tensor(y), seed)[0], attacked)}
    model.compile(km.optimizers.SGD(RATE, momentum=MOMENTUM, weight_decay=DECAY))
    history = model.fit(x, y, batch_size=BATCH, epochs=steps, verbose=0, shuffle=False).history

    conv, norm, dense = network.layers[0], network.layers[1], network.layers[4]
    errors["loss"] = relative_error(history["loss"], losses)
    errors["kernel"] = relative_error(conv.kernel, expected.kernel)
    errors["gamma"] = relative_error(norm.gamma, expected.gamma)
    errors["beta"] = relative_error(norm.beta, expected.beta)
    errors["mean"] = relative_error(norm.moving_mean, expected.mean)
    errors["variance"] = relative_error(norm.moving_variance, expected.variance)
    errors["dense"] = relative_error(dense.kernel, expected.dense)
    errors["bias"] = relative_error(dense.bias, expected.bias)
    print(method.__name__, steps, {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < 5e-6, errors
