"""Evaluates a saved Keras model under AutoAttack, and checks whether the attacks can be trusted.

python examples/judge_model.py model.keras --dataset=folder:photos --image_size=224 --preprocessing=tf
"""

import argparse
import fractions

import keras

import keras_mart as km

parser = argparse.ArgumentParser()
parser.add_argument("model", help="a .keras or .h5 file")
parser.add_argument("--dataset", default="digits", help="digits, tfds:<name>, npz:<path> or folder:<path>")
parser.add_argument("--image_size", type=int, help="side to which photographs are resized")
parser.add_argument("--preprocessing", help="tf, torch or caffe, if the model does not expect images in [0, 1]")
parser.add_argument("--scale", type=float, help="largest input value that the model expects, such as 255")
parser.add_argument("--epsilon", type=fractions.Fraction, default=fractions.Fraction(8, 255))
parser.add_argument("--examples", type=int, default=1000)
flags = parser.parse_args()

test = km.datasets.load(flags.dataset, "test", batch_size=100, image_size=flags.image_size)
shape = km.datasets.describe(flags.dataset, image_size=flags.image_size).input_shape
model = keras.saving.load_model(flags.model)
network, changes = km.networks.adapted(model, shape, preprocessing=flags.preprocessing or flags.scale)
print("\n".join(changes))

threat = km.Linf(float(flags.epsilon))
attacks = {"pgd20": km.PGD(threat, steps=20), "autoattack": km.AutoAttack(threat)}
table = km.evaluate(network, test, attacks, limit=flags.examples, verbose=2)
print(table)

# Each image's distance to the nearest adversarial one gives the accuracy at every epsilon from one run.
distances = km.evaluate(network, test, {"fmn": km.FMN(km.Linf(1.0))}, limit=flags.examples, verbose=0)
for epsilon, accuracy in zip(*distances.curve("fmn", [each / 255 for each in (0, 1, 2, 4, 8, 16)]), strict=True):
    print(f"epsilon {round(255 * epsilon):>2}/255: {accuracy:.2%}")

print(km.diagnose(network, test, threat, limit=100))
