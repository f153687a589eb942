"""Exports a model for TensorFlow Serving and requests predictions, from the export or a server.

    python examples/serve.py run.keras cat.png dog.jpg
    python examples/serve.py run.keras cat.png --url=http://localhost:8501/v1/models/mart    # from a running server

The export needs only TensorFlow; docs/serving.md says how to start the server.
"""

import argparse
import base64
import json
import pathlib
import urllib.request

import keras
import tensorflow as tf

import keras_mart as km

parser = argparse.ArgumentParser()
parser.add_argument("model", help="a .keras file, wrapped or not")
parser.add_argument("images", nargs="+", help="PNG or JPEG files")
parser.add_argument("--directory", default="serving/mart")
parser.add_argument("--url", help="address of the model on a server")
flags = parser.parse_args()

files = [pathlib.Path(path).read_bytes() for path in flags.images]
version = km.export(keras.saving.load_model(flags.model), flags.directory)
print(f"Exported to {version}")

if flags.url is None:
    answers = tf.saved_model.load(str(version)).signatures["serve_encoded"](encoded=tf.constant(files))
    classes, probabilities = answers["classes"].numpy(), answers["probabilities"].numpy()
else:
    instances = [{"b64": base64.b64encode(file).decode()} for file in files]
    body = json.dumps({"signature_name": "serve_encoded", "instances": instances}).encode()
    with urllib.request.urlopen(f"{flags.url}:predict", body) as response:
        answers = json.load(response)["predictions"]
    classes, probabilities = ([each[name] for each in answers] for name in ("classes", "probabilities"))
for path, label, class_probabilities in zip(flags.images, classes, probabilities, strict=True):
    print(f"{path}: class {label}, probability {max(class_probabilities):.4f}")
