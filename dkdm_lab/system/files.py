"""Files written whole or not at all, folders for one process at a time, and what the system says when it
refuses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from dkdm_lab.system import budget


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A path to write to instead of ``file``, and taken for it when the block ends: whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        yield scratch
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A path to write a folder to instead of ``folder``, and taken for it when the block ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        yield Path(scratch) / "new"
        if folder.exists():
            shutil.rmtree(folder)
        (Path(scratch) / "new").rename(folder)


@contextlib.contextmanager
def added(folder: Path, last: str) -> Iterator[Path]:
    """A new folder to write to. When the block ends its entries are put into ``folder``, one by one, each in
    the place of one of its name; ``last`` at the end and all forced to the disk before it, so that where it
    is, all are. For folders that hold other things and cannot be replaced, as a mount point.

    For one process at a time. A block that fails leaves ``folder`` as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / ".new"
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    scratch.mkdir()
    try:
        yield scratch
        for file in filter(Path.is_file, scratch.rglob("*")):
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        for entry in sorted(scratch.iterdir(), key=lambda entry: entry.name == last):
            if (folder / entry.name).is_dir():
                shutil.rmtree(folder / entry.name)
            os.replace(entry, folder / entry.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_ADVICE = "runs need a writable data_cache with space (set DKDM_DATA_CACHE to use another folder)"


def write_json(file: Path, value, advice: str = _ADVICE) -> None:
    """Write JSON whole or not at all. advice: as of :func:`explained`."""
    with explained(file.parent, advice), whole(file) as scratch:
        scratch.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


_REASONS = {
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "no space left in the quota",
    errno.EFBIG: "the file is larger than allowed here",
    errno.ENOTDIR: "a file stands where a folder is expected",
}


@contextlib.contextmanager
def explained(folder: Path, advice: str = _ADVICE) -> Iterator[None]:
    """Turn the system's refusals to write into one clear sentence, which ends in what can be done."""
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        if number not in _REASONS:
            raise
        raise OSError(number, f"{folder}: {_REASONS[number]}; {advice}") from error


def _system_error(error: BaseException | None) -> int | None:
    """The system's error number behind an exception, also where torch or safetensors wrapped it."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
            return int(found.group(1))
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def alone(folder: Path, wait: bool = True) -> Iterator[None]:
    """One process at a time for ``folder``. Another waits, as long as its budget lets it, or without ``wait``
    is refused with a RuntimeError. The system lets go of a dead process's lock."""
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            longest = budget.left() if wait else 0
            lock = FileLock(folder.with_name(f".{folder.name}.lock")).acquire(timeout=longest)
        except Timeout:
            if wait:
                budget.check(math.inf)  # its time is over
            raise RuntimeError(
                f"{folder}: another process is at work here; wait for it, or stop it"
            ) from None
    with lock:
        yield


def once(folder: Path, proof: str, make: Callable[[Path], None], wait: bool = True) -> None:
    """A folder that is made once, whole or not at all: ``make`` is called with a path to write it to, unless
    it is there. One process makes it; others wait, or without ``wait`` are refused as by :func:`alone`.

    proof: the file in it that says it is there; a folder without it is made anew."""
    if (folder / proof).is_file():
        return
    with alone(folder, wait):
        if not (folder / proof).is_file():  # another process may have had it in its hands
            with explained(folder), whole_folder(folder) as new:
                make(new)
