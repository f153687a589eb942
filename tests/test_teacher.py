"""Methods with a teacher, HAT and RSLAD: how they use it, and that it does not change."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from agreement import teacher
from conftest import Plain, conv_network, linear_network
from test_methods import ATTACK, CLASSES, SHAPE, X, Y, build, fit, network, own_config, same_weights

import keras_mart as km
from keras_mart import losses

WITH_TEACHER = pytest.mark.parametrize("case", ["hat", "rslad"])


def outputs(model, forward=None):
    """Returns the `Outputs` of images perturbed by 0.1."""
    perturbed = tf.constant(X[::-1].copy())
    forward = forward or (lambda images: model(images, training=False))
    logits = [forward(images) for images in (tf.constant(X), perturbed)]
    return km.Outputs(*logits, 0.1, images=tf.constant(X), perturbed=perturbed, forward=forward)


def test_hat_labels_its_helper_with_the_teachers_prediction_for_the_adversarial_image():
    model, seen = build("hat"), []

    def forward(images):
        seen.append(images)
        return model(images, training=False)

    given = outputs(model, forward)
    found = model.training_loss(Y, given)
    helper = X + 2 * (X[::-1] - X)
    assert helper.min() < 0  # the helper is not clipped
    np.testing.assert_allclose(seen[-1], helper, atol=1e-6)
    target = np.argmax(teacher()(X[::-1]), axis=1)
    expected = losses.trades(Y, given.natural, given.adversarial, 2.5)
    expected += 0.5 * losses.cross_entropy(target, model(helper, training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rslad_follows_the_teacher_on_natural_images_and_ignores_labels():
    model = build("rslad")
    given, target = outputs(model), teacher()(X)
    divergences = losses.kl_divergence(target, given.natural), losses.kl_divergence(target, given.adversarial)
    np.testing.assert_allclose(model.training_loss(None, given), divergences[0] / 6 + 5 * divergences[1] / 6, rtol=1e-5)
    climbed = model.attack_objective(tf.constant(X), None)(given.perturbed)
    np.testing.assert_allclose(climbed, divergences[1], rtol=1e-4)


@WITH_TEACHER
def test_the_teacher_stays_in_evaluation_mode_and_is_saved(case, tmp_path):
    learned = conv_network()  # with BatchNormalization and Dropout
    model = km.AT(learned, ATTACK) if case == "hat" else learned  # wrapped or not
    student = getattr(km, case.upper())(network(), ATTACK, teacher=model, seed=0)
    student.trainable = False
    student.trainable = True  # unfreezes the teacher's layers too
    student.compile(km.optimizers.SGD(0.1, weight_decay=0.1), run_eagerly=True)
    fit(case, student)
    same_weights(student.teacher, learned)
    assert student.teacher is not learned and not student.teacher.trainable_variables
    np.testing.assert_allclose(student.teacher_logits(X), learned(X, training=False), atol=1e-5)
    student.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert own_config(loaded) == own_config(student)
    same_weights(loaded.teacher, learned)


def test_the_teachers_regularisation_is_no_part_of_the_loss():
    images = keras.Input(SHAPE)
    hidden = keras.layers.Dense(4, activity_regularizer=keras.regularizers.L2(100.0), kernel_regularizer="l2")
    learned = keras.Model(images, keras.layers.Dense(CLASSES)(hidden(keras.layers.Flatten()(images))))
    losses_of = []
    for regularised in (True, False):
        if not regularised:
            hidden.activity_regularizer = hidden.kernel_regularizer = None
        model = km.RSLAD(network(), ATTACK, teacher=learned, seed=0)
        model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
        losses_of += [fit("rslad", model)["loss"], [model.evaluate(X, Y, verbose=0, return_dict=True)["loss"]]]
    assert losses_of[0] == pytest.approx(losses_of[2], rel=1e-6) and losses_of[1] == pytest.approx(
        losses_of[3], rel=1e-6
    )


@pytest.mark.parametrize(("case", "policy"), [("rslad", "mixed_bfloat16"), ("hat", "mixed_float16")])
def test_mixed_precision(case, policy):
    keras.config.set_dtype_policy(policy)
    try:
        wrapped, learned = network(), conv_network()
    finally:
        keras.config.set_dtype_policy("float32")
    for one, other in ((wrapped, conv_network()), (network(), learned)):
        model = getattr(km, case.upper())(one, ATTACK, teacher=other, seed=0)
        assert model.teacher_logits(X).dtype == "float32"
        model.compile(km.optimizers.SGD(0.1), run_eagerly=True)
        assert np.isfinite(list(fit(case, model, validation_data=(X, Y)).values())).all()
        same_weights(model.teacher, other)


@pytest.mark.parametrize(
    ("message", "other"),
    [
        ("`teacher` must be a classifier that returns logits.*keras.Model", lambda: "teacher.keras"),
        ("probabilities", lambda: keras.Sequential([network(), keras.layers.Softmax()])),
        ("`teacher` must be trained.*not even built", lambda: keras.Sequential([keras.layers.Dense(3)])),
        ("`teacher` is kept as a second network.*get_config", lambda: called(Plain())),
    ],
)
def test_bad_teachers_are_refused(message, other):
    with pytest.raises(ValueError, match=message):
        km.RSLAD(network(), ATTACK, teacher=other())


def called(model):
    model(X)
    return model


def test_a_saved_model_is_no_teacher(tmp_path):
    exported = km.serving.load(km.export(network(), tmp_path))
    with pytest.raises(ValueError, match="kept in the model's file, which no SavedModel can"):
        km.HAT(network(), ATTACK, teacher=exported)


@pytest.mark.parametrize("as_dataset", [False, True])
@pytest.mark.parametrize(
    ("message", "shape", "classes"),
    [
        ("The teacher must have as many classes as the network, 3. Received: 4", SHAPE, 4),
        ("shape of the teacher", (5, 5, 1), 3),
    ],
)
def test_a_teacher_of_another_task_is_refused(message, shape, classes, as_dataset):
    other = linear_network(np.ones((np.prod(shape), classes)), np.ones(classes), shape)
    model = km.HAT(network(), ATTACK, teacher=other)
    model.compile("sgd")
    data = (tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),) if as_dataset else (X, Y)
    with pytest.raises(ValueError, match=message):
        model.fit(*data, verbose=0)
