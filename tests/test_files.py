"""Files that are whole or not there, what killed processes leave, locks, and files that cannot be read."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import warnings

import numpy as np
import pytest
import torch
from filelock import Timeout

from dkdm_lab.system import files
from dkdm_lab.system.files import (
    added,
    alone,
    once,
    read_json,
    readable,
    scratch,
    tidy,
    whole,
    whole_folder,
    write_json,
)

CHILDREN = multiprocessing.get_context("fork")  # these children only write files


def names(folder):
    """All that lies in a folder, but for the cache that every test has."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return [name for name in found if name != "data_cache"]


def killed(work, *arguments):
    """Let a child do some work and be killed where the work kills it."""
    child = CHILDREN.Process(target=work, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


# -- killed as they wrote -------------------------------------------------------------------------------


def in_a_file(place):
    with whole(place / "file.json") as new:
        new.write_text("half", encoding="utf-8")
        die()


def in_a_folder(place):
    with whole_folder(place / "model") as new:
        new.mkdir()
        (new / "weights").write_text("half", encoding="utf-8")
        die()


def in_adding(place):
    with added(place, "last.json") as new:
        (new / "weights").write_text("half", encoding="utf-8")
        die()


def in_json(place):
    files.sync = die
    write_json(place / "result.json", {})


@pytest.mark.parametrize("work", [in_a_file, in_a_folder, in_adding, in_json])
def test_what_a_killed_process_left_goes_with_the_next_that_writes_there(work, tmp_path):
    (tmp_path / "other").write_text("stays", encoding="utf-8")
    for _ in range(2):
        killed(work, tmp_path)
        assert len(names(tmp_path)) > 1
        with whole(tmp_path / "done") as new:
            new.write_text("", encoding="utf-8")
        assert names(tmp_path) == ["done", "other"]
        (tmp_path / "done").unlink()


def replaced(place, after):
    """Replace a folder, and be killed after so many renames."""
    count, rename = [0], files.Path.rename

    def counting(self, target):
        if count[0] == after:
            die()
        count[0] += 1
        return rename(self, target)

    files.Path.rename = counting
    with whole_folder(place / "model") as new:
        new.mkdir()
        (new / "weights").write_text("new", encoding="utf-8")
        files_sync = files.sync
        files.sync = lambda path: die() if count[0] == after == 2 else files_sync(path)


@pytest.mark.parametrize("after, left", [(0, "old"), (1, "new"), (2, "new")])
def test_of_a_replacement_one_of_the_two_folders_is_always_there(after, left, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old", encoding="utf-8")
    killed(replaced, tmp_path, after)
    tidy(tmp_path)
    assert names(tmp_path) == ["model", "model/weights"]
    assert (tmp_path / "model" / "weights").read_text(encoding="utf-8") == left


def test_what_is_made_once_is_found_after_a_kill_between_two_renames(tmp_path):
    (tmp_path / "model").mkdir()  # with checkpoints, say, but not the proof
    killed(replaced, tmp_path, 1)
    once(tmp_path / "model", "weights", lambda new: pytest.fail("it is there"))


def test_what_a_living_process_writes_is_not_touched(tmp_path):
    with whole(tmp_path / "a") as new:
        new.write_text("a", encoding="utf-8")
        child = CHILDREN.Process(target=write_json, args=(tmp_path / "b", 1))
        child.start()
        child.join()
        tidy(tmp_path)
        assert new.exists()
    assert names(tmp_path) == ["a", "b"]


def test_a_scratch_that_another_process_tidies_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    real, first = files._lock, [True]

    def robbed(file, timeout):
        if first and first.pop():
            file.parent.rmdir()
        return real(file, timeout)

    monkeypatch.setattr(files, "_lock", robbed)
    with scratch(tmp_path) as folder:
        assert folder.is_dir()
    assert names(tmp_path) == []


# -- whole or not at all --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "writer", [lambda place: whole(place / "x"), lambda place: whole_folder(place / "x")]
)
def test_a_block_that_fails_leaves_what_was_there(writer, tmp_path):
    with pytest.raises(KeyError), writer(tmp_path) as new:
        new.mkdir()
        raise KeyError
    assert names(tmp_path) == []


def test_all_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    """Each file and folder that is new, and then the folder that it comes into."""
    synced, real = [], os.fsync

    def noting(number):
        synced.append(os.readlink(f"/proc/self/fd/{number}"))
        real(number)

    monkeypatch.setattr(os, "fsync", noting)
    write_json(tmp_path / "a.json", {})
    assert [file.rsplit("/", 1)[-1] for file in synced] == ["a.json", tmp_path.name]
    synced.clear()
    with whole_folder(tmp_path / "model") as new:
        (new / "part").mkdir(parents=True)
        (new / "part" / "weights").write_bytes(b"1")
    found = [file.split("/new/")[-1].rsplit("/new", 1)[0] for file in synced]
    assert {"part", "part/weights"} < set(found) and synced[-1] == str(tmp_path)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
def test_a_folder_that_cannot_be_moved_is_filled(number, tmp_path, monkeypatch):
    place = tmp_path / "volume"
    place.mkdir()
    (place / "stale").write_text("old", encoding="utf-8")
    (place / "weights").mkdir()
    rename = files.Path.rename

    def refusing(self, target):
        if self == place:
            raise OSError(number, "a mount point")
        return rename(self, target)

    monkeypatch.setattr(files.Path, "rename", refusing)
    with whole_folder(place) as new:
        new.mkdir()
        (new / "index.json").write_text("{}", encoding="utf-8")
        (new / "weights").write_text("new", encoding="utf-8")
    assert names(tmp_path) == ["volume", "volume/index.json", "volume/weights"]


def test_the_folder_in_which_one_works_is_filled_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with whole_folder(files.Path(".")) as new:
        new.mkdir()
        (new / "weights").write_text("new", encoding="utf-8")
    assert names(files.Path(".")) == names(tmp_path) == ["weights"]


# -- locks ----------------------------------------------------------------------------------------------

NO_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL]


@pytest.fixture(params=NO_LOCKS, ids=errno.errorcode.get)
def no_locks(request, monkeypatch):
    """A file system that gives no locks."""

    def refusing(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refusing)


def test_where_there_are_no_locks_it_is_said_and_nobody_waits(no_locks, tmp_path):
    with pytest.warns(UserWarning, match="run: the file system there gives no locks; let no second process"):
        with alone(tmp_path / "run"):
            write_json(tmp_path / "a.json", 1)
    assert read_json(tmp_path / "a.json", "", kind=int) == 1


def test_where_there_are_no_locks_scratch_stays(no_locks, tmp_path):
    (tmp_path / ".new-x").mkdir()
    tidy(tmp_path)
    assert (tmp_path / ".new-x").is_dir()


def test_an_older_filelock_takes_such_a_file_system_for_a_held_lock(no_locks, tmp_path, monkeypatch):
    """3.10's words for ENOLCK, and for ENOSYS; neither is waited for."""

    class Held:
        def __init__(self, file):
            self.file = file

        def acquire(self, timeout):
            assert timeout == 0
            raise Timeout(str(self.file))

    class Unknown(Held):
        def acquire(self, timeout):
            raise NotImplementedError("FileSystem does not appear to support flock")

    for kind in (Held, Unknown):
        monkeypatch.setattr(files, "FileLock", kind)
        with pytest.warns(UserWarning, match="gives no locks"), alone(tmp_path / kind.__name__):
            pass


# -- files that cannot be read --------------------------------------------------------------------------

DAMAGED = {
    "empty": b"",
    "cut": b'{"settings": {"a',
    "zeros": bytes(100),
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "deep": b"[" * 100_000,
    "a list": b"[1]",
    "a number": b"3",
    "without its key": b'{"other": 1}',
    "UTF-16": '{"settings": 1}'.encode("utf-16"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_json_file_is_named_in_one_sentence(what, tmp_path):
    file = tmp_path / "result.json"
    file.write_bytes(DAMAGED[what])
    with pytest.raises(ValueError, match=f"^{file}: .*; move the folder away") as caught:
        read_json(file, "move the folder away", ("settings",))
    assert "\n" not in str(caught.value) and "line 1 column 1" not in str(caught.value).split("(")[0]


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"result.json: found no such file; make it again"):
        read_json(tmp_path / "result.json", "make it again")


def test_a_byte_order_mark_is_no_damage(tmp_path):
    (tmp_path / "a.json").write_text('{"ä": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json", "") == {"ä": 1}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04torn", bytes(64), b"\x80\x04."])
def test_damaged_weights_and_arrays_are_named(content, tmp_path):
    for file, load in ((tmp_path / "a.pt", torch.load), (tmp_path / "a.npz", np.load)):
        file.write_bytes(content)
        with (
            pytest.raises(ValueError, match=f"^{file}: .*; fetch it again$"),
            readable(file, "fetch it again"),
        ):
            load(file)["x"]


def test_what_is_written_is_what_is_read(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_json(tmp_path / "a" / "b.json", {"ä": [1, None]})
    assert json.loads((tmp_path / "a" / "b.json").read_text(encoding="utf-8")) == {"ä": [1, None]}
