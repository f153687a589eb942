"""Saves a network's weights in float16, in files that are small enough to be copied between machines."""

import keras
import numpy as np

from keras_mart import files

CHECKPOINTS = ("best", "last")
LIMIT = 16_000_000  # bytes of a file's arrays; with their names the file stays below 16 MiB


def paths(prefix, which):
    """Returns the files of a checkpoint in order, or none if not all of them exist.

    Args:
        prefix: of the files `<prefix>-<which>-<number>-of-<count>.npz`.
        which: "best" or "last".
    """
    found = set(prefix.parent.glob(f"{prefix.name}-{which}-*-of-*.npz"))
    expected = [_path(prefix, which, number, len(found)) for number in range(1, len(found) + 1)]
    return expected if found == set(expected) else []


def _path(prefix, which, number, count):
    return prefix.with_name(f"{prefix.name}-{which}-{number}-of-{count}.npz")


def write(network, prefix, which):
    """Writes a network's weights in float16, keyed by the variables' paths.

    Raises:
        ValueError: if two weights have the same path, or one is too large for a file or for float16.
    """
    with np.errstate(over="ignore"):  # the check of finite values below refuses overflows
        arrays = {each.path: keras.ops.convert_to_numpy(each).astype("float16") for each in network.weights}
    if len(arrays) < len(network.weights):
        raise ValueError("Each weight must have a unique path.")
    parts, size = [{}], 0
    for path, array in arrays.items():
        if array.nbytes > LIMIT or not np.isfinite(array).all():
            raise ValueError(f"A weight must fit into float16 and a file of {LIMIT:,} bytes. Received: {path}")
        if size + array.nbytes > LIMIT:
            parts.append({})
            size = 0
        parts[-1][path] = array
        size += array.nbytes
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for path in prefix.parent.glob(f"{prefix.name}-{which}-*-of-*.npz"):
        path.unlink()  # of an earlier training
    for number, part in enumerate(parts, start=1):
        with files.atomic_file(_path(prefix, which, number, len(parts))) as unfinished:
            np.savez(unfinished, **part)


def read(network, prefix, which):
    """Loads weights saved by `write` into a network.

    Raises:
        ValueError: if a file is missing, or the weights belong to another network.
    """
    arrays = {}
    for path in paths(prefix, which):
        with np.load(path, allow_pickle=False) as file:
            arrays |= dict(file)
    if not arrays:
        raise ValueError(f"All files of the weights must exist. Received: {prefix}-{which}-*-of-*.npz")
    shapes = {weight.path: tuple(weight.shape) for weight in network.weights}
    received = {path: array.shape for path, array in arrays.items()}
    if received != shapes:
        others = sorted(path for path in received | shapes if received.get(path) != shapes.get(path))
        raise ValueError(
            f"The weights must be of the same network. Received: {prefix}-{which}, which differs at {others[:3]}"
        )
    for weight in network.weights:
        weight.assign(arrays[weight.path])
