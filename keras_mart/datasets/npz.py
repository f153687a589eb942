"""Arrays out of npz files: mapped into memory where they are stored as they are, read where they are compressed."""

import zipfile
import zlib

import numpy as np

LOCAL_HEADER, NAME_LENGTH = 30, 26  # bytes in front of a member's name in a zip file; where the name's length stands
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(path, keys):
    """Returns the arrays called `keys` of the npz file at `path`.

    Of an array that is not compressed only the size is checked: it is read where it is used, and must not change.

    Raises:
        ValueError: the file or an array in it is missing or damaged.
    """
    there = array_names(path)
    missing = [key for key in keys if key not in there]
    if missing:
        raise ValueError(f"The npz archive must hold {', '.join(keys)}. Received: {path} without {missing}")
    with _archive(path) as archive:
        return [_array(archive, path, key) for key in keys]


def array_names(path):
    """Returns the set of the names of the arrays in the npz file at `path`."""
    with _archive(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _archive(path):
    if not path.is_file():
        raise ValueError(f"An `npz:` dataset must be an existing file. Received: {path}")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"The file must be a whole npz archive. Received: {path} ({error})") from error


def _array(archive, path, key):
    member = archive.getinfo(f"{key}.npy")
    try:
        with archive.open(member) as file:
            if member.compress_type == zipfile.ZIP_STORED:
                return _memory_mapped(file, path, member)
            return np.lib.format.read_array(file, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(
            "Arrays must be whole and made of numbers; objects are never unpickled. "
            f"Received: `{key}` of {path} ({error})"
        ) from error


def _memory_mapped(file, path, member):
    """The array of a member that is open and not compressed, as a map of its place in the archive."""
    shape, is_fortran, dtype = READERS[np.lib.format.read_magic(file)](file)
    size = int(np.prod(shape)) * dtype.itemsize
    if dtype.hasobject or file.tell() + size != member.file_size:
        raise ValueError(f"{member.file_size - file.tell()} bytes of {dtype} for shape {shape}")
    if not size:
        return np.zeros(shape, dtype)
    with open(path, "rb") as whole:
        whole.seek(member.header_offset + NAME_LENGTH)
        lengths = np.frombuffer(whole.read(LOCAL_HEADER - NAME_LENGTH), "<u2")  # of the name and of what is behind it
    begin = member.header_offset + LOCAL_HEADER + int(lengths.sum()) + file.tell()
    return np.memmap(path, dtype, "r", begin, shape, "F" if is_fortran else "C")
