"""Defines a training method: adversarial training with label smoothing on the adversarial images.

    python examples/own_method.py --smoothing=0.2

A method consists of the objective that its attack climbs (`attack_objective`, here the default) and the loss that
training descends (`training_loss`).
"""

import argparse

import keras

import keras_mart as km


@keras.saving.register_keras_serializable("examples")
class SmoothedAT(km.AdversarialModel):
    """Adversarial training with the loss (1 - s) CE(q, y) + s mean_k CE(q, k)."""

    smoothing = km.Hyperparameter("a share between 0 and 1", lambda value: 0 <= value < 1)

    def __init__(self, network, attack=None, *, smoothing=0.1, **kwargs):
        super().__init__(network, attack, **kwargs)
        self.smoothing = smoothing

    def training_loss(self, labels, outputs):
        of_label = km.losses.cross_entropy(labels, outputs.adversarial)
        mean_over_classes = -keras.ops.mean(keras.ops.log_softmax(outputs.adversarial), axis=-1)
        return (1 - self.smoothing) * of_label + self.smoothing * mean_over_classes

    def get_config(self):
        return {**super().get_config(), "smoothing": self.smoothing}


parser = argparse.ArgumentParser()
parser.add_argument("--dataset", default="digits")
parser.add_argument("--smoothing", type=float, default=0.1)
parser.add_argument("--epsilon", type=float, default=0.15)
parser.add_argument("--epochs", type=int, default=10)
flags = parser.parse_args()

train, validation, test = (
    km.datasets.load(flags.dataset, split, batch_size=64) for split in ("train", "validation", "test")
)
described = km.datasets.describe(flags.dataset)
network = km.zoo.wide_resnet(10, 1, num_classes=described.num_classes, input_shape=described.input_shape)
threat = km.Linf(flags.epsilon)

model = SmoothedAT(network, km.PGD(threat, steps=10), smoothing=flags.smoothing)
model.compile(km.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-4))
model.fit(train, validation_data=validation, epochs=flags.epochs, verbose=2)
model.save("smoothed.keras")  # keras.saving.load_model loads it in programs that register the class
print(km.evaluate(model, test, {"pgd20": km.PGD(threat, steps=20)}))
