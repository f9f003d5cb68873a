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
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from dkdm_lab.system import budget

# -- written whole ------------------------------------------------------------------------------------

# Everything is written in a folder of such a name beside its place, and moved there when it is whole. Who
# writes there holds the lock in it; the system takes that from a process that is killed.
_SCRATCH, _LOCK, _REPLACES = ".new-", "lock", "replaces"


@contextlib.contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """A folder of one's own in ``place`` to write in, gone when the block ends. What killed processes left
    there goes first, see :func:`tidy`."""
    place.mkdir(parents=True, exist_ok=True)
    tidy(place)
    folder, lock = _locked_folder(place)
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(place: Path) -> tuple[Path, contextlib.AbstractContextManager]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=place, prefix=_SCRATCH))
        try:
            lock = _lock(folder / _LOCK, 0)
            if (folder / _LOCK).exists():
                return folder, lock
        except _NoLocks:
            return folder, contextlib.nullcontext()
        except (Timeout, FileNotFoundError):
            pass  # another process has tidied it away before it was locked
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def tidy(place: Path) -> None:
    """Remove what processes left in a folder that were killed as they wrote there, and finish what one was
    replacing. What a living process writes is under its lock and stays; where the file system gives no locks,
    or does not let us, all stays."""
    for left in place.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError, _NoLocks):
            if left.is_dir() and not left.is_symlink():
                with _lock(left / _LOCK, 0):
                    _finish(left)
                    shutil.rmtree(left)


def _finish(left: Path) -> None:
    """Put a folder into its place where a process was killed between the two renames of a replacement."""
    if not (left / _REPLACES).is_file():
        return
    target = left.parent / Path((left / _REPLACES).read_text(encoding="utf-8")).name
    for candidate in (left / "new", left / "old"):
        if candidate.is_dir() and not target.exists():
            candidate.rename(target)
            sync(target.parent)


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A path to write to instead of ``file``, and taken for it when the block ends: whole and on the disk, or
    not at all."""
    with scratch(file.parent) as folder:
        yield folder / file.name
        sync(folder / file.name)
        os.replace(folder / file.name, file)
        sync(file.parent)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A path to write a folder to instead of ``folder``, and taken for it when the block ends.

    An older one is moved aside, and goes when the new one is in its place; of a process that is killed in
    between :func:`tidy` finishes the work. One that cannot be moved, as a mount point, is filled instead.
    """
    folder = Path(os.path.realpath(folder))  # not a link to it, nor "."
    with scratch(folder.parent) as place:
        new, old = place / "new", place / "old"
        yield new
        _sync_all(new)
        if folder.exists():
            (place / _REPLACES).write_text(folder.name, encoding="utf-8")
            _sync_all(place)
            try:
                if folder == Path.cwd():
                    raise OSError(errno.EBUSY, "this process works there")
                folder.rename(old)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.EXDEV, errno.EINVAL):
                    raise
                _fill(folder, new)
                return
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        sync(folder.parent)


def _fill(folder: Path, new: Path) -> None:
    """Give a folder the entries of another in the place of its own; a file in JSON, its manifest, last."""
    names = sorted(entry.name for entry in new.iterdir())
    with added(folder, last=max(names, key=lambda name: name.endswith(".json"), default="")) as copy:
        shutil.copytree(new, copy, dirs_exist_ok=True)
    for entry in folder.iterdir():
        if entry.name not in names:
            _remove(entry)


@contextlib.contextmanager
def added(folder: Path, last: str) -> Iterator[Path]:
    """A new folder to write to. When the block ends its entries are put into ``folder``, one by one, each in
    the place of one of its name; ``last`` at the end and all forced to the disk before it, so that where it
    is, all are. For folders that hold other things and cannot be replaced, as a mount point.

    For one process at a time. A block that fails leaves ``folder`` as it was.
    """
    with scratch(folder) as place:
        new = place / "new"
        new.mkdir()
        yield new
        _sync_all(new)
        for entry in sorted(new.iterdir(), key=lambda entry: entry.name == last):
            if entry.name == last:
                sync(folder)
            if (folder / entry.name).is_dir():
                _remove(folder / entry.name)
            os.replace(entry, folder / entry.name)
        sync(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk: what was renamed is not there before."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no such call
    number = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # a file system without it
            raise
    finally:
        os.close(number)


def _sync_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if (path.is_file() or path.is_dir()) and not path.is_symlink():
            sync(path)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_ADVICE = "runs need a writable data_cache with space (set DKDM_DATA_CACHE to use another folder)"


def write_json(file: Path, value, advice: str = _ADVICE) -> None:
    """Write JSON whole or not at all. advice: as of :func:`explained`."""
    with explained(file.parent, advice), whole(file) as scratch:
        scratch.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


# -- what the system refuses ---------------------------------------------------------------------------

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


# -- read with care -----------------------------------------------------------------------------------


@contextlib.contextmanager
def readable(file: Path, advice: str) -> Iterator[None]:
    """Turn whatever goes wrong in reading a file into one sentence: the file, what is wrong with it, and
    ``advice``, what is lost and can be done. FileNotFoundError where it is not there, else ValueError."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, f"{file}: found no such file; {advice}") from error
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # each format's reader has its own kinds
        with contextlib.suppress(OSError):
            if file.is_file() and not file.stat().st_size:
                raise ValueError(f"{file}: found an empty file; {advice}") from error
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file}: cannot be read, it is damaged ({what}); {advice}") from error


def read_json(file: Path, advice: str, keys: Iterable[str] = (), kind: type = dict):
    """The value of a JSON file; a byte order mark is passed over.

    advice: what is lost where it cannot be read, and what to do. keys: that a ``dict`` must have. kind: of
    the value. Errors: as of :func:`readable`, also for another kind of value and for missing keys."""
    with readable(file, advice):
        value = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(value, kind):
            raise ValueError(f"found a {type(value).__name__}, expected a {kind.__name__}")
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"found no {missing[0]!r} in it")
        return value


# -- one process at a time ----------------------------------------------------------------------------


class _NoLocks(Exception):
    """The file system gives no locks."""


def _lock(file: Path, timeout: float) -> contextlib.AbstractContextManager:
    """A lock that is held, to be let go by ``with``. Errors: Timeout where another process has it; _NoLocks.

    A file system without locks may answer in words that the library takes for those of one that is held.
    """
    try:
        try:
            return FileLock(file).acquire(timeout=0)
        except Timeout:
            if not _gives_locks(file.parent):
                raise _NoLocks from None
            if timeout == 0:
                raise
            return FileLock(file).acquire(timeout=timeout if math.isfinite(timeout) else -1)
    except NotImplementedError as error:
        raise _NoLocks from error
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise _NoLocks from error
        raise


def _gives_locks(folder: Path) -> bool:
    try:
        import fcntl
    except ImportError:
        return True  # Windows' do
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


@contextlib.contextmanager
def alone(folder: Path, wait: bool = True) -> Iterator[None]:
    """One process at a time for ``folder``. Another waits, as long as its budget lets it, or without ``wait``
    is refused with a RuntimeError. The system lets go of a dead process's lock. A file system that gives no
    locks is warned of, and nobody waits there."""
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = _lock(folder.with_name(f".{folder.name}.lock"), budget.left() if wait else 0)
        except _NoLocks:
            warnings.warn(
                f"{folder}: the file system there gives no locks; let no second process work at this",
                stacklevel=3,
            )
            lock = contextlib.nullcontext()
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

    proof: the file in it that says it is there; a folder without it is made anew, and goes when that is done:
    checkpoints may lie in it."""
    tidy(folder.parent)  # a killed process may have been putting it into its place
    if (folder / proof).is_file():
        return
    with alone(folder, wait):
        tidy(folder.parent)
        if not (folder / proof).is_file():  # another process may have had it in its hands
            with explained(folder), whole_folder(folder) as new:
                make(new)
