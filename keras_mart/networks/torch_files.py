"""PyTorch's checkpoint files, read and written without PyTorch.

`torch.save` writes a pickle whose tensors point to storages, which are arrays of numbers. Since PyTorch 1.6 the file is
a zip archive, with the pickle as `data.pkl` and each storage as a file in it; before, the storages stood behind the
pickle. A pickle may call any function it names. The reader here knows what tensors in plain containers need, puts its
own code in the place of PyTorch's, and refuses everything else by name.
"""

import collections
import pathlib
import pickle
import struct
import zipfile
from typing import NamedTuple

import ml_dtypes
import numpy as np

# PyTorch's storages to the dtype of their numbers.
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
STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # the first number of a file of the older form


class _Refused(ValueError):
    """A pickle asks for something that is not read; its message is the name."""


class _Storage(NamedTuple):
    """[numbers] array that tensors are views of. A pickle cannot make one, so that a view stays inside a storage."""

    values: np.ndarray


class _Ordered(collections.OrderedDict):
    """An ordered dictionary without the attributes that a pickle may set; PyTorch's has versions of layers there."""

    def __setstate__(self, state):
        pass


class _Unpickler(pickle.Unpickler):
    """Reads tensors in plain containers.

    Args:
        file: of the pickle.
        most: the number of bytes that a storage can have at most.
        opened: opens the file of a storage by its key; `None` where the storages follow later.
    """

    def __init__(self, file, most, opened=None):
        super().__init__(file)
        self.most, self.opened, self.storages = most, opened, {}

    def find_class(self, module, name):
        if module == "torch" and name in STORAGES:
            return name
        # New functions each time: a pickle may set attributes of what it is given.
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
            raise ValueError("a tensor's storage is of an unknown form")
        if key not in self.storages:
            dtype = np.dtype(STORAGES[storage])
            if not 0 <= numbers * dtype.itemsize <= self.most:
                raise ValueError("a storage is larger than the file")
            self.storages[key] = _Storage(np.zeros(numbers, dtype))
            if self.opened is not None:
                with self.opened(key) as file:
                    self.fill(key, file)
        return self.storages[key]

    def fill(self, key, file):
        """Gives a storage its numbers."""
        values = self.storages[key].values
        data = file.read(values.nbytes)
        if len(data) < values.nbytes:
            raise ValueError("a storage is cut off")
        values[:] = np.frombuffer(data, values.dtype)

    def _tensor(self, storage, offset, size, strides, *_):
        if not isinstance(storage, _Storage) or len(size) != len(strides) or min(offset, *size, *strides, 0) < 0:
            raise ValueError("a tensor is no view of a storage")
        values = storage.values[offset:]
        furthest = sum((length - 1) * stride for length, stride in zip(size, strides, strict=True))
        if 0 not in size and furthest >= len(values):
            raise ValueError("a tensor reaches beyond its storage")
        return np.lib.stride_tricks.as_strided(values, size, [values.itemsize * stride for stride in strides])


def read(path):
    """Returns what a checkpoint holds, with NumPy arrays in the place of tensors.

    Args:
        path: of a file of `torch.save`, or of a `.safetensors` file.

    Raises:
        ValueError: the file is damaged, is of another kind, or holds more than tensors in plain containers.
        OSError: it cannot be read.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix == ".safetensors":
        return _safetensors(path)
    with path.open("rb") as file:
        try:
            return (_archive if zipfile.is_zipfile(file) else _stream)(file, path.stat().st_size)
        except _Refused as error:
            raise ValueError(
                "Of a PyTorch checkpoint tensors in plain containers are read, and no code is run: save the state "
                f"dictionary by itself. Received: {path}, which asks for {error}"
            ) from error
        except Exception as error:  # a damaged pickle may raise anything
            raise ValueError(
                f"A PyTorch checkpoint must be a whole file of torch.save. Received: {path}: {error}"
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
        raise ValueError("it is not PyTorch's, or big-endian")
    unpickler = _Unpickler(file, size)
    value = unpickler.load()
    for key in _Unpickler(file, 0).load():
        (numbers,) = struct.unpack("<q", file.read(8))
        if numbers != len(unpickler.storages[key].values):
            raise ValueError("a storage is of another length than its tensors say")
        unpickler.fill(key, file)
    return value


def _safetensors(path):
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ValueError(f"A .safetensors file needs the package: pip install safetensors. Received: {path}") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"A .safetensors file must be whole. Received: {path}: {error}") from error


def write(path, tensors):
    """Writes a state dictionary as `torch.save` does since PyTorch 1.6.

    Args:
        path: of the file.
        tensors: name to a float32 or int64 array.
    """
    with zipfile.ZipFile(path, "w") as archive:  # not compressed, as PyTorch reads it
        parts = {"data.pkl": _pickled(tensors), "byteorder": b"little", "version": b"3\n"}
        parts |= {f"data/{number}": array.tobytes() for number, array in enumerate(tensors.values())}
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)  # of no date: equal weights make equal files


def _pickled(tensors):
    """The pickle of a state dictionary. It names functions of PyTorch, which `pickle.dumps` would have to import."""
    names = {dtype: name for name, dtype in STORAGES.items()}
    empty = _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    items = b""
    for number, (name, array) in enumerate(tensors.items()):
        storage = _name("torch", names[array.dtype.name]) + b"".join(map(_plain, (str(number), "cpu", array.size)))
        storage = pickle.MARK + _plain("storage") + storage + pickle.TUPLE + pickle.BINPERSID
        strides = tuple(each // array.itemsize for each in np.ascontiguousarray(array).strides[: array.ndim])
        view = b"".join(map(_plain, (0, array.shape, strides, False))) + empty
        made = _name("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + storage + view + pickle.TUPLE + pickle.REDUCE
        items += _plain(name) + made
    return pickle.PROTO + b"\x02" + empty + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def _name(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _plain(value):
    """The pickle of a number, a text or a tuple, without its first and last instruction."""
    return pickle.dumps(value, 2)[2:-1]
