"""A child process: PGD-20 or AutoAttack against one classifier; or what is needed for it.

That is the short training of the classifier, and the same network, images and labels as files for PyTorch.
"""

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


def train(
    path, epsilon, network="digits", dataset="digits", epochs=EPOCHS, plain_epochs=0, steps=None,
    adam=None,
):  # fmt: skip
    """Trains a network for some seconds and keeps its weights.

    Args:
        epsilon: radius of the Linf ball of the adversarial training.
        epochs: number of those.
        plain_epochs: so many epochs without an adversary come before, without which some networks learn nothing.
        steps: the number of batches of an epoch, at most; all by default.
        adam: learning rate of Adam; SGD with momentum by default.
    """
    keras.utils.set_random_seed(0)
    network = networks.build(network)
    data = km.datasets.load(dataset, "train", batch_size=BATCH_SIZE)
    data = data if steps is None else data.take(steps)
    attack = km.PGD(km.Linf(epsilon), steps=TRAINING_STEPS, step_size=epsilon / 2)
    begin = time.perf_counter()
    for model, times in ((km.Standard(network), plain_epochs), (km.AT(network, attack), epochs)):
        if times:
            sgd = km.optimizers.SGD(LEARNING_RATE, momentum=0.9)
            model.compile(keras.optimizers.Adam(adam) if adam else sgd)
            model.fit(data, epochs=times, verbose=0)
    network.save_weights(path)
    return {"seconds": time.perf_counter() - begin}


def classifier(model, weights, network):
    """A saved classifier, or a network by name with trained weights or with random ones."""
    if model:
        return network_of(keras.saving.load_model(model))
    network = networks.build(network)
    if weights:
        network.load_weights(weights)
        return network
    for weight in network.trainable_variables:  # where the last layer starts as 0, there would be no gradient
        weight.assign_add(SMALL * keras.random.normal(weight.shape))
    return network


def export(path, network, weights, dataset, examples):
    """Writes what `official_autoattack` needs: images, labels, the network's logits and its weights."""
    with tf.device("CPU"):  # a GPU may round more
        network = classifier(None, weights, network)
        images, labels = batch(network, dataset, examples)
        logits = network(images, training=False)
    arrays = {
        f"{number}_{place}": array
        for number, layer in enumerate(networks.in_pytorch(network))
        for place, array in enumerate(layer)
    }
    images = np.moveaxis(images, -1, 1)
    np.savez(path, images=images, labels=np.asarray(labels, "int64"), logits=logits, **arrays)
    return {"natural": float(np.mean(np.argmax(logits, -1) == labels))}


def batch(network, dataset, examples):
    """The first test images of a data set and their labels; where none is named, random ones.

    Random images are seeded, and their labels are what the network takes them for, so that all are left to attack.
    """
    if dataset:
        return next(iter(km.datasets.load(dataset, "test", batch_size=examples)))
    images = tf.random.stateless_uniform([examples, *network.input_shape[1:]], [0, 0])
    return images, tf.argmax(network(images, training=False), -1, "int32")


def pgd(variant, network, images, labels, threat, repeats):
    """PGD-20 on one batch, several times after a first one that compiles."""
    attack = km.PGD(threat, steps=PGD_STEPS, start="gaussian")
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


def autoattack(network, images, labels, threat, batch_size, seed):
    """AutoAttack and its stages, after a first run of all of it that compiles."""
    data, attacks, seconds = (images.numpy(), labels.numpy()), {"autoattack": km.AutoAttack(threat)}, []

    def run():
        begin = time.perf_counter()
        table = km.evaluate(network, data, attacks, batch_size=batch_size, seed=seed, verbose=0)
        seconds.append(time.perf_counter() - begin)
        return table

    first = run()
    measure.say({"rows": stages(first), "first_rows": stages(first), "first": None, "whole": seconds})  # may be all
    table = run()
    compiling = first.seconds["autoattack"] - table.seconds["autoattack"]
    return {"rows": stages(table), "first_rows": stages(first), "first": compiling, "whole": seconds}


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


def evaluate(
    attack, variant, precision, network, model, weights, dataset, examples, batch_size, epsilon, repeats=1,
    norm="Linf", seed=0,
):  # fmt: skip
    """For the attack, or each stage of it: images and gradients, and seconds of each run."""
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    if variant == "unfolded":
        folding.disable()
    network = classifier(model, weights, network)
    images, labels = batch(network, dataset, examples)
    threat = getattr(km, norm)(epsilon)
    if attack == "pgd20":
        return pgd(variant, network, images, labels, threat, repeats)
    return autoattack(network, images, labels, threat, batch_size, seed)


def main(task, **job):
    return {"train": train, "export": export, "evaluate": evaluate}[task](**job)


if __name__ == "__main__":
    measure.answer(main)
