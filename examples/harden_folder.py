"""Hardens a network of keras.applications on a folder of photographs with one subfolder for each class.

    python examples/harden_folder.py photos --weights=imagenet --output=robust.keras

Trains the network on the classes without an attack (`km.Standard`), then hardens it.
"""

import argparse
import fractions

import keras

import keras_mart as km

parser = argparse.ArgumentParser()
parser.add_argument("folder", help="contains <class>/, or train/<class>/ and test/<class>/")
parser.add_argument("--network", default="MobileNetV2", help="name in keras.applications")
parser.add_argument("--weights", default="imagenet", help="imagenet, none, or a weights file")
parser.add_argument("--image_size", type=int, default=224)
parser.add_argument("--batch_size", type=int, default=32)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--epsilon", type=fractions.Fraction, default=fractions.Fraction(4, 255))
parser.add_argument("--output", default="hardened.keras")
flags = parser.parse_args()

data = f"folder:{flags.folder}"
options = {"batch_size": flags.batch_size, "image_size": flags.image_size}
train = km.datasets.load(data, "train", augment="crop_flip", **options)
validation, test = (km.datasets.load(data, split, **options) for split in ("validation", "test"))
described = km.datasets.describe(data, image_size=flags.image_size)

network = km.networks.application(flags.network, described.num_classes, described.input_shape, flags.weights)
for layer in network.layers[-1].layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.9  # MobileNetV2's 0.999 is too slow for a few epochs
natural = km.Standard(network)
natural.compile(keras.optimizers.Adam(1e-4))
natural.fit(train, validation_data=validation, epochs=flags.epochs, verbose=2)

hardened = km.harden(
    network, train, validation, test=test, threat=km.Linf(float(flags.epsilon)), epochs=flags.epochs, verbose=2
)
print(hardened)
hardened.model.save(flags.output)
