"""When changed attributes of a model take effect: numbers at once, objects at the next `fit` or `evaluate`."""

import keras
import numpy as np
import pytest
from conftest import images_and_labels

import keras_mart as km

X, Y = images_and_labels(8)
ATTACK, STRONG = km.PGD(km.Linf(0.02), 2, start="zero"), km.PGD(km.Linf(0.4), 2, start="zero")


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(3)])


def build(kind=km.MART, rate=0.0, eager=False, **arguments):
    model = kind(network(), **({"attack": ATTACK, "seed": 0} | arguments))
    model.compile(keras.optimizers.SGD(rate), run_eagerly=eager)
    return model


def fit(model, x=X, **arguments):
    return model.fit(x, Y, **({"batch_size": 8, "shuffle": False, "verbose": 0} | arguments)).history["loss"]


def evaluated(model):
    return model.evaluate(X, Y, verbose=0, return_dict=True)


class Setting(keras.callbacks.Callback):
    """Sets an attribute of the model when its second epoch begins."""

    def __init__(self, name, value):
        super().__init__()
        self.name, self.value = name, value

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            setattr(self.model, self.name, self.value)


class Scaled(km.AT):
    """A user's method with a hyperparameter of its own."""

    scale = km.Hyperparameter("positive", lambda value: value > 0)

    def __init__(self, network, attack=None, *, scale=1.0, **kwargs):
        super().__init__(network, attack, **kwargs)
        self.scale = scale

    def training_loss(self, labels, outputs):
        return self.scale * super().training_loss(labels, outputs)


MMA = {"num_examples": 8, "max_epsilon": 0.3, "min_margin": 0.1}


@pytest.mark.parametrize(
    ("kind", "name", "first", "second"),
    [
        (km.MART, "beta", 1.0, 20.0),
        (km.TRADES, "beta", 1.0, 200.0),
        (km.ALP, "beta", 1.0, 200.0),
        (km.CLP, "beta", 1.0, 200.0),
        (km.MMA, "min_margin", 0.1, 0.29),
        (km.MMA, "max_epsilon", 0.3, 0.1),
        (Scaled, "scale", 1.0, 0.1),
    ],
)
def test_a_number_set_by_a_callback_is_used_in_the_next_epoch(kind, name, first, second):
    more = {"start": "uniform"} if kind is km.TRADES else {}
    attack = km.PGD(km.Linf(0.02), 2, **({"start": "zero"} | more))
    arguments = {"attack": attack} | (MMA if kind is km.MMA else {})
    x = (X, np.arange(8)) if kind is km.MMA else X

    def losses(value, eager):
        model = build(kind, eager=eager, **(arguments | {name: value}))
        found = fit(model, x, epochs=2, callbacks=[Setting(name, second)])
        assert getattr(model, name) == second
        return found

    wanted = losses(second, eager=True)
    for eager in (False, True):
        changed = losses(first, eager)
        assert changed[1] == pytest.approx(wanted[1], rel=1e-5)
        assert changed[0] != pytest.approx(wanted[0], rel=1e-4)


def test_a_number_is_set_without_a_new_trace():
    traces = []

    class Traced(km.MART):
        def training_loss(self, labels, outputs):
            traces.append(1)
            return super().training_loss(labels, outputs)

    model = build(Traced)
    fit(model)
    model.train_on_batch(X, Y)
    before = len(traces)
    for beta in (1.0, 2.0):
        model.beta = beta
        fit(model)
        model.train_on_batch(X, Y)
    assert len(traces) == before
    model.attack = STRONG
    fit(model)
    assert len(traces) > before


def test_numbers_are_saved_exactly(tmp_path):
    model = build(beta=1 / 3, weight_average=0.9, eager=True)
    model.beta, model.seed, model.weight_average = 0.1, 7, 0.5
    assert model.get_config()["beta"] == 0.1
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert (loaded.beta, loaded.seed, loaded.weight_average) == (0.1, 7, 0.5)
    assert fit(loaded) == fit(model)


def test_the_decay_of_the_average_takes_effect_at_once():
    models = [build(rate=0.5, weight_average=0.01), build(rate=0.5, weight_average=0.99)]
    for model in models:
        fit(model, batch_size=1, epochs=4, callbacks=[Setting("weight_average", 0.5)])
    one, other = (model.averaged_network.get_weights() for model in models)
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)


def test_the_seed_takes_effect_at_once():
    def run(**others):
        attack = km.PGD(km.Linf(0.4), 1, step_size=1e-6)
        return fit(build(km.AT, attack=attack, **others), epochs=2, callbacks=[Setting("seed", 5)])

    first, second = run(seed=1), run(seed=5, eager=True)
    assert first[1] == pytest.approx(second[1], rel=1e-5) and first[0] != pytest.approx(second[0], rel=1e-4)


def test_a_new_attack_or_perturbation_is_used_by_the_next_fit():
    model, settings = build(), ((ATTACK, None), (STRONG, None), (STRONG, km.AWP(0.5)))
    losses = []
    for model.attack, model.weight_perturbation in settings:
        losses += fit(model)
        wanted = build(attack=model.attack, weight_perturbation=model.weight_perturbation, eager=True)
        assert losses[-1:] == pytest.approx(fit(wanted), rel=1e-5)
    assert losses[0] + 0.01 < losses[1] and losses[1] + 0.01 < losses[2]


def test_a_new_attack_is_used_by_the_next_evaluation_also_within_fit():
    model, wanted = build(), evaluated(build(attack=STRONG, eager=True))
    weak = evaluated(model)
    model.attack = STRONG
    assert evaluated(model) == pytest.approx(wanted, rel=1e-5) and weak["loss"] + 0.01 < wanted["loss"]
    model.attack = ATTACK
    history = model.fit(
        X, Y, validation_data=(X, Y), epochs=2, verbose=0, callbacks=[Setting("attack", STRONG)]
    ).history["val_loss"]
    assert history[0] == pytest.approx(weak["loss"]) and history[1] == pytest.approx(wanted["loss"])


def test_a_new_array_is_used_by_the_next_fit():
    class Weighted(km.AT):
        def __init__(self, network, attack=None, *, table, **kwargs):
            super().__init__(network, attack, **kwargs)
            self.table = table

        def training_loss(self, labels, outputs):
            return self.table[1500] * super().training_loss(labels, outputs)

    model = build(Weighted, table=np.ones(2000))
    (before,) = fit(model)
    changed = np.ones(2000)
    changed[1500] = 100
    model.table = changed
    assert fit(model)[0] == pytest.approx(100 * before, rel=1e-5)


def test_numbers_that_depend_on_one_another_are_checked_by_fit():
    model = build(km.MMA, **MMA)
    for name, value in (("max_epsilon", 32.0), ("min_margin", 0.31)):
        model = build(km.MMA, **MMA)
        setattr(model, name, value)
        with pytest.raises(ValueError, match=name):
            fit(model, (X, np.arange(8)))


def test_numbers_are_restored_with_the_weights(tmp_path):
    model, other = build(beta=3.0), build(beta=1.0)
    model.save_weights(tmp_path / "run.weights.h5")
    other.load_weights(tmp_path / "run.weights.h5")
    assert other.beta == 3.0


def test_a_new_form_is_used_by_the_next_fit():
    model, wanted = build(km.ALP), build(km.ALP, form="original", eager=True)
    fit(model)
    model.form = "original"
    assert fit(model)[0] == pytest.approx(fit(wanted)[0], rel=1e-5)


def test_predict_uses_a_new_head():
    model = build()
    model.predict(X, verbose=0)
    model.network.pop()
    model.network.add(keras.layers.Dense(5))
    assert model.predict(X, verbose=0).shape == (8, 5)
    model.compile("sgd")
    assert np.isfinite(fit(model)).all()


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, "5", None, [1.0, 2.0]])
def test_invalid_numbers_are_refused(bad):
    model = build(beta=2.0)
    with pytest.raises(ValueError, match=r"`beta`.* Received: beta="):
        model.beta = bad
    assert model.beta == 2.0


def test_an_average_cannot_be_added_or_removed_later():
    with pytest.raises(ValueError, match="with or without `weight_average`"):
        build().weight_average = 0.9


def test_replicas_read_the_same_number(two_replicas):
    with two_replicas.scope():
        model = build(attack=STRONG, beta=1.0)
    first, second = fit(model, epochs=2, callbacks=[Setting("beta", 1e4)])
    assert second > 5 * first and model.beta == 1e4
