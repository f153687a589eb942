"""The record of what was evaluated: ball, attacks, versions, and checksums of architecture, weights and data."""

import dataclasses
import hashlib
import json
import platform
import re

import keras
import numpy as np
import tensorflow as tf

from keras_mart.attacks import Attack, Transfer
from keras_mart.attacks.inference import network_of
from keras_mart.attacks.survivors import CallableAttack
from keras_mart.threats import Threat
from keras_mart.version import __version__

# Images are hashed in parts, so that they are never copied as a whole.
PART = 1024


def versions():
    """Returns the versions of Python and of the packages that compute, by name."""
    return {
        "python": platform.python_version(), "keras_mart": __version__, "keras": keras.__version__,
        "tensorflow": tf.__version__, "numpy": np.__version__,
    }  # fmt: skip


def architecture_sha256(network):
    """Returns the SHA-256 of a network's configuration without the names of its layers, `None` if it has none."""
    try:
        text = json.dumps(network.get_config(), sort_keys=True, default=keras.saving.serialize_keras_object)
    except NotImplementedError:  # a subclassed network
        return None
    # Names that Keras generates differ between processes.
    numbers = {name: str(number) for number, name in enumerate(dict.fromkeys(re.findall(r'"name": ("[^"]*")', text)))}
    text = re.sub(r'"[^"]*"', lambda found: numbers.get(found[0], found[0]), text)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_sha256(network):
    """Returns the SHA-256 of a network's weights, in order: the shape, dtype and bytes of each."""
    sums = hashlib.sha256()
    for weight in network.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        sums.update(f"{value.shape}{value.dtype.name}".encode())
        sums.update(value.tobytes())
    return sums.hexdigest()


def data_sha256(images, labels):
    """Returns the SHA-256 of the images' shape, the images as float32, and the labels as int32."""
    sums = hashlib.sha256(f"{np.shape(images)}".encode())
    for start in range(0, len(images), PART):
        sums.update(np.ascontiguousarray(images[start : start + PART], "float32"))
    sums.update(np.ascontiguousarray(labels, "int32"))
    return sums.hexdigest()


def threat(ball):
    """Returns a ball as {"norm": ..., "epsilon": ...}."""
    return {"norm": type(ball).__name__, "epsilon": ball.epsilon}


def attack(value):
    """Returns an attack as a dictionary: its class, all its parameters, and its stages if it has several."""
    if isinstance(value, CallableAttack):
        return {"class": getattr(value.function, "__name__", type(value.function).__name__)}
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Transfer):
        source = network_of(value.source)
        fields = {"source": {"name": source.name, "weights_sha256": weights_sha256(source)}, "attack": value.attack}
    entry = {"class": type(value).__name__, **{name: _parameter(each) for name, each in fields.items()}}
    if len(value.stages) > 1:
        entry["stages"] = {name: attack(stage) for name, stage in value.stages.items()}
    return entry


def _parameter(value):
    if isinstance(value, Threat):
        return threat(value)
    if isinstance(value, np.generic):
        return value.item()
    return attack(value) if isinstance(value, Attack) else value


def common_threat(attacks):
    """Returns the ball that all attacks share, `None` if they have none or several."""
    balls = {getattr(each, "threat", None) for each in attacks}
    return threat(ball) if len(balls) == 1 and (ball := balls.pop()) is not None else None
