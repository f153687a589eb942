"""A network's weights in float16, in files that are small enough to be carried from machine to machine."""

import keras
import numpy as np

from keras_mart import files

CHECKPOINTS = ("best", "last")
LIMIT = 16_000_000  # bytes of the arrays of a file, which with their names stays below 16 MiB


def paths(kept, which):
    """The files `<kept>-<which>-<number>-of-<count>.npz` of a checkpoint in order, none where not all are there."""
    found = set(kept.parent.glob(f"{kept.name}-{which}-*-of-*.npz"))
    expected = [_path(kept, which, number, len(found)) for number in range(1, len(found) + 1)]
    return expected if found == set(expected) else []


def _path(kept, which, number, count):
    return kept.with_name(f"{kept.name}-{which}-{number}-of-{count}.npz")


def write(network, kept, which):
    """Writes a network's weights in float16, by the variables' paths.

    Raises:
        ValueError: two of them have one path, or one is too large for a file or for float16.
    """
    with np.errstate(over="ignore"):  # which is refused below
        arrays = {each.path: keras.ops.convert_to_numpy(each).astype("float16") for each in network.weights}
    if len(arrays) < len(network.weights):
        raise ValueError("Each weight must have a path of its own.")
    parts, size = [{}], 0
    for path, array in arrays.items():
        if array.nbytes > LIMIT or not np.isfinite(array).all():
            raise ValueError(f"A weight must fit float16 and a file of {LIMIT:,} bytes. Received: {path}")
        if size + array.nbytes > LIMIT:
            parts.append({})
            size = 0
        parts[-1][path] = array
        size += array.nbytes
    kept.parent.mkdir(parents=True, exist_ok=True)
    for path in kept.parent.glob(f"{kept.name}-{which}-*-of-*.npz"):
        path.unlink()  # of a training before
    for number, part in enumerate(parts, start=1):
        with files.atomic_file(_path(kept, which, number, len(parts))) as unfinished:
            np.savez(unfinished, **part)


def read(network, kept, which):
    """Gives a network the weights that `write` kept.

    Raises:
        ValueError: a file is missing, or they are of another network.
    """
    arrays = {}
    for path in paths(kept, which):
        with np.load(path, allow_pickle=False) as file:
            arrays |= dict(file)
    if not arrays:
        raise ValueError(f"All files of the weights must be there. Received: {kept}-{which}-*-of-*.npz")
    shapes = {weight.path: tuple(weight.shape) for weight in network.weights}
    received = {path: array.shape for path, array in arrays.items()}
    if received != shapes:
        others = sorted(path for path in received | shapes if received.get(path) != shapes.get(path))
        raise ValueError(f"The weights must be of the same network. Received: {kept}-{which}, others at {others[:3]}")
    for weight in network.weights:
        weight.assign(arrays[weight.path])
