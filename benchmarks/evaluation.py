"""A child process that measures PGD-20 or AutoAttack on one classifier, or prepares it.

Preparations are the short training of the classifier, and exporting network, images and labels for PyTorch.
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
NOISE = 0.01  # scale of the noise that is added to untrained weights
# Of adversarial training, which leaves examples for AutoAttack's later stages to attack.
EPOCHS, TRAINING_STEPS, BATCH_SIZE, LEARNING_RATE = 4, 5, 64, 0.1


def train(
    path, epsilon, network="digits", dataset="digits", epochs=EPOCHS, plain_epochs=0, steps=None,
    adam=None,
):  # fmt: skip
    """Trains a network for some seconds and saves its weights.

    Args:
        path: path of the weights.
        epsilon: Linf epsilon of the adversarial training.
        network: name for `networks.build`.
        dataset: name for `keras_mart.datasets.load`.
        epochs: number of adversarial epochs.
        plain_epochs: number of epochs without an attack before them; some networks do not start to learn otherwise.
        steps: maximal number of batches in an epoch; all by default.
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
    """Returns a saved classifier, or a network by name with trained or random weights."""
    if model:
        return network_of(keras.saving.load_model(model))
    network = networks.build(network)
    if weights:
        network.load_weights(weights)
        return network
    for weight in network.trainable_variables:  # a last layer of zeros would give no gradient
        weight.assign_add(NOISE * keras.random.normal(weight.shape))
    return network


def export(path, network, weights, dataset, examples):
    """Writes the images, labels, logits and weights that `official_autoattack` needs."""
    with tf.device("CPU"):  # a GPU's convolutions may be less precise
        network = classifier(None, weights, network)
        images, labels = batch(network, dataset, examples)
        logits = network(images, training=False)
    arrays = {
        f"{number}_{place}": array
        for number, layer in enumerate(networks.pytorch_weights(network))
        for place, array in enumerate(layer)
    }
    images = np.moveaxis(images, -1, 1)
    np.savez(path, images=images, labels=np.asarray(labels, "int64"), logits=logits, **arrays)
    return {"natural": float(np.mean(np.argmax(logits, -1) == labels))}


def batch(network, dataset, examples):
    """Returns the first test images of a dataset and their labels; without a dataset, seeded random images.

    Random images are labelled by the network's predictions, so that all are classified correctly and attacked.
    """
    if dataset:
        return next(iter(km.datasets.load(dataset, "test", batch_size=examples)))
    images = tf.random.stateless_uniform([examples, *network.input_shape[1:]], [0, 0])
    return images, tf.argmax(network(images, training=False), -1, "int32")


def pgd(variant, network, images, labels, threat, repeats):
    """Measures PGD-20 on one batch, several times after a first run that compiles."""
    attack = km.PGD(threat, steps=PGD_STEPS, start="gaussian")
    plain_attack, seconds = _plain(network, labels, attack) if variant == "plain" else None, []
    for _ in range(1 + repeats):
        begin = time.perf_counter()
        np.asarray(plain_attack(images) if plain_attack else attack(network, images, labels, seed=0))
        seconds.append(time.perf_counter() - begin)
    row = {"attack": "pgd20", "images": len(labels), "gradients": PGD_STEPS * len(labels), "seconds": seconds[1:]}
    return {"rows": [row], "first": seconds[0] - float(np.median(seconds[1:]))}


def _plain(network, labels, attack):
    """Returns the attack written the usual way, compiled."""
    network = plain.keras_only(network)

    def objective(candidates):
        return losses.cross_entropy(labels, network(candidates, training=False))

    return tf.function(
        lambda images: plain.pgd(objective, images, attack), autograph=False, jit_compile=distribution.prefers_xla()
    )


def autoattack(network, images, labels, threat, batch_size, seed):
    """Measures AutoAttack and its stages in a first run, which compiles, and a second one."""
    data, attacks, seconds = (images.numpy(), labels.numpy()), {"autoattack": km.AutoAttack(threat)}, []

    def run():
        begin = time.perf_counter()
        table = km.evaluate(network, data, attacks, batch_size=batch_size, seed=seed, verbose=0)
        seconds.append(time.perf_counter() - begin)
        return table

    first = run()
    # The answer if time runs out before the second run ends.
    measure.send({"rows": stages(first), "first_rows": stages(first), "first": None, "whole": seconds})
    table = run()
    compiling = first.seconds["autoattack"] - table.seconds["autoattack"]
    return {"rows": stages(table), "first_rows": stages(first), "first": compiling, "whole": seconds}


def stages(table):
    """Returns a row for AutoAttack, and one for each of its stages."""
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
    """Measures an attack: returns images, gradients and the seconds of each run, for it and each of its stages."""
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
    measure.serve(main)
