"""A training method of one's own: adversarial training with label smoothing on the adversarial images.

    python examples/own_method.py --smoothing=0.2

What a method is: what its attack climbs (`attack_objective`, here the default) and what training descends.
"""

import argparse

import keras

import keras_mart as km


@keras.saving.register_keras_serializable("examples")
class SmoothedAT(km.AdversarialModel):
    """Trains on (1 - s) CE(q, y) + s mean_k CE(q, k)."""

    smoothing = km.Hyperparameter("a share between 0 and 1", lambda value: 0 <= value < 1)

    def __init__(self, network, attack=None, *, smoothing=0.1, **kwargs):
        super().__init__(network, attack, **kwargs)
        self.smoothing = smoothing

    def training_loss(self, labels, outputs):
        everywhere = -keras.ops.mean(keras.ops.log_softmax(outputs.adversarial), axis=-1)
        here = km.losses.cross_entropy(labels, outputs.adversarial)
        return (1 - self.smoothing) * here + self.smoothing * everywhere

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
model.save("smoothed.keras")  # loads with keras.saving.load_model, where the class is registered
print(km.evaluate(model, test, {"pgd20": km.PGD(threat, steps=20)}))
