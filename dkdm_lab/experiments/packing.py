"""Packs: a preset's runs, finished and under way, carried from one data_cache to another in small files.

    <pack>/runs.tar.001 ...   one tar, cut into parts of at most 15 MB
    <pack>/manifest.json      format; the parts; each folder's settings, how far it is, and its files' SHA-256

Of a run under way only the newest whole checkpoint travels. Nothing in a pack depends on where it was made:
a GPU's random numbers alone are others than a CPU's (see :func:`~dkdm_lab.system.seeds.restore`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from dkdm_lab.data.images import load_images
from dkdm_lab.data.sets import judged
from dkdm_lab.experiments.artifact import FILES, RESULT, SETTINGS, check_settings, is_whole, read
from dkdm_lab.experiments.presets import PRESETS, get
from dkdm_lab.experiments.runs import METHODS
from dkdm_lab.metrics.digits import digits_classifier_hash
from dkdm_lab.metrics.statistics import statistics_file
from dkdm_lab.system.checkpoint import newest_whole
from dkdm_lab.system.files import alone, explained, scratch, sha256, whole_folder
from dkdm_lab.system.paths import cache_dir

FORMAT = 1
PART = 15 * 10**6  # bytes
CLASSIFIER = "digits-classifier.pt"
_DAMAGED = "what this run was asked is lost; move its folder away to pack the others"


def pack(
    preset: str, out: str | Path, statistics: bool = False, methods: Iterable[str] | None = None
) -> dict:
    """Write a preset's runs to a new folder ``out``, whole or not at all; returns its manifest.

    statistics: those of the real images too, where they are in data_cache: many MB of Inception's features,
    that take a machine without a GPU up to hours. methods: the runs of these alone; None for all.
    Errors: ValueError for an unknown preset, for one without runs, and where ``out`` holds anything;
    RuntimeError where another process is at work at a run.
    """
    if methods is not None and (unknown := sorted({*methods} - {*METHODS})):
        raise ValueError(f"methods: found {unknown[0]!r}, expected some of {', '.join(METHODS)}")
    known, out, cache = get(preset), Path(out), cache_dir()
    root = cache / "runs" / preset
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: found other files there, expected an empty or a new folder")
    with contextlib.ExitStack() as locks:
        folders = {}
        for folder in _run_folders(root, methods):
            if not _finished(folder):
                locks.enter_context(alone(folder, wait=False))
            if found := _look(folder):
                folders[folder.relative_to(root).as_posix()] = found
        if not folders:
            raise ValueError(f"{root}: found no run to pack, finished or with a checkpoint")
        for file in sorted(root.glob("*/config.json")):  # an autoencoder
            folders[file.parent.name] = {"settings": None, **_hashed(file.parent, file.parent.rglob("*"))}
        others = _others(known, statistics)
        manifest = {
            "format": FORMAT,
            "preset": preset,
            "classifier": digits_classifier_hash() if CLASSIFIER in others else None,
            "folders": folders,
            "others": others,
        }
        with explained(out), whole_folder(out) as new:
            new.mkdir()
            parts = _Parts(new)
            with tarfile.open(fileobj=parts, mode="w|") as tar:
                for name in _members(manifest):
                    tar.add(cache / name, name, recursive=False, filter=_without_owner)
            parts.close()
            manifest["parts"] = [
                {"name": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)}
                for file in sorted(new.iterdir())
            ]
            (new / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def unpack(folder: str | Path) -> list[str]:
    """Put a pack's runs into data_cache; returns a line for each of its folders.

    All is verified before anything is written, and a run is put in place whole or not at all. What lies here
    already, as far on as the pack's, is left as it is.
    Errors: ValueError for a folder that is no pack, one of another version, a missing or damaged part, and a
    run here that is further on than the pack's, finished with another result, or made with other settings;
    RuntimeError where another process is at work at a run that would be replaced.
    """
    folder, cache = Path(folder), cache_dir()
    manifest = _read(folder)
    root = cache / "runs" / manifest["preset"]
    wanted = _to_place(manifest, root)
    with contextlib.ExitStack() as stack, explained(cache):
        for name in wanted:
            stack.enter_context(alone(root / name, wait=False))
        wanted = _to_place(manifest, root)  # once more, now that nobody else changes them
        place = stack.enter_context(scratch(cache))
        with _opened(folder, manifest) as tar:
            tar.extractall(place / "new", filter="data")
        new = place / "new" / "runs" / manifest["preset"]
        for number, name in enumerate(wanted):
            if (root / name).exists():
                (root / name).rename(place / f"old-{number}")
            (new / name).rename(root / name)
        for name in manifest["others"]:
            if not (cache / name).exists():
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                (place / "new" / name).rename(cache / name)
    return [
        f"{manifest['preset']}/{name}: {_how_far(about)}, {'unpacked' if name in wanted else 'already here'}"
        for name, about in manifest["folders"].items()
    ]


def contents(manifest: dict) -> list[str]:
    """A line for each folder of a pack."""
    return [f"{manifest['preset']}/{name}: {_how_far(about)}" for name, about in manifest["folders"].items()]


# -- what travels -------------------------------------------------------------------------------------


def _run_folders(root: Path, methods: Iterable[str] | None) -> list[Path]:
    """Where a preset's runs lie; a name with a path in it, as of a pipeline, lies deeper."""
    files = sorted(root.rglob("settings.json"))
    if methods is not None:
        files = [file for file in files if read(file, _DAMAGED, ("method",))["method"] in methods]
    folders = [file.parent for file in files]
    return [f for f in folders if not any(part.startswith(".") for part in f.relative_to(root).parts)]


def _look(folder: Path) -> dict | None:
    """How far a run is, and what of it must travel; None where nothing was saved yet."""
    settings = read(folder / SETTINGS, _DAMAGED)
    finished, iteration = _finished(folder), 0
    names = [SETTINGS, "against_teacher.json", "curve.json", "images.npz", "samples.png"]
    names += [RESULT, FILES] if finished else []
    files = [folder / name for name in names] + sorted((folder / "model").rglob("*"))
    if not finished:
        checkpoints = folder / "checkpoints"
        saved = sorted(checkpoints.glob("[0-9]*.npz"))  # of a synthetic set: all of its parts
        if not saved and (newest := newest_whole(checkpoints)):
            saved = [newest]
            files += sorted(newest.iterdir())
        if not saved:
            return None
        iteration = int(saved[-1].stem)
        files += [file for file in saved if file.is_file()]
    about = {"settings": settings, "finished": finished, "iteration": iteration}
    return about | _hashed(folder, files)


def _finished(folder: Path) -> bool:
    """Whether a run has its result, and its model or its images are those that it made."""
    return (folder / RESULT).is_file() and is_whole(folder)


def _hashed(folder: Path, files) -> dict:
    found = {file.relative_to(folder).as_posix(): file for file in files if file.is_file()}
    return {"files": {name: sha256(found[name]) for name in sorted(found)}}


def _others(preset, statistics: bool) -> dict[str, str]:
    """What lies beside the runs and decides their scores, or saves hours, with its SHA-256."""
    cache, found = cache_dir(), []
    if judged(preset.data).features == "digits" and (cache / CLASSIFIER).is_file():
        found.append(cache / CLASSIFIER)
    if statistics and judged(preset.data).of_images and any((cache / "statistics").glob("*.pt")):
        found.append(statistics_file(load_images(preset.data, n=preset.reference_images), preset.features))
    return {file.relative_to(cache).as_posix(): sha256(file) for file in found if file.is_file()}


def _members(manifest: dict) -> dict[str, str]:
    """Every file in the tar, by its path in data_cache, with its SHA-256."""
    return {
        f"runs/{manifest['preset']}/{folder}/{name}": digest
        for folder, about in manifest["folders"].items()
        for name, digest in about["files"].items()
    } | manifest["others"]


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member


def _how_far(about: dict) -> str:
    if about["settings"] is None:
        return "an autoencoder"
    what = "image" if about["settings"]["method"] == "synthetic" else "iteration"
    return "finished" if about["finished"] else f"at {what} {about['iteration']:,}"


# -- what may be put where ----------------------------------------------------------------------------


def _read(folder: Path) -> dict:
    """The manifest of a pack that is sound, to the last file in its tar; ValueError for any other."""
    file = folder / "manifest.json"
    if not file.is_file():
        raise ValueError(f"{folder}: found no manifest.json, expected a folder that dkdm pack wrote")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: this manifest is damaged ({error})") from None
    if version != FORMAT:
        raise ValueError(f"{folder}: found a pack of format {version}, expected {FORMAT}; pack it anew")
    try:
        parts = [(part["name"], part["bytes"], part["sha256"]) for part in manifest["parts"]]
        expected, preset = _members(manifest), manifest["preset"]
        for name in (*expected, preset, *(name for name, _, _ in parts)):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"found the path {name!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: this manifest is damaged ({error})") from None
    if preset not in PRESETS:
        raise ValueError(f"{folder}: found a pack of preset {preset!r}, expected one of {', '.join(PRESETS)}")
    for name, size, digest in parts:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: this part of the pack is missing")
        if (folder / name).stat().st_size != size or sha256(folder / name) != digest:
            raise ValueError(f"{folder / name}: this part of the pack is damaged, not what was written")
    with _opened(folder, manifest) as tar:
        found = {}
        for member in tar:
            opened = tar.extractfile(member) if member.isfile() else None
            found[member.name] = opened and hashlib.file_digest(opened, "sha256").hexdigest()
    if found != expected:
        odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise ValueError(f"{folder}: {odd[0]} is not what the manifest says; pack it anew")
    return manifest


def _to_place(manifest: dict, root: Path) -> list[str]:
    """The folders of a pack that are to be put in place; ValueError where one must not be."""
    classifier = cache_dir() / CLASSIFIER
    if CLASSIFIER in manifest["others"] and classifier.is_file():
        if digits_classifier_hash() != manifest["classifier"]:
            raise ValueError(
                f"{classifier}: this digits classifier is not the pack's, so that their scores could not be "
                "compared; move it away to take the pack's"
            )
    return [name for name, about in manifest["folders"].items() if _is_to_place(root / name, about)]


def _is_to_place(folder: Path, packed: dict) -> bool:
    if not folder.exists() or not any(folder.iterdir()):
        return True
    away = "move the folder away to take the pack's"
    if packed["settings"] is None or not (folder / "settings.json").is_file():
        if _hashed(folder, folder.rglob("*"))["files"] == packed["files"]:
            return False
        raise ValueError(f"{folder}: found other files here than the pack's; {away}")
    settings = read(folder / SETTINGS, _DAMAGED)
    check_settings(folder, "run", settings, packed["settings"], "to take the pack's")
    here = _look(folder)
    if here is None:
        return True
    if here["finished"] and packed["finished"]:
        if here["files"]["result.json"] != packed["files"]["result.json"]:
            raise ValueError(
                f"{folder}: the run here is finished with another result than the pack's; {away}"
            )
        return bool(packed["files"].keys() - here["files"].keys())  # as its FID'
    if here["finished"] or (not packed["finished"] and here["iteration"] > packed["iteration"]):
        raise ValueError(
            f"{folder}: the run here is further on ({_how_far(here)}) than the pack's ({_how_far(packed)}); "
            f"{away}"
        )
    return packed["finished"] or packed["iteration"] > here["iteration"]


# -- one tar in parts ---------------------------------------------------------------------------------


class _Parts:
    """A file to write to, in parts of at most :data:`PART` bytes."""

    def __init__(self, folder: Path):
        self.folder, self._file, self._number, self._room = folder, None, 0, 0

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while rest:
            if self._room == 0:
                self.close()
                self._number, self._room = self._number + 1, PART
                self._file = (self.folder / f"runs.tar.{self._number:03d}").open("wb")
            self._file.write(rest[: self._room])
            self._room, rest = self._room - len(rest[: self._room]), rest[self._room :]
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Joined:
    """Parts to read from as one file."""

    def __init__(self, files: list[Path]):
        self._files, self._file = list(files), None

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (self._file or self._files):
            self._file = self._file or self._files.pop(0).open("rb")
            piece = self._file.read(size - len(data))
            data += piece
            if not piece:
                self.close()
        return data

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


@contextlib.contextmanager
def _opened(folder: Path, manifest: dict) -> Iterator[tarfile.TarFile]:
    """The tar of a pack, to be read once from its beginning."""
    joined = _Joined([folder / part["name"] for part in manifest["parts"]])
    with contextlib.closing(joined), tarfile.open(fileobj=joined, mode="r|") as tar:
        yield tar
