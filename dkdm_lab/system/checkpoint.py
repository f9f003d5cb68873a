"""Checkpoints: all that a training is at one iteration, on disk: whole, hashed, the last few of them.

    <folder>/000001000/     one snapshot
        shared.pt           student, averaged weights, optimiser, history: the same for every rank
        rank-0.pt           that rank's source (its pool, its conditions) and random generators
        snapshot.json       format, iteration, the training's settings, the SHA-256 of each file and its own

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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from dkdm_lab.system import budget, distributed
from dkdm_lab.system.budget import OutOfTime, Stopped
from dkdm_lab.system.files import explained, read_json, scratch, sha256, sync

FORMAT = 2  # 1 had no hash of snapshot.json itself
MANIFEST = "snapshot.json"


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
        # As JSON gives them back, where a tuple is a list.
        self.folder, self.settings, self.keep = Path(folder), json.loads(json.dumps(settings)), keep

    def write(self, iteration: int, shared: dict, own: dict) -> None:
        """All ranks call it together. Errors: OSError on every rank if one could not write; what was there
        before stays as it was."""
        main, final = distributed.rank() == 0, self.folder / f"{iteration:09d}"
        with contextlib.ExitStack() as written:
            written.callback(self._go_if_empty)  # the last of them: what cannot be written leaves no folder
            problem, new = None, None
            try:
                with explained(self.folder):
                    if main:
                        new = written.enter_context(scratch(self.folder)) / final.name
                        new.mkdir()
            except OSError as error:
                problem = error
            self._agree(problem)
            new = Path(distributed.broadcast(str(new)))
            files = {f"rank-{distributed.rank()}.pt": own} | ({"shared.pt": shared} if main else {})
            hashes = {}
            try:
                with explained(self.folder):
                    hashes = {name: _save(new / name, state) for name, state in files.items()}
            except OSError as error:
                problem = error
            self._agree(problem)
            everyones = distributed.gather(hashes)
            try:
                with explained(self.folder):
                    if main:
                        hashes = {name: digest for each in everyones for name, digest in each.items()}
                        self._put(new, final, hashes)
            except OSError as error:
                problem = error
            self._agree(problem)
        budget.kept()

    def _go_if_empty(self) -> None:
        if distributed.rank() == 0:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _agree(self, problem: OSError | None) -> None:
        """Raise on every rank what one of them could not do."""
        problems = distributed.gather(None if problem is None else str(problem))
        if any(problems):
            raise problem or OSError(next(filter(None, problems)))

    def _put(self, new: Path, final: Path, hashes: dict[str, str]) -> None:
        """Give a snapshot its manifest and its place, and let the oldest go."""
        about = {
            "format": FORMAT,
            "iteration": int(final.name),
            "ranks": distributed.world_size(),
            "settings": self.settings,
            "sha256": hashes,
        }
        about["own_sha256"] = _own_hash(about)
        _write(new / MANIFEST, json.dumps(about, indent=1).encode())
        sync(new)
        if final.exists():
            shutil.rmtree(final)
        new.rename(final)
        sync(self.folder)
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)

    def newest(self) -> Checkpoint | None:
        """The newest snapshot that is whole; None where there is none at all.

        A damaged one is reported as a warning and laid aside. Errors: ValueError where all are damaged, where
        the newest sound one was written by a newer version of this program, or for a training with other
        settings; the message names an older one that would do, if there is one.
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
        return _places(self.folder)

    def _newest(self) -> tuple[Path, dict] | None:
        damaged = []
        for place in reversed(self._all()):
            try:
                about = _read(place)
                if refused := self._refusal(place, about):
                    raise ValueError(refused + self._older(place))
            except _Damaged as wrong:
                damaged.append(f"{place}: {wrong}")
                warnings.warn(f"{damaged[-1]}; this checkpoint is damaged and laid aside", stacklevel=2)
                aside = place.with_name(f"damaged-{place.name}")
                shutil.rmtree(aside, ignore_errors=True)
                place.rename(aside)
            else:
                return place, about
        if damaged:
            raise ValueError(
                f"{'; '.join(damaged)}: found no checkpoint that is whole; delete {self.folder} "
                "to start again"
            )
        return None

    def _refusal(self, place: Path, about: dict) -> str | None:
        """Why a sound snapshot is not for us, if it is not."""
        if about["format"] > FORMAT:
            return (
                f"{place}: written by a newer version of dkdm_lab (format {about['format']}, expected at "
                f"most {FORMAT})"
            )
        settings = about["settings"]
        for key in sorted(settings.keys() | self.settings.keys()):
            if settings.get(key) != self.settings.get(key):
                return (
                    f"{self.folder}: this training was begun with {key} = {settings.get(key)!r}, expected "
                    f"{self.settings.get(key)!r}; move the folder away to begin anew"
                )
        return None

    def _older(self, refused: Path) -> str:
        """What to say of a snapshot before a refused one that we could use."""
        for place in reversed([place for place in self._all() if place.name < refused.name]):
            with contextlib.suppress(_Damaged):
                if self._refusal(place, _read(place)) is None:
                    return f", or only {refused.name}, to go on from {place.name}, which is this training's"
        return ""


def leave(kind: type[Stopped], done: int, iterations: int, kept: Checkpoints | None) -> NoReturn:
    """Raise what ends a training that was asked to stop, or whose time is over, and say where it goes on."""
    where = f"saved in {kept.folder}, the same call goes on from there" if kept else "nothing was saved"
    why = f"{budget.used_up()}: " if kind is OutOfTime else ""
    raise kind(f"{why}stopped at iteration {done:,} of {iterations:,}; {where}")


def give_up(problem: str, kept: Checkpoints | None) -> NoReturn:
    """FloatingPointError for losses that have gone wrong, with the last checkpoint before they did."""
    last = kept.last() if kept else None
    where = "nothing was saved" if last is None else f"the last good checkpoint is {last}"
    raise FloatingPointError(f"{problem}; {where}")


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of named tensors: their names, types, shapes and numbers, in their order."""
    found = hashlib.sha256()
    for name, value in tensors.items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def newest_whole(folder: Path) -> Path | None:
    """The newest snapshot in a folder that is what was written, whatever its settings; None for none. Nothing
    is changed there."""
    for place in reversed(_places(folder)):
        with contextlib.suppress(_Damaged):
            _read(place)
            return place
    return None


class _Damaged(Exception):
    """What is wrong with a snapshot."""


def _places(folder: Path) -> list[Path]:
    return sorted(place for place in folder.glob("[0-9]*") if place.name.isdecimal() and place.is_dir())


def _read(place: Path) -> dict:
    """The manifest of a snapshot that is what was written; _Damaged for another. Of a newer format all but
    that is left to those who know it."""
    try:
        about = read_json(place / MANIFEST, "see below", keys=("format",))
    except (OSError, ValueError) as error:
        raise _Damaged(f"{MANIFEST} cannot be read ({error.__cause__ or error})") from error
    if isinstance(about["format"], int) and about["format"] > FORMAT:
        return about
    kinds = {"format": int, "iteration": int, "ranks": int, "settings": dict, "sha256": dict}
    for key, kind in kinds.items():
        if not isinstance(about.get(key), kind) or isinstance(about[key], bool):
            raise _Damaged(
                f"{MANIFEST} is damaged: found {key} = {about.get(key)!r}, expected {kind.__name__}"
            )
    hashed = about["format"] != 1 or "own_sha256" in about
    if hashed and about.get("own_sha256") != _own_hash(about):
        raise _Damaged(f"{MANIFEST} is not what was written")
    if about["iteration"] != int(place.name):
        raise _Damaged(f"{MANIFEST} is of iteration {about['iteration']}, not of {int(place.name)}")
    written = {"shared.pt", *(f"rank-{rank}.pt" for rank in range(about["ranks"]))}
    if about["sha256"].keys() != written:
        raise _Damaged(f"{MANIFEST} names {sorted(about['sha256'])}, expected {sorted(written)}")
    for name, digest in about["sha256"].items():
        if not (place / name).is_file():
            raise _Damaged(f"{name} is missing")
        if sha256(place / name) != digest:
            raise _Damaged(f"{name} is not what was written")
    return about


def _own_hash(about: dict) -> str:
    """Of a manifest but for this hash itself."""
    rest = {key: value for key, value in about.items() if key != "own_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


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


def _load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)
