"""Files and folders that are whole or not there, whatever interrupts those who write them."""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import shutil

# What a full disk says, what a used-up quota says, and what a limit on the size of files says.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What folders say on file systems that cannot sync them.
UNSYNCED = (errno.EINVAL, errno.ENOTSUP)
# Names of what is being written, or was when its process was killed; the number is the process's.
UNFINISHED = re.compile(r"\.unfinished-(\d+)-.+", re.DOTALL)
# What this very process is writing.
_WRITING = set()


@contextlib.contextmanager
def whole(path):
    """Gives a path to write a file at; when the block ends, the file takes the place of `path` in one step.

        with files.whole("best.keras") as unfinished:
            model.save(unfinished)

    The file is on the disk before it takes the place. A process or a machine that dies leaves the old file or the new
    one; an exception in the block leaves the old one.

    Args:
        path: str or path of a file in a folder that exists. Of a symbolic link the target is replaced.

    Yields:
        `pathlib.Path` beside it, hidden and with the same suffix; nothing is there yet.

    Raises:
        FileExistsError: `path` is a folder or a device.
        OSError: there is no room, or the file cannot be written.
    """
    path = pathlib.Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "Only a file can be replaced by a file", str(path))
    with _unfinished(path) as unfinished:
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
        _delete(unfinished)  # where both are names of one file already, neither goes
    sync(path.parent)


@contextlib.contextmanager
def whole_folder(path):
    """Gives an empty folder to fill; when the block ends, it becomes `path` in one step. Otherwise like `whole`.

    Args:
        path: str or path, in a folder that exists. Nothing may be there.

    Yields:
        `pathlib.Path` of a hidden folder beside it.

    Raises:
        FileExistsError: something is there already.
        OSError: there is no room, or the folder cannot be written.
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
def locked(path, waits=False):
    """Keeps other processes out of the block; the lock ends with its process, however that ends.

    Args:
        path: str or path of the lock's file, in a folder that exists. It stays.
        waits: whether to wait for another process that is in the block.

    Raises:
        ValueError: another process is in the block, and this one does not wait.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ValueError(
                f"One process at a time may work in {pathlib.Path(path).parent}. Received: another one does"
            ) from None
        yield


def remove(path):
    """Removes a file or a folder in one step: it is never seen in part. What is not there is not missed."""
    path = pathlib.Path(os.path.abspath(path))
    unfinished = _beside(path)
    _delete(unfinished)
    with contextlib.suppress(FileNotFoundError):
        path.rename(unfinished)
    _delete(unfinished)


def remove_unfinished(folder, alone=False):
    """Removes from a folder what killed processes were writing; what living ones write stays.

    Args:
        folder: str or path.
        alone: whether no other process can be writing there, whatever its number says: another machine's may be equal.
    """
    folder = pathlib.Path(os.path.realpath(folder))
    for path in folder.iterdir() if folder.is_dir() else ():
        form = UNFINISHED.fullmatch(path.name)
        if form and path not in _WRITING and (alone or not _another_lives(int(form[1]))):
            _delete(path)


def sync(path):
    """Returns when a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSYNCED or not os.path.isdir(path):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder):
    """Returns when a folder and all that is in it are on the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(os.path.join(parent, name))
        sync(parent)


@contextlib.contextmanager
def _unfinished(path):
    unfinished = _beside(path)
    _WRITING.add(unfinished)
    try:
        _delete(unfinished)  # of a killed process that had the same number
        yield unfinished
    except BaseException as error:
        _delete(unfinished)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise OSError(
                error.errno,
                f"There must be room for {path}, which could not be written; what was there before is untouched. "
                f"Received: {os.strerror(error.errno)}",
            ) from error
        if isinstance(error, OSError) and str(error.filename) == str(unfinished):
            error.filename = str(path)  # the name that the user knows
        raise
    finally:
        _WRITING.discard(unfinished)


def _beside(path):
    return path.with_name(f".unfinished-{os.getpid()}-{path.name}")


def _delete(path):
    """Removes a file or a folder as far as possible: it is in nobody's way, and is tried again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def _another_lives(process):
    """Whether another process than this one has that number. In a container each run may have the same."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # asks, and ends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True
