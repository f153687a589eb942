"""Atomic writing of files and folders: an interrupted write leaves no incomplete file behind."""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

# Errors of a full disk, an exhausted quota and a limit on the size of files.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors of file systems that cannot sync folders.
SYNC_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP)
# Names of unfinished files and folders, with the id of the process that writes them, or did when it was killed.
UNFINISHED = re.compile(r"\.unfinished-(\d+)-.+", re.DOTALL)
# The unfinished files and folders of this process.
_WRITING: set[pathlib.Path] = set()


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write a file to; when the block ends, the file replaces `path` in one step.

        with files.atomic_file("best.keras") as unfinished:
            model.save(unfinished)

    The file is synced to the disk before it replaces the old one. If the process or the machine dies, either the old or
    the new file is there; after an exception in the block, the old one is.

    Args:
        path: str or path of a file in an existing folder. If it is a symbolic link, its target is replaced.

    Yields:
        `pathlib.Path` of a hidden file in the same folder, with the same suffix. It does not exist yet.

    Raises:
        FileExistsError: `path` is a folder or a device.
        OSError: the disk is full, or the file cannot be written.
    """
    path = pathlib.Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "A file can replace only a file", str(path))
    with _unfinished(path) as unfinished:
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
        _delete(unfinished)  # `replace` does nothing where both are hard links to one file
    sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields an empty folder to fill; when the block ends, it is renamed to `path`. Otherwise like `atomic_file`.

    Args:
        path: str or path, in an existing folder. It must not exist.

    Yields:
        `pathlib.Path` of a hidden folder in the same folder.

    Raises:
        FileExistsError: `path` exists.
        OSError: the disk is full, or the folder cannot be written.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "A folder must be new", str(path))
    path = pathlib.Path(os.path.realpath(path))
    with _unfinished(path) as unfinished:
        unfinished.mkdir()
        yield unfinished
        sync_tree(unfinished)
        unfinished.rename(path)
    sync(path.parent)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], wait: bool = False) -> Iterator[None]:
    """Locks out other processes during the block. The lock is released when its process ends, even when it is killed.

    Args:
        path: str or path of the lock file, in an existing folder. The file is not removed.
        wait: whether to wait while another process has the lock.

    Raises:
        ValueError: another process has the lock, and `wait` is false.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ValueError(
                f"Only one process at a time may work in {pathlib.Path(path).parent}. Received: another one does"
            ) from None
        yield


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a file or a folder in one step, so that a folder is never seen incomplete. It need not exist."""
    path = pathlib.Path(os.path.abspath(path))
    unfinished = _unfinished_path(path)
    _delete(unfinished)
    with contextlib.suppress(FileNotFoundError):
        path.rename(unfinished)
    _delete(unfinished)


def remove_unfinished(folder: str | os.PathLike[str], exclusive: bool = False) -> None:
    """Removes the unfinished files and folders that killed processes left in a folder, but not those of live processes.

    Args:
        folder: str or path.
        exclusive: whether no other process can be writing there. Process ids are then not looked at: on another
            machine, the same id may be in use.
    """
    folder = pathlib.Path(os.path.realpath(folder))
    for path in folder.iterdir() if folder.is_dir() else ():
        form = UNFINISHED.fullmatch(path.name)
        if form and path not in _WRITING and (exclusive or not _is_another_live_process(int(form[1]))):
            _delete(path)


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file, or the list of names in a folder, is written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in SYNC_UNSUPPORTED or not os.path.isdir(path):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: str | os.PathLike[str]) -> None:
    """Waits until a folder and everything in it are written to the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(os.path.join(parent, name))
        sync(parent)


@contextlib.contextmanager
def _unfinished(path):
    unfinished = _unfinished_path(path)
    _WRITING.add(unfinished)
    try:
        _delete(unfinished)  # left by a killed process of the same id
        yield unfinished
    except BaseException as error:
        _delete(unfinished)
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise OSError(
                error.errno,
                f"There must be enough disk space to write {path}; an existing file is unchanged. "
                f"Received: {os.strerror(error.errno)}",
            ) from error
        if isinstance(error, OSError) and str(error.filename) == str(unfinished):
            error.filename = str(path)  # the path that the user knows
        raise
    finally:
        _WRITING.discard(unfinished)


def _unfinished_path(path):
    return path.with_name(f".unfinished-{os.getpid()}-{path.name}")


def _delete(path):
    """Removes a file or a folder, ignoring errors: a hidden remainder does no harm, and is removed later."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def _is_another_live_process(process):
    """Returns whether another live process has this id. In a container, each run may have the same id."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # signal 0 only checks that the process exists
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # the process of another user
    return True
