"""A child process: PGD-20 or AutoAttack against one classifier; or the short training of the classifier for it."""

import time

import keras
import numpy as np
import tensorflow as tf

import keras_mart as km
from benchmarks import measure, networks, plain
from keras_mart import distribution, folding, losses
from keras_mart.attacks.inference import network_of

PGD_STEPS = 20
SMALL = 0.01
# Adversarial training, so that AutoAttack's later stages find something left to attack.
EPOCHS, TRAINING_STEPS, BATCH_SIZE, LEARNING_RATE = 4, 5, 64, 0.1


def digits_network():
    return km.zoo.wide_resnet(10, 2, input_shape=(8, 8, 1))


def train(path, epsilon):
    """Trains the digits network for some seconds and keeps its weights."""
    keras.utils.set_random_seed(0)
    attack = km.PGD(km.Linf(epsilon), steps=TRAINING_STEPS, step_size=epsilon / 2)
    model = km.AT(digits_network(), attack)
    model.compile(km.optimizers.SGD(LEARNING_RATE, momentum=0.9))
    begin = time.perf_counter()
    model.fit(km.datasets.load("digits", "train", batch_size=BATCH_SIZE), epochs=EPOCHS, verbose=0)
    model.network.save_weights(path)
    return {"seconds": time.perf_counter() - begin}


def classifier(model, weights, network):
    """A saved classifier, the digits network with trained weights, or a network of the zoo with random ones."""
    if model:
        return network_of(keras.saving.load_model(model))
    if not weights:
        untrained = networks.build(network)
        for weight in untrained.trainable_variables:  # where the last layer starts as 0, there would be no gradient
            weight.assign_add(SMALL * keras.random.normal(weight.shape))
        return untrained
    trained = digits_network()
    trained.load_weights(weights)
    return trained


def batch(network, dataset, examples):
    """The first test images of a data set and their labels; where none is named, random ones.

    Random images are seeded, and their labels are what the network takes them for, so that all are left to attack.
    """
    if dataset:
        return next(iter(km.datasets.load(dataset, "test", batch_size=examples)))
    images = tf.random.stateless_uniform([examples, *network.input_shape[1:]], [0, 0])
    return images, tf.argmax(network(images, training=False), -1, "int32")


def pgd(variant, network, images, labels, epsilon, repeats):
    """PGD-20 on one batch, several times after a first one that compiles."""
    attack = km.PGD(km.Linf(epsilon), steps=PGD_STEPS, start="gaussian")
    found, seconds = _plain(network, labels, attack) if variant == "plain" else None, []
    for _ in range(1 + repeats):
        begin = time.perf_counter()
        np.asarray(found(images) if found else attack(network, images, labels, seed=0))
        seconds.append(time.perf_counter() - begin)
    row = {"attack": "pgd20", "images": len(labels), "gradients": PGD_STEPS * len(labels), "seconds": seconds[1:]}
    return {"rows": [row], "first": seconds[0] - float(np.median(seconds[1:]))}


def _plain(network, labels, attack):
    """The attack written the usual way, compiled."""
    network = plain.keras_only(network)

    def objective(candidates):
        return losses.cross_entropy(labels, network(candidates, training=False))

    return tf.function(
        lambda images: plain.pgd(objective, images, attack), autograph=False, jit_compile=distribution.prefers_xla()
    )


def autoattack(network, images, labels, epsilon, batch_size):
    """AutoAttack and its stages, after a first run of all of it that compiles."""
    data, attacks = (images.numpy(), labels.numpy()), {"autoattack": km.AutoAttack(km.Linf(epsilon))}
    first = km.evaluate(network, data, attacks, batch_size=batch_size, verbose=0)
    measure.say({"rows": stages(first), "first": None})  # for who does not wait for the second
    table = km.evaluate(network, data, attacks, batch_size=batch_size, verbose=0)
    return {"rows": stages(table), "first": first.seconds["autoattack"] - table.seconds["autoattack"]}


def stages(table):
    """A row for AutoAttack, and one for each stage of it."""
    rows, left = [], table["natural"]
    for name in (each for each in table.predictions if each.startswith("autoattack")):
        whole = name == "autoattack"
        attacked = round((table["natural"] if whole else left) * table.examples)
        left = left if whole else table[name]
        rows.append({
            "attack": name, "images": attacked, "gradients": table.gradients[name],
            "seconds": [table.seconds[name]] if attacked else [], "left": table[name],
        })  # fmt: skip
    return rows


def evaluate(attack, variant, precision, network, model, weights, dataset, examples, batch_size, epsilon, repeats):
    """For the attack, or each stage of it: images and gradients, and seconds of each run."""
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    if variant == "unfolded":
        folding.disable()
    network = classifier(model, weights, network)
    images, labels = batch(network, dataset, examples)
    if attack == "pgd20":
        return pgd(variant, network, images, labels, epsilon, repeats)
    return autoattack(network, images, labels, epsilon, batch_size)


def main(task, **job):
    return {"train": train, "evaluate": evaluate}[task](**job)


if __name__ == "__main__":
    measure.answer(main)
