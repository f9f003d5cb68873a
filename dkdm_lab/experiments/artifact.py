"""Artifacts: what is made once from its settings, kept in a folder, and read from then on.

A run of a preset and a part of a study are artifacts. Their folders lie in ``data_cache`` and hold
``result.json``, ``files.json`` (the SHA-256 of the model or the images that were made) and, of what can be
resumed, ``settings.json`` and ``checkpoints/``. A finished artifact is read, an interrupted one resumed, and
a folder made with other settings is never reused.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import shutil
from collections.abc import Iterable
from pathlib import Path

from dkdm_lab.system import distributed
from dkdm_lab.system.files import alone, read_json, sha256, tidy, write_json

# Settings that came later than the first results, and the values that those were made with.
LATER_SETTINGS = {
    "flip": False,
    "early_stop": False,
    "reference_images": None,
    "replay": 1,
    "storage": "float32",
    "stride": 1,
    "turns": 1,
    "variance": "stretched",
}
# How often and how a training is scored on its way changes nothing in where it ends.
ON_THE_WAY = {"curve", "curve_samples"}

_NUMBERS = {".safetensors", ".bin", ".pt", ".npz"}  # files of weights or images
RESULT, SETTINGS, FILES = "result.json", "settings.json", "files.json"


class Artifact(abc.ABC):
    """What a run and a part of a study have in common. A subclass says what decides it, where it lies, what
    it needs, which files it leaves, and how it is made."""

    noun: str  # what messages call it

    @property
    @abc.abstractmethod
    def settings(self) -> dict:
        """All that decides the outcome, and nothing that does not, as JSON gives it back."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """Its name among all artifacts, for messages and progress bars."""

    @property
    @abc.abstractmethod
    def folder(self) -> Path:
        """Where it lies in ``data_cache``."""

    @property
    @abc.abstractmethod
    def ledger_file(self) -> Path:
        """Where its result stands in the ledger."""

    @property
    @abc.abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """The file or folder that holds its model or its images; empty where it only scores."""

    @abc.abstractmethod
    def needs(self) -> list[Artifact]:
        """The artifacts that this one is made from."""

    @abc.abstractmethod
    def command(self) -> str:
        """The options of the command line that make it."""

    @abc.abstractmethod
    def _make(self, progress: bool) -> None:
        """Make it, with all that it needs; called by one process at a time."""

    @property
    def status(self) -> str:
        """``finished``, ``resumable`` or ``not begun``; ValueError for a folder made with other settings. A
        result whose model or images are gone or changed is not finished: they are made anew."""
        self._check_settings()
        if (self.folder / RESULT).is_file() and is_whole(self.folder, self.outputs):
            return "finished"
        return "resumable" if any((self.folder / "checkpoints").glob("[0-9]*")) else "not begun"

    @property
    def iteration(self) -> int:
        """The iteration of the newest checkpoint, of a synthetic set its number of images so far; 0 where
        there is none, or no longer."""
        return max((int(place.stem) for place in (self.folder / "checkpoints").glob("[0-9]*")), default=0)

    @property
    def how_far(self) -> str:
        """How far an interrupted one is, in words."""
        return f"iteration {self.iteration:,}"

    @property
    def given(self) -> bool:
        """Whether it is a model that is only read, and not made here."""
        return False

    def remaining_operations(self) -> float:
        """Floating-point operations that are left of it, without those of what it needs; 0 where nobody can
        say, so that it is made in the order in which it was asked for."""
        return 0.0

    def result(self, progress: bool = True, wait: bool = True) -> dict:
        """Its result: read if it is finished, else made (or resumed) first. Where another process is at it,
        ``wait`` for its end, or be refused with a RuntimeError. ValueError for other settings.

        Under `accelerate launch` all ranks call it and work together."""
        self.tidy()
        if distributed.broadcast(self.status) != "finished":
            with distributed.held_by_main(alone(self.folder, wait)):
                # Another process may have made it while this one waited.
                if distributed.broadcast(self.status) != "finished":
                    self._make(progress)
            distributed.barrier()
        return read(self.folder / RESULT, keys=("settings",))

    def tidy(self) -> None:
        """Remove what a killed process left, and what a finished artifact has no use for."""
        if distributed.rank() != 0:
            return
        tidy(self.folder.parent)  # where a folder that is replaced as a whole is written
        if not self.folder.is_dir():
            return
        tidy(self.folder)
        if (self.folder / RESULT).is_file():
            (self.folder / "curve.json").unlink(missing_ok=True)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
            (self.folder / ".checkpoints.lock").unlink(missing_ok=True)

    def _check_settings(self) -> None:
        for file in (self.folder / SETTINGS, self.folder / RESULT):
            if file.is_file():
                found = read(file, keys=() if file.name == SETTINGS else ("settings",))
                found = found if file.name == SETTINGS else found["settings"]
                check_settings(self.folder, self.noun, found, self.settings, "to make it anew")
                return


def set_options(own, here, without: Iterable[str] = ()) -> list[str]:
    """``--set`` options for the settings in which one preset or study differs from another of its kind."""
    names = [field.name for field in dataclasses.fields(own) if field.name not in without]
    changed = {name: getattr(here, name) for name in names if getattr(here, name) != getattr(own, name)}
    return [f"--set {name}={value!r}" for name, value in changed.items()]


MADE_ANEW = "what was made here is lost; move its folder away, and it is made anew"


def read(file: Path, advice: str = MADE_ANEW, keys: tuple[str, ...] = (), kind: type = dict):
    """The content of a JSON file with these ``keys``; ValueError with the ``advice`` where it is damaged."""
    return read_json(file, advice, keys, kind=kind)


def check_settings(folder: Path, noun: str, found: dict, expected: dict, purpose: str) -> None:
    """ValueError for a folder that was made with other settings than are expected, where they decide the
    outcome. purpose: what moving the folder away is for."""
    for key in sorted((found.keys() | expected.keys()) - ON_THE_WAY):
        made_with, asked = (settings.get(key, LATER_SETTINGS.get(key)) for settings in (found, expected))
        if made_with != asked:
            raise ValueError(
                f"{folder}: this {noun} was made with {key} = {made_with!r}, expected {asked!r}; "
                f"move the folder away {purpose}"
            )


def record_files(folder: Path, outputs: Iterable[str]) -> None:
    """Write down the SHA-256 of every file that an artifact leaves, before its result says that all is
    there."""
    files = [file for name in outputs for file in sorted([folder / name, *(folder / name).rglob("*")])]
    found = {file.relative_to(folder).as_posix(): sha256(file) for file in files if file.is_file()}
    write_json(folder / FILES, found)


def is_whole(folder: Path, outputs: Iterable[str] = ()) -> bool:
    """Whether an artifact's files are those that were made; of a folder from before files were written down,
    whether they are there."""
    if not (folder / FILES).is_file():
        return all(_holds_numbers(folder / name) for name in outputs)
    return all(_digest(folder / name) == expected for name, expected in read(folder / FILES).items())


def _holds_numbers(place: Path) -> bool:
    """Whether a file, or a folder's weights, are there: a configuration alone is not a model."""
    files = place.rglob("*") if place.is_dir() else [place]
    return any(file.is_file() and file.suffix in _NUMBERS for file in files)


def _digest(file: Path) -> str | None:
    if not file.is_file():
        return None
    stat = file.stat()
    return _digest_of(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4096)
def _digest_of(file: Path, _changed: int, _size: int) -> str:
    """The SHA-256 of a file as long as its time and size stay: a status is asked for often."""
    return sha256(file)
