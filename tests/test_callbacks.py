"""The callbacks in a real `fit`: when they measure, their values, and which callbacks can read them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import linear_network

import keras_mart as km
from keras_mart.callbacks import EpochScalars

# Two classes, by one value: an example is correct if its value is on its class's side of 0.5.
IMAGES = np.linspace(0.05, 0.95, 10, dtype="float32")[:, None]
LABELS = (IMAGES[:, 0] > 0.5).astype("int32")
ATTACKS = {"fgsm": km.FGSM(km.Linf(0.1)), "start": km.PGD(km.Linf(0.3), 1, step_size=1e-9)}
KEYS = ["val_fgsm_accuracy", "val_start_accuracy"]


class Recorder(keras.callbacks.Callback):
    """Keeps each epoch's logs as seen at its position in the list."""

    def __init__(self):
        super().__init__()
        self.logs = []

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


def fit(*callbacks, epochs, wrapped=False):
    """Trains a network that starts with every prediction wrong and ends with all correct."""
    network = linear_network([[1, -1]], [-0.5, 0.5])
    model = km.AT(network, km.FGSM(km.Linf(0.01))) if wrapped else network
    loss = None if wrapped else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(3.0), loss=loss)
    return model.fit(IMAGES, LABELS, epochs=epochs, batch_size=10, verbose=0, callbacks=list(callbacks))


@pytest.mark.parametrize("every, epochs, measured", [(3, 7, [1, 3, 6, 7]), (5, 1, [1])])
def test_measures_after_the_first_epoch_every_nth_and_the_last(every, epochs, measured):
    recorder = Recorder()
    fit(km.RobustAccuracy((IMAGES, LABELS), ATTACKS, every, verbose=0), recorder, epochs=epochs)
    keys = [[key for key in logs if key.startswith("val")] for logs in recorder.logs]
    assert keys == [KEYS if epoch in measured else [] for epoch in range(1, epochs + 1)]


def test_measures_when_an_earlier_callback_stops_training():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 3

    recorder = Recorder()
    fit(Stop(), km.RobustAccuracy((IMAGES, LABELS), ATTACKS, every=3, verbose=0), recorder, epochs=9)
    assert [KEYS[0] in logs for logs in recorder.logs] == [True, False, True, True]


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_value_equals_that_of_evaluate(wrapped):
    tables, evaluating = [], keras.callbacks.Callback()
    evaluating.on_epoch_end = lambda epoch, logs: tables.append(
        km.evaluate(evaluating.model, (IMAGES, LABELS), ATTACKS, seed=3, verbose=0)
    )
    robust_accuracy = km.RobustAccuracy((IMAGES, LABELS), ATTACKS, seed=3, verbose=0)
    history = fit(robust_accuracy, evaluating, epochs=8, wrapped=wrapped).history
    for name in ATTACKS:
        assert history[f"val_{name}_accuracy"] == [table[name] for table in tables]
        assert len(set(history[f"val_{name}_accuracy"])) > 2  # it changes with the weights


@pytest.mark.filterwarnings("ignore:Can save best model only")  # Keras warns in epochs without a measurement
def test_model_checkpoint_can_monitor_it(tmp_path):
    robust_accuracy = km.RobustAccuracy((IMAGES, LABELS), ATTACKS, every=2, seed=3, verbose=0)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", KEYS[0], mode="max", save_best_only=True)

    def spoil(epoch, logs):  # so that the last epoch is not the best
        if epoch == 6:
            checkpoint.model.set_weights([np.array([[40, -40]]), np.array([-20, 20])])

    spoiler = keras.callbacks.LambdaCallback(on_epoch_end=spoil)
    measured = fit(robust_accuracy, checkpoint, spoiler, epochs=8).history[KEYS[0]]
    assert max(measured) > max(measured[0], measured[-1])
    best = keras.saving.load_model(tmp_path / "best.keras")
    assert km.evaluate(best, (IMAGES, LABELS), ATTACKS, seed=3, verbose=0)["fgsm"] == max(measured)


def test_shows_progress(capsys):
    fit(km.RobustAccuracy((IMAGES, LABELS), ATTACKS), epochs=1)
    assert "fgsm: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "attacks, every, message",
    [(ATTACKS, 0, "`every` must be a positive integer. Received: every=0"), ({}, 1, "at least one attack")],
)
def test_constructor_errors(attacks, every, message):
    with pytest.raises(ValueError, match=message):
        km.RobustAccuracy((IMAGES, LABELS), attacks, every)


def test_epoch_scalars_are_written(tmp_path):
    robust_accuracy = km.RobustAccuracy((IMAGES, LABELS), ATTACKS, every=2, verbose=0)
    recorder = Recorder()
    fit(robust_accuracy, EpochScalars(tmp_path), recorder, epochs=3)
    (path,) = tmp_path.iterdir()
    written = [{} for _ in recorder.logs]
    for event in tf.compat.v1.train.summary_iterator(str(path)):
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            written[event.step][value.tag.removeprefix("epoch/")] = float(tf.make_ndarray(value.tensor))
    assert [set(logs) for logs in written] == [set(logs) for logs in recorder.logs]
    for found, logs in zip(written, recorder.logs, strict=True):
        assert found == pytest.approx(logs, rel=1e-6)


@pytest.mark.parametrize(
    "data, attacks, message",
    [
        ((255 * IMAGES, LABELS), ATTACKS, "by 255"),
        (iter([(IMAGES, LABELS)]), ATTACKS, "more than once"),
        ((IMAGES, LABELS), {"natural": ATTACKS["fgsm"]}, "'natural'"),
        ((IMAGES, LABELS), {"fgsm": km.FGSM}, "'fgsm'"),
    ],
)
def test_invalid_data_and_attacks_are_refused_before_training(data, attacks, message):
    recorder = Recorder()
    with pytest.raises(ValueError, match=message):
        fit(km.RobustAccuracy(data, attacks), recorder, epochs=1)
    assert not recorder.logs


def test_validation_by_another_attack_equals_evaluate(tmp_path):
    attack = km.PGD(km.Linf(0.3), 5, step_size=0.1, start="zero")
    model = km.AT(linear_network([[-4.0, 4.0]], [2.0, -2.0]), km.PGD(km.Linf(0.01), 1, start="zero"), seed=0)
    model.compile("sgd", validation_attack=attack)
    found = model.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)["adversarial_accuracy"]
    table = km.evaluate(model, (IMAGES, LABELS), {"pgd": attack}, verbose=0)
    assert found == pytest.approx(table["pgd"]) and found < table["natural"]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.validation_attack == attack
    assert loaded.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)["adversarial_accuracy"] == found
    loaded.compile("sgd")
    assert loaded.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)["adversarial_accuracy"] > found


@pytest.mark.parametrize("attack", [km.PGD, km.APGDT(km.Linf(0.1)), "pgd"])
def test_attacks_that_validation_cannot_run_are_refused(attack):
    model = km.AT(linear_network([[-4.0, 4.0]], [2.0, -2.0]), km.PGD(km.Linf(0.01), 1))
    with pytest.raises(ValueError, match=r"`validation_attack` must be an attack such as keras_mart\.PGD"):
        model.compile("sgd", validation_attack=attack)
