"""Reads and writes PyTorch's checkpoint files without PyTorch.

`torch.save` writes a pickle whose tensors refer to storages, which are arrays of numbers. Since PyTorch 1.6 the file is
a zip archive that contains the pickle as `data.pkl` and each storage as a file; before, the storages followed the
pickle. A pickle can call any function by name. This reader supports only what tensors in plain containers need,
replaces PyTorch's functions by its own, and refuses everything else.
"""

import collections
import pathlib
import pickle
import struct
import zipfile
from typing import NamedTuple

import ml_dtypes
import numpy as np

# PyTorch's storage types, and the dtypes of their numbers.
STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # the first number in a file of the older format


class _Refused(ValueError):
    """Raised if a pickle needs a function or class that is not supported; the message is its name."""


class _Storage(NamedTuple):
    """[numbers] array that tensors are views of. A pickle cannot create one, so views stay inside a storage."""

    values: np.ndarray


class _Ordered(collections.OrderedDict):
    """An ordered dictionary that ignores the attributes that a pickle sets, such as PyTorch's versions of layers."""

    def __setstate__(self, state):
        pass


class _Unpickler(pickle.Unpickler):
    """Reads tensors in plain containers.

    Args:
        file: the file of the pickle.
        max_bytes: the largest size of a storage.
        open_storage: function that opens the file of a storage by its key; `None` if the storages follow the pickle.
    """

    def __init__(self, file, max_bytes, open_storage=None):
        super().__init__(file)
        self.max_bytes, self.open_storage, self.storages = max_bytes, open_storage, {}

    def find_class(self, module, name):
        if module == "torch" and name in STORAGES:
            return name
        # A new function each time, because a pickle may set attributes of the function it gets.
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda *arguments: self._tensor(*arguments)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if (module, name) == ("collections", "OrderedDict"):
            return _Ordered
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, identifier):
        kind, storage, key, _, numbers, *view = identifier
        if kind != "storage" or any(view):
            raise ValueError("a tensor's storage has an unknown format")
        if key not in self.storages:
            dtype = np.dtype(STORAGES[storage])
            if not 0 <= numbers * dtype.itemsize <= self.max_bytes:
                raise ValueError("a storage is larger than the file")
            self.storages[key] = _Storage(np.zeros(numbers, dtype))
            if self.open_storage is not None:
                with self.open_storage(key) as file:
                    self.fill(key, file)
        return self.storages[key]

    def fill(self, key, file):
        """Reads the numbers of a storage."""
        values = self.storages[key].values
        data = file.read(values.nbytes)
        if len(data) < values.nbytes:
            raise ValueError("a storage is truncated")
        values[:] = np.frombuffer(data, values.dtype)

    def _tensor(self, storage, offset, size, strides, *_):
        if not isinstance(storage, _Storage) or len(size) != len(strides) or min(offset, *size, *strides, 0) < 0:
            raise ValueError("a tensor is not a view of a storage")
        values = storage.values[offset:]
        furthest = sum((length - 1) * stride for length, stride in zip(size, strides, strict=True))
        if 0 not in size and furthest >= len(values):
            raise ValueError("a tensor reaches beyond its storage")
        return np.lib.stride_tricks.as_strided(values, size, [values.itemsize * stride for stride in strides])


def read(path):
    """Returns the content of a checkpoint, with NumPy arrays in place of tensors.

    Args:
        path: a file written by `torch.save`, or a `.safetensors` file.

    Raises:
        ValueError: the file is damaged, has another format, or contains more than tensors in plain containers.
        OSError: the file cannot be read.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix == ".safetensors":
        return _safetensors(path)
    with path.open("rb") as file:
        try:
            return (_archive if zipfile.is_zipfile(file) else _stream)(file, path.stat().st_size)
        except _Refused as error:
            raise ValueError(
                "A PyTorch checkpoint must contain only tensors in plain containers, and no code is run: save only the "
                f"state dictionary. Received: {path}, which needs {error}"
            ) from error
        except Exception as error:  # a damaged pickle may raise anything
            raise ValueError(
                f"A PyTorch checkpoint must be a complete file of torch.save. Received: {path}: {error}"
            ) from error


def _archive(file, size):
    with zipfile.ZipFile(file) as archive:
        (name,) = (each for each in archive.namelist() if each.rpartition("/")[2] == "data.pkl")
        folder = name.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        with archive.open(name) as pickled:
            return _Unpickler(pickled, size, lambda key: archive.open(f"{folder}data/{key}")).load()


def _stream(file, size):
    file.seek(0)
    magic, _, system = (_Unpickler(file, 0).load() for _ in range(3))
    if magic != STREAM_MAGIC or not system["little_endian"]:
        raise ValueError("it is not a PyTorch file, or it is big-endian")
    unpickler = _Unpickler(file, size)
    value = unpickler.load()
    for key in _Unpickler(file, 0).load():
        (numbers,) = struct.unpack("<q", file.read(8))
        if numbers != len(unpickler.storages[key].values):
            raise ValueError("a storage has another length than its tensors state")
        unpickler.fill(key, file)
    return value


def _safetensors(path):
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ValueError(
            f"A .safetensors file needs the package safetensors: pip install safetensors. Received: {path}"
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"A .safetensors file must be complete. Received: {path}: {error}") from error


def write(path, tensors):
    """Writes a state dictionary as `torch.save` does since PyTorch 1.6.

    Args:
        path: of the file.
        tensors: name to a float32 or int64 array.
    """
    with zipfile.ZipFile(path, "w") as archive:  # uncompressed, as PyTorch requires
        parts = {"data.pkl": _pickled(tensors), "byteorder": b"little", "version": b"3\n"}
        parts |= {f"data/{number}": array.tobytes() for number, array in enumerate(tensors.values())}
        for name, data in parts.items():
            # `ZipInfo` without the current date, so that equal weights make equal files.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)


def _pickled(tensors):
    """Returns the pickle of a state dictionary without importing the PyTorch functions that it refers to."""
    names = {dtype: name for name, dtype in STORAGES.items()}
    empty = _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    items = b""
    for number, (name, array) in enumerate(tensors.items()):
        storage = _name("torch", names[array.dtype.name]) + b"".join(
            map(_pickled_value, (str(number), "cpu", array.size))
        )
        storage = pickle.MARK + _pickled_value("storage") + storage + pickle.TUPLE + pickle.BINPERSID
        strides = tuple(each // array.itemsize for each in np.ascontiguousarray(array).strides[: array.ndim])
        view = b"".join(map(_pickled_value, (0, array.shape, strides, False))) + empty
        tensor = (
            _name("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + storage + view + pickle.TUPLE + pickle.REDUCE
        )
        items += _pickled_value(name) + tensor
    return pickle.PROTO + b"\x02" + empty + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def _name(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _pickled_value(value):
    """Returns the pickle of a number, a string or a tuple, without its first and last instructions."""
    return pickle.dumps(value, 2)[2:-1]
