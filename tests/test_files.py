"""Files and folders are complete or absent, also after a write that fails, is killed or fills the disk."""

import contextlib
import errno
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest

from keras_mart import files


@contextlib.contextmanager
def small_files(size):
    """Limits the size of files in bytes, which fails writes as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def dead_process():
    """Returns the id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()
    return process.pid


def write_text(path):
    path.write_text("new")


def write_npz(path):
    np.savez(path, values=np.arange(3))  # would append ".npz" to any other suffix


@pytest.mark.parametrize("write", [write_text, write_npz])
def test_a_file_replaces_the_old_one_when_it_is_finished(tmp_path, write):
    path, expected = tmp_path / "kept.npz", tmp_path / "expected.npz"
    path.write_text("old")
    write(expected)
    with files.atomic_file(str(path)) as unfinished:
        write(unfinished)
        assert (unfinished.parent, unfinished.suffix, unfinished.name[0]) == (tmp_path, ".npz", ".")
        assert path.read_text() == "old"
    assert path.read_bytes() == expected.read_bytes()
    assert sorted(tmp_path.iterdir()) == [expected, path]


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "old"])
def test_an_interrupted_file_leaves_what_was_there(tmp_path, interruption, before):
    path = tmp_path / "kept.txt"
    if before:
        path.write_text(before)
    with pytest.raises(interruption), files.atomic_file(path) as unfinished:
        unfinished.write_text("half")
        raise interruption
    assert [each.read_text() for each in tmp_path.iterdir()] == ([before] if before else [])


def test_a_file_is_synced_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    path, done = tmp_path / "kept.txt", []
    sync, replace = os.fsync, os.replace

    def watched_sync(descriptor):
        done.append(("sync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def watched_replace(source, target):
        done.append(("replace", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "replace", watched_replace)
    with files.atomic_file(path) as unfinished:
        unfinished.write_text("new")
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert done == [("sync", file), ("replace", file), ("sync", folder)]


def test_a_link_stays_and_only_files_are_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with files.atomic_file(link) as unfinished:
        unfinished.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"
    for wrong in (tmp_path, pathlib.Path("/dev/null")):
        with pytest.raises(FileExistsError, match=f"A file can replace only a file: '{wrong}'"):
            files.atomic_file(wrong).__enter__()


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "missing" / "kept.txt"
    with pytest.raises(FileNotFoundError) as raised, files.atomic_file(path) as unfinished:
        unfinished.write_text("new")
    assert raised.value.filename == str(path)


def fill_device(folder):
    with files.atomic_file(folder / "kept.npz") as unfinished:
        unfinished.write_text("half")
        pathlib.Path("/dev/full").write_text("the rest")


def fill_npz(folder):
    with files.atomic_file(folder / "kept.npz") as unfinished, small_files(2000):
        np.savez(unfinished, values=np.zeros(1000))


def fill_folder(folder):
    with files.atomic_folder(folder / "new") as unfinished, small_files(2000):
        np.savez(unfinished / "arrays.npz", values=np.zeros(1000))


@pytest.mark.parametrize(
    "fill, name, number",
    [(fill_device, "kept.npz", errno.ENOSPC), (fill_npz, "kept.npz", errno.EFBIG), (fill_folder, "new", errno.EFBIG)],
)
def test_full_disk(tmp_path, fill, name, number):
    (tmp_path / "kept.npz").write_text("old")
    with pytest.raises(OSError, match=f"write {tmp_path}/{name}; .* is unchanged. Received: ") as raised:
        fill(tmp_path)
    assert raised.value.errno == number and os.strerror(number) in str(raised.value)
    assert [each.name for each in tmp_path.iterdir()] == ["kept.npz"]
    assert (tmp_path / "kept.npz").read_text() == "old"


def test_a_folder_appears_when_it_is_finished_and_on_the_disk(tmp_path, monkeypatch):
    synced, sync = set(), os.fsync

    def watched_sync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched_sync)
    with files.atomic_folder(tmp_path / "new") as unfinished:
        (unfinished / "below").mkdir()
        (unfinished / "below" / "file").write_text("text")
        assert not (tmp_path / "new").exists() and unfinished.name[0] == "."
    below = tmp_path / "new" / "below"
    assert sorted(tmp_path.rglob("*")) == [below.parent, below, below / "file"]
    assert synced == {each.stat().st_ino for each in (tmp_path, *tmp_path.rglob("*"))}
    with pytest.raises(FileExistsError, match="A folder must be new: "), files.atomic_folder(tmp_path / "new"):
        pass
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(tmp_path / "other") as unfinished:
        (unfinished / "file").write_text("half")
        raise KeyboardInterrupt
    assert [each.name for each in tmp_path.iterdir()] == ["new"]


def test_a_folder_that_was_made_in_between_is_not_overwritten(tmp_path):
    with pytest.raises(OSError), files.atomic_folder(tmp_path / "new") as unfinished:
        (unfinished / "file").write_text("mine")
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "file").write_text("theirs")
    assert [each.read_text() for each in tmp_path.rglob("file")] == ["theirs"]


def test_only_unfinished_files_of_dead_processes_are_removed(tmp_path):
    dead, living = dead_process(), os.getppid()
    for left in (f".unfinished-{dead}-a.keras", f".unfinished-{os.getpid()}-a.keras", f".unfinished-{2**40}-a.keras"):
        (tmp_path / left).write_text("half")
    (tmp_path / f".unfinished-{dead}-folder" / "below").mkdir(parents=True)
    stays = [f".unfinished-{living}-a.keras", f"unfinished-{dead}-a.keras", ".unfinished-notes", "a.keras"]
    for name in stays:
        (tmp_path / name).write_text("mine")
    with files.atomic_file(tmp_path / "b.keras") as unfinished:
        unfinished.write_text("being written")
        files.remove_unfinished(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {*stays, "b.keras"}
    files.remove_unfinished(tmp_path / "missing")


def test_a_removed_folder_is_never_seen_incomplete(tmp_path, monkeypatch):
    (tmp_path / "folder" / "below").mkdir(parents=True)
    with monkeypatch.context() as patches:
        patches.setattr(files.shutil, "rmtree", lambda *arguments, **options: None)
        files.remove(tmp_path / "folder")  # as if killed before its content was deleted
        assert not (tmp_path / "folder").exists() and any(tmp_path.iterdir())
    files.remove_unfinished(tmp_path)
    files.remove(tmp_path / "missing")
    assert not any(tmp_path.iterdir())
