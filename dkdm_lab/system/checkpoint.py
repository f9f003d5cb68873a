"""Checkpoints: all that a training is at one iteration, on disk: whole, hashed, the last few of them.

    <folder>/000001000/     one snapshot
        shared.pt           student, averaged weights, optimiser, history: the same for every rank
        rank-0.pt           that rank's source (its pool, its conditions) and random generators
        snapshot.json       format, iteration, the training's settings, the SHA-256 of each file

A snapshot is written beside its place, forced to the disk and then renamed, so that a process killed at any
moment leaves the old one or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from dkdm_lab.system import budget, distributed
from dkdm_lab.system.files import explained, sha256

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """One that was read: its iteration, how many ranks wrote it, what they shared, and where it lies."""

    iteration: int
    ranks: int
    shared: dict
    folder: Path

    def own(self, rank: int) -> dict:
        """What was one rank's own."""
        return _load(self.folder / f"rank-{rank}.pt")


class Checkpoints:
    """The snapshots of one training in ``folder``, the last ``keep`` of them.

    settings: what the training was asked, in plain values; a snapshot of another is refused.
    """

    def __init__(self, folder: str | Path, settings: dict, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep: found {keep}, expected at least 1")
        self.folder, self.settings, self.keep = Path(folder), settings, keep

    def write(self, iteration: int, shared: dict, own: dict) -> None:
        """All ranks call it together. Errors: OSError on every rank if one could not write; what was there
        before stays as it was."""
        main = distributed.rank() == 0
        scratch, final = self.folder / f".{iteration:09d}", self.folder / f"{iteration:09d}"
        if main:
            for left in self.folder.glob(".[0-9]*"):  # by a process that was killed
                shutil.rmtree(left)
        distributed.barrier()
        files = {f"rank-{distributed.rank()}.pt": own}
        if main:
            files["shared.pt"] = shared
        problem, hashes = None, {}
        try:
            with explained(self.folder):
                scratch.mkdir(parents=True, exist_ok=True)
                hashes = {name: _save(scratch / name, state) for name, state in files.items()}
        except OSError as error:
            problem = error
        problems = distributed.gather(None if problem is None else str(problem))
        everyones_hashes = distributed.gather(hashes)
        if main and not any(problems):
            try:
                with explained(self.folder):
                    about = {
                        "format": FORMAT,
                        "iteration": iteration,
                        "ranks": distributed.world_size(),
                        "settings": self.settings,
                        "sha256": {
                            name: digest for each in everyones_hashes for name, digest in each.items()
                        },
                    }
                    _write(scratch / "snapshot.json", json.dumps(about, indent=1).encode())
                    _sync(scratch)
                    if final.exists():
                        shutil.rmtree(final)
                    scratch.rename(final)
                    _sync(self.folder)
                    for old in self._all()[: -self.keep]:
                        shutil.rmtree(old)
            except OSError as error:
                problem = error
        problems = [*problems, *distributed.gather(None if problem is None else str(problem))]
        if any(problems):
            if main:
                shutil.rmtree(scratch, ignore_errors=True)
                with contextlib.suppress(OSError):
                    self.folder.rmdir()  # if nothing is in it
            raise problem or OSError(next(filter(None, problems)))
        budget.kept()

    def newest(self) -> Checkpoint | None:
        """The newest snapshot that is whole; None where there is none at all.

        A damaged one is reported as a warning and laid aside. Errors: ValueError where all are damaged, where
        the newest was written by a newer version of this program, or for a training with other settings.
        """
        found = problem = None
        if distributed.rank() == 0:
            try:
                found = self._newest()
            except ValueError as error:
                problem = str(error)
        found, problem = distributed.broadcast((found, problem))
        if problem:
            raise ValueError(problem)
        if found is None:
            return None
        place, about = found
        return Checkpoint(about["iteration"], about["ranks"], _load(place / "shared.pt"), place)

    def last(self) -> Path | None:
        """Where the newest lies; None where there is none."""
        return self._all()[-1] if self._all() else None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*"))

    def _newest(self) -> tuple[Path, dict] | None:
        damaged = []
        for place in reversed(self._all()):
            wrong, about = self._check(place)
            if wrong is None:
                return place, about
            damaged.append(f"{place}: {wrong}")
            warnings.warn(f"{damaged[-1]}; this checkpoint is damaged and laid aside", stacklevel=2)
            aside = place.with_name(f"damaged-{place.name}")
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
        if damaged:
            raise ValueError(
                f"{'; '.join(damaged)}: found no checkpoint that is whole; delete {self.folder} "
                "to start again"
            )
        return None

    def _check(self, place: Path) -> tuple[str | None, dict]:
        """What is wrong with a snapshot's files, if anything, and its snapshot.json. ValueError for one that
        is sound but not for us."""
        try:
            about = json.loads((place / "snapshot.json").read_text(encoding="utf-8"))
            version, settings = about["format"], about["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"snapshot.json cannot be read ({error})", {}
        if version > FORMAT:
            raise ValueError(
                f"{place}: written by a newer version of dkdm_lab (format {version}, expected at most "
                f"{FORMAT})"
            )
        for key in sorted(settings.keys() | self.settings.keys()):
            if settings.get(key) != self.settings.get(key):
                raise ValueError(
                    f"{self.folder}: this training was begun with {key} = {settings.get(key)!r}, expected "
                    f"{self.settings.get(key)!r}; move the folder away to begin anew"
                )
        return _changed(place, about["sha256"]), about


def newest_whole(folder: Path) -> Path | None:
    """The newest snapshot in a folder whose files are what was written, whatever its settings; None for none.
    Nothing is changed there."""
    for place in sorted(folder.glob("[0-9]*"), reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if (
                _changed(place, json.loads((place / "snapshot.json").read_text(encoding="utf-8"))["sha256"])
                is None
            ):
                return place
    return None


def _changed(place: Path, hashes: dict[str, str]) -> str | None:
    """What is wrong with a snapshot's files, if anything."""
    for name, digest in hashes.items():
        if not (place / name).is_file():
            return f"{name} is missing"
        if sha256(place / name) != digest:
            return f"{name} is not what was written"
    return None


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file):
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _save(path: Path, state: dict) -> str:
    """Write a state through to the disk; returns its SHA-256."""
    with path.open("wb") as file:
        hashing = _Hashing(file)
        torch.save(state, hashing)
        file.flush()
        os.fsync(file.fileno())
    return hashing.hash.hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Force a folder's entries to the disk: a rename is not there before."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)
