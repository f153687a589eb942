"""Arrays from npz files: memory-mapped if they are stored uncompressed, read otherwise."""

import zipfile
import zlib

import numpy as np

LOCAL_HEADER, NAME_LENGTH = 30, 26  # bytes before a member's name in a zip file; offset of the name's length
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(path, keys):
    """Returns the arrays named `keys` of the npz file at `path`.

    Uncompressed arrays are only checked for their size: they are read when they are used, and must not change until
    then.

    Raises:
        ValueError: the file or an array in it is missing or damaged.
    """
    found = array_names(path)
    missing = [key for key in keys if key not in found]
    if missing:
        raise ValueError(f"The npz archive must contain {', '.join(keys)}. Received: {path} without {missing}")
    with _archive(path) as archive:
        return [_array(archive, path, key) for key in keys]


def array_names(path):
    """Returns the names of the arrays in the npz file at `path`, as a set."""
    with _archive(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _archive(path):
    if not path.is_file():
        raise ValueError(f"An `npz:` dataset must be an existing file. Received: {path}")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"The file must be a complete npz archive. Received: {path} ({error})") from error


def _array(archive, path, key):
    member = archive.getinfo(f"{key}.npy")
    try:
        with archive.open(member) as file:
            if member.compress_type == zipfile.ZIP_STORED:
                return _memory_mapped(file, path, member)
            return np.lib.format.read_array(file, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(
            f"Arrays must be complete and numeric; objects are never unpickled. Received: `{key}` of {path} ({error})"
        ) from error


def _memory_mapped(file, path, member):
    """Returns the array of an open, uncompressed member as a memory map of its bytes in the archive."""
    shape, is_fortran, dtype = READERS[np.lib.format.read_magic(file)](file)
    size = int(np.prod(shape)) * dtype.itemsize
    if dtype.hasobject or file.tell() + size != member.file_size:
        raise ValueError(f"{member.file_size - file.tell()} bytes of {dtype} for shape {shape}")
    if not size:
        return np.zeros(shape, dtype)
    with open(path, "rb") as whole:
        whole.seek(member.header_offset + NAME_LENGTH)
        # The lengths of the name and of the extra field after it.
        lengths = np.frombuffer(whole.read(LOCAL_HEADER - NAME_LENGTH), "<u2")
    begin = member.header_offset + LOCAL_HEADER + int(lengths.sum()) + file.tell()
    return np.memmap(path, dtype, "r", begin, shape, "F" if is_fortran else "C")
