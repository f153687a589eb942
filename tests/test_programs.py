"""Programs compiled by XLA: a training step is one program without branches, and smaller batches need no other."""

import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from agreement import replace_random_numbers
from conftest import conv_network, images_and_labels

import keras_mart as km

X, Y = images_and_labels(20)
ATTACK = km.PGD(km.Linf(0.1), steps=3, step_size=0.05)
# Operations that wait for the host, or create text on the device.
NOT_IN_A_STEP = {"Assert", "If", "StatelessIf", "While", "StringFormat", "StringJoin", "AsString", "PrintV2"}
EVERYTHING = {"weight_average": 0.9, "weight_perturbation": km.AWP(0.01)}


def compiled(arguments=EVERYTHING, **compile_arguments):
    model = km.MART(conv_network(), ATTACK, seed=0, **arguments)
    rate = km.optimizers.Warmup(keras.optimizers.schedules.CosineDecay(0.1, 10), 1)
    optimizer = km.optimizers.SGD(rate, momentum=0.9, weight_decay=1e-3, global_clipnorm=1.0)
    model.compile(optimizer, metrics=["accuracy"], **{"jit_compile": True, **compile_arguments})
    return model


def test_a_whole_training_step_is_one_program_without_branches():
    model = compiled()
    assert model.jit_compile is True
    model._check_data(X[:8], Y[:8])  # as `fit` does, but without compiling the step again
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    batch = tf.constant(X[:8]), tf.constant(Y[:8], tf.int32)
    operations = {each.type for each in step.get_concrete_function(batch).graph.get_operations()}
    assert not operations & NOT_IN_A_STEP
    program = step.experimental_get_compiler_ir(batch)(stage="optimized_hlo")
    loops = len(re.findall(r"\bwhile\(", program))
    assert loops == program.count("known_trip_count") == 1  # the loop of PGD
    assert not re.findall(r"\bconditional\(", program)


def test_the_compiled_step_equals_the_uncompiled_one(monkeypatch):
    replace_random_numbers(monkeypatch.setattr)  # TensorFlow's differ under XLA
    found = []
    for jit_compile in (False, True):
        model = compiled(jit_compile=jit_compile)
        model.network.get_layer(index=-2).rate = 0.0  # and so do Dropout's
        history = model.fit(X, Y, batch_size=10, epochs=2, shuffle=False, verbose=0).history
        found.append((history, model.get_weights()))
    for name, values in found[0][0].items():
        np.testing.assert_allclose(found[1][0][name], values, rtol=1e-4, err_msg=name)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


PROGRAMS = """
import sys
import keras, numpy as np, tensorflow as tf
import keras_mart as km

random = np.random.RandomState(0)
data = {name: random.randint(0, 256, [count, 6, 6]).astype("uint8") for name, count in (("x_train", 62), ("x_test", 9))}
labels = {name.replace("x", "y"): np.arange(len(images)) % 3 for name, images in data.items()}
np.savez(f"{sys.argv[1]}/data.npz", **data, **labels)  # 56 to train on, 6 for validation
load = lambda split: km.datasets.load(f"npz:{sys.argv[1]}/data.npz", split, batch_size=10 if split == "train" else 4)
network = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
pgd = km.PGD(km.Linf(0.1), steps=2, start="zero")
model = km.MART(network, pgd, seed=0)
model.compile("sgd", jit_compile=True)
attacks = {"pgd": pgd, "fgsm": km.FGSM(km.Linf(0.1))}
robust = km.RobustAccuracy(load("validation"), attacks, verbose=0)
model.fit(load("train"), validation_data=load("validation"), epochs=2, verbose=0, callbacks=[robust])
"""


EVALUATION = """
from keras_mart.attacks import autoattack, inference, square

square.ROUND = 4
short = {"apgd-ce": {"steps": 2}, "apgd-t": {"steps": 2}, "fab-t": {"steps": 2}, "square": {"queries": 8}}
for name, options in short.items():
    stage = autoattack.STAGES[name]
    autoattack.STAGES[name] = lambda threat, stage=stage, options=options: stage(threat, **options)
keras.utils.set_random_seed(0)
network = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
inference.compile_by_xla(network, True)
images = np.random.RandomState(0).rand(21, 6, 6, 1)
labels = np.argmax(network(images), axis=1)
table = km.evaluate(network, (images, labels), {"auto": km.AutoAttack(km.Linf(0.05))}, batch_size=4, verbose=0)
left = [round(21 * accuracy) for name, accuracy in table.accuracy.items() if name != "worst_case"]
assert left[0] > left[-1] > 8 and left[-1] % 4, left  # fewer batches, and an incomplete one
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Returns how many programs XLA compiles for each of the two, which run in one process."""
    folder = tmp_path_factory.mktemp("programs")
    count = "import glob; print('programs', len(glob.glob(f'{sys.argv[1]}/xla_compile_cache*')))"
    cache = {"TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={folder}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", "\n".join([PROGRAMS, count, EVALUATION, count]), str(folder)]
    ran = subprocess.run(command, env={**os.environ, **cache}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    first, both = map(int, re.findall(r"^programs (\d+)", ran.stdout, re.M))
    return first, both - first


def test_one_program_for_training_one_for_validation_and_one_for_each_attack(programs):
    assert programs[0] == 5  # these four, and the network on the adversarial images


def test_one_program_for_each_stage_of_an_evaluation_and_one_for_predictions(programs):
    assert programs[1] == 4 + 1
