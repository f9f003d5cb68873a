"""A window: ten minutes of a machine with a GPU and no network, used by one command.

    python workflow/window.py data PARTS                       here: what the windows need, in files of 15 MB
    python workflow/window.py 1 --data PARTS --out OUT         there: the window itself, stopped in time
    python workflow/window.py take OUT                         here again: results and models into book/

1: what the ledger of cifar16 misses, the same scored on 10,000 samples, and the cost of a step at cifar10.
2: the teacher of cifar10-short, and students that have the same time each, seed 0.  3: seeds 1 and 2.

A window that is called again goes on. On another machine it goes on from the results that ``take`` put into
book/, and with --resume OUT from the teacher and the images that the last one left there too.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # where no environment was made

PART = 15 * 10**6  # bytes of a file that travels
TILE = 1000  # images of a WebP file, ten in a row
PIECE = 2**21  # values of the weights compressed together
JOBS = 10  # side by side: networks so small leave most of a GPU idle between two kernels
GATHER = 30.0  # seconds at the end: saving, stopping, and what goes home
START = 40.0  # seconds under which nothing is started: Python and its packages take 20 of them
PACKED = 4  # files of a pack that go home at most
SECONDS = 75.0  # that each student of windows 2 and 3 has
TINY_SECONDS = 2.0
TEACHER = "cifar10-short-teacher"
CALL_AGAIN = 75  # the exit code of a command whose time ended before its work
# A rehearsal on a CPU. The digits' and Inception's path are the same, only shorter.
TINY = {
    "data": "cifar16", "teacher": "cifar16-student", "student": "cifar16-student", "batch_size": 4,
    "teacher_iterations": 2, "iterations": 2, "samples": 8, "reference_images": 16, "steps": 2, "curve": 1,
    "curve_samples": None, "synthetic_images": 8, "synthetic_steps": 2, "rho": 0.002, "pipeline": None,
    "compile": None,
}  # fmt: skip


# -- the data -----------------------------------------------------------------------------------------


def pack_data(images: np.ndarray, weights: Path, out: Path, part: int = PART) -> dict:
    """Write images (uint8 ``[N, H, W, 3]``) and a file of float32 weights to a new folder, without loss, in
    files of at most ``part`` bytes; returns the manifest. ValueError where ``out`` holds anything."""
    from dkdm_lab.system.files import whole_folder, write_json

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: found files there, expected an empty or a new folder")
    raw = weights.read_bytes()
    manifest = {
        "images": {"shape": list(images.shape), "sha256": _digest(np.ascontiguousarray(images))},
        "weights": {"name": weights.name, "bytes": len(raw), "sha256": _digest(raw)},
        "parts": [],
    }
    with whole_folder(out) as new:
        new.mkdir()
        for members in _filled(itertools.chain(_tiles(images), _planes(raw)), part):
            file = new / f"part-{len(manifest['parts']):03d}.tar"
            with tarfile.open(file, "w") as tar:
                for name, data in members:
                    _add(tar, name, data)
            manifest["parts"].append(
                {"name": file.name, "bytes": file.stat().st_size, "sha256": _digest(file.read_bytes())}
            )
        write_json(new / "manifest.json", manifest)
    return manifest


def unpack_data(folder: Path) -> tuple[np.ndarray, bytes, str]:
    """Images, weights and the weights' name from what :func:`pack_data` wrote, verified; ValueError for a
    part that is missing or damaged, naming it."""
    manifest, images, planes = _manifest(folder), [], []
    for part in manifest["parts"]:
        place = folder / part["name"]
        found = _digest(place.read_bytes()) if place.is_file() else None
        if found != part["sha256"]:
            what = "nothing" if found is None else f"SHA-256 {found[:12]}"
            raise ValueError(f"{place}: found {what}, expected {part['sha256'][:12]}; carry this part again")
        with tarfile.open(place) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".webp"):
                    images.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
                else:
                    planes.append(zlib.decompress(data))
    n, h, w, _ = manifest["images"]["shape"]
    tiles = (tile.reshape(tile.shape[0] // h, h, -1, w, 3).swapaxes(1, 2) for tile in images)
    x = np.concatenate([tile.reshape(-1, h, w, 3) for tile in tiles])[:n]
    raw = b"".join(np.frombuffer(p, np.uint8).reshape(4, -1).T.tobytes() for p in planes)
    raw = raw[: manifest["weights"]["bytes"]]
    if _digest(np.ascontiguousarray(x)) != manifest["images"]["sha256"]:
        raise ValueError(f"{folder}: the images are not those that were packed; pack them anew")
    if _digest(raw) != manifest["weights"]["sha256"]:
        raise ValueError(f"{folder}: the weights are not those that were packed; pack them anew")
    return x, raw, manifest["weights"]["name"]


def _manifest(folder: Path) -> dict:
    file = folder / "manifest.json"
    if not file.is_file():
        raise ValueError(f"{folder}: found no manifest.json, expected what `window.py data` wrote")
    return json.loads(file.read_text(encoding="utf-8"))


def _tiles(images: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """WebP files of many images side by side: less than one PNG an image by a quarter. The last one is filled
    up with black."""
    n, h, w, c = images.shape
    for start in range(0, n, TILE):
        some = images[start : start + TILE]
        some = np.concatenate([some, np.zeros((-len(some) % 10, h, w, c), np.uint8)])
        tile = some.reshape(-1, 10, h, w, c).swapaxes(1, 2).reshape(-1, 10 * w, c)
        file = io.BytesIO()
        Image.fromarray(tile).save(file, "webp", lossless=True, exact=True)
        yield f"{start:06d}.webp", file.getvalue()


def _planes(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Weights in pieces: the first bytes of all values, then the second ones, and so on. Signs and exponents,
    which repeat, are so beside each other."""
    values = np.frombuffer(raw + bytes(-len(raw) % 4), np.uint8).reshape(-1, 4)
    for start in range(0, len(values), PIECE):
        yield f"{start:09d}.z", zlib.compress(values[start : start + PIECE].T.tobytes())


def _filled(blobs: Iterable[tuple[str, bytes]], part: int) -> Iterator[list[tuple[str, bytes]]]:
    """Blobs by part, as many as fit into each with the tar's own 1 KB a member and 10 KB."""
    members, size = [], 20_000
    for name, data in blobs:
        if members and size + len(data) + 1024 > part:
            yield members
            members, size = [], 20_000
        members.append((name, data))
        size += len(data) + 1024
    if members:
        yield members


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _digest(data) -> str:
    return hashlib.sha256(data).hexdigest()


def place_data(folder: Path) -> None:
    """Unpack into data_cache what is not there yet."""
    from dkdm_lab.system.files import whole
    from dkdm_lab.system.paths import cache_dir

    images = cache_dir() / "cifar10" / "train.npz"
    if images.is_file() and (cache_dir() / _manifest(folder)["weights"]["name"]).is_file():
        return
    x, raw, name = unpack_data(folder)
    with whole(images) as file:
        with file.open("wb") as opened:  # by its name numpy would add .npz
            np.savez(opened, x=x)
    with whole(cache_dir() / name) as file:
        file.write_bytes(raw)


# -- what a window makes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A command: what follows the interpreter. after: names of the jobs whose results it uses. alone: nothing
    else runs meanwhile, for it measures. timed: whether it takes --minutes."""

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    alone: bool = False
    timed: bool = True


def missing(wanted: Iterable[tuple], have: Mapping[str, dict]) -> list[Job]:
    """`dkdm train` for what the ledger misses. wanted: runs, and with each whether its FID' is wanted.
    have: the ledger's results by name. A run whose images or weights others need, which the ledger has but
    this machine has not, is made too, and not entered."""
    wanted = {run.name: (run, primed) for run, primed in wanted}
    jobs: dict[str, Job] = {}

    def lacks_prime(run) -> bool:
        """Whether the ledger is to have this run's FID' and has not."""
        return wanted.get(run.name, (run, False))[1] and "against_teacher" not in have.get(run.name, {})

    def lacks(run) -> bool:
        """Whether the ledger is to have this run, or its FID', and has not."""
        return lacks_prime(run) or (run.name in wanted and run.name not in have)

    def add(run) -> str:
        """The job that makes a run, with those before it; its name."""
        name = f"{run.preset.name}/{run.name}"
        if name in jobs or (run.status == "finished" and not lacks(run)):
            return name
        primed = lacks_prime(run)
        splits = primed and run.method == "teacher" and not run.given
        needs = [each for each in run.needs() if not each.given]
        needs += [run.synthetic_run()] if primed and not splits else []
        after = tuple(dict.fromkeys(add(each) for each in needs))
        entered = lacks(run) and (run.name not in have or not splits)
        options = (
            *(["--ledger"] if entered else []),
            *(["--against-teacher"] if primed and not splits else []),
        )
        jobs[name] = Job(name, _train(run, *options), after)
        if splits:  # FID' of a teacher that is trained here needs the images that it draws
            after = (name, add(run.synthetic_run()))
            jobs[f"{name}, FID'"] = Job(f"{name}, FID'", _train(run, "--ledger", "--against-teacher"), after)
        return name

    for run, _ in wanted.values():
        if lacks(run):
            add(run)
    return list(jobs.values())


def _train(run, *options: str) -> tuple[str, ...]:
    return ("-m", "dkdm_lab", "train", *shlex.split(run.command()), *options)


def window_1(preset, have: Mapping[str, dict], seeds: Iterable[int], samples: int, out: Path) -> list[Job]:
    """What the ledger of ``cifar16`` misses, then the same on so many samples, then the cost of a step at
    ``cifar10``, with its pool at a hundredth, which is filled anew for each row."""
    from dkdm_lab.experiments import paper

    jobs = []
    for each in (preset, preset.replace(samples=samples)):
        jobs += missing(paper.sweep(each, tuple(seeds)).values(), have)
    for method in ("dynamic", "data-based"):
        file = out / "gpu" / f"step-cifar10-switches-{method}.json"
        command = ["benchmarks/step.py", "--preset", "cifar10", "--set", "rho=0.01", "--switches"]
        command += ["--methods", method, "--iterations", "4", "--repeats", "3", "--out", str(file)]
        jobs.append(Job(file.stem, tuple(command), alone=True, timed=False))
    return jobs


def window_2(
    preset,
    have: Mapping[str, dict],
    seeds: Iterable[int],
    plan: dict | None,
    out: Path,
    seconds: float = SECONDS,
) -> list[Job]:
    """The teacher of ``cifar10-short`` and, measured, how many iterations each student has in the same time;
    or with the plan that this leaves, the students, and FID' where it is looked up."""
    from dkdm_lab.experiments import paper
    from dkdm_lab.experiments.runs import Run

    sweep = paper.sweep(preset, tuple(seeds)).values()
    if plan is None:
        first = missing([(run, False) for run, _ in sweep if run.method == "teacher"], have)
        settings = [f"--set={name}={value!r}" for name, value in _changes(preset).items()]
        command = ["workflow/window.py", "equal-time", *settings, "--seconds", f"{seconds:g}"]
        command = (*command, "--out", str(out / "gpu" / f"{PLAN}.json"))
        return [*first, Job(PLAN, command, tuple(job.name for job in first), alone=True, timed=False)]
    wanted = []
    for run, primed in sweep:
        if run.method not in ("teacher", "synthetic"):
            iterations = plan["students"][_label(run)]["iterations"]
            run = Run(run.preset.replace(iterations=iterations), run.method, run.seed)
        wanted.append((run, primed))
    return missing(wanted, have)


def publication(preset, models: Path) -> Job:
    """Put the finished teacher of ``cifar10-short`` into a folder, in 16 bits with its card."""
    from dkdm_lab.experiments.runs import Run

    teacher = Run(preset, "teacher", preset.teacher_seed)
    command = ("-m", "dkdm_lab", "publish", *_train(teacher)[3:], "--out", str(models / TEACHER))
    return Job(f"publish {TEACHER}", command, timed=False)


def equal_time(preset, seconds: float) -> dict:
    """Measure what each student of a preset costs here, before its first iteration and in each, and so how
    many it has in so many seconds. Compiling and scoring do not count."""
    from dkdm_lab.experiments import paper, speed
    from dkdm_lab.system.provenance import provenance

    students, plain = {}, None
    for run, _ in paper.sweep(preset, (0,)).values():
        if run.method in ("teacher", "synthetic"):
            continue
        if run.method in ("data-based", "data-free"):  # the same step
            plain = plain or speed.training_cost(run.preset, run.method).seconds
            step = plain
        else:
            step = speed.training_cost(run.preset, run.method).seconds
        before = speed.seconds_before(run.preset, run.method)
        students[_label(run)] = {
            "before": before,
            "step": step,
            "iterations": speed.iterations_within(seconds, before, step),
        }
        print(f"{_label(run)}: {students[_label(run)]}", flush=True)
    return {"preset": preset.name, "seconds": seconds, "students": students, "made_with": provenance()}


PLAN = "equal-time-cifar10-short"


def _label(run) -> str:
    """A student's name for all seeds."""
    from dkdm_lab.experiments.runs import Run

    return Run(run.preset, run.method, 0).name


def _changes(preset) -> dict:
    """In what a preset differs from its own entry."""
    from dkdm_lab.experiments.presets import PRESETS

    own = dataclasses.asdict(PRESETS[preset.name])
    return {name: value for name, value in dataclasses.asdict(preset).items() if value != own[name]}


# -- running ------------------------------------------------------------------------------------------


class Clock:
    """The window's time: what is left, and where in it we are."""

    def __init__(self, minutes: float):
        self.began = time.monotonic()
        self.end = self.began + 60 * minutes - GATHER

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:4.0f} s] {text}", flush=True)


def run_jobs(
    jobs: list[Job], clock: Clock, side_by_side: int, logs: Path, ended: Callable[[], None]
) -> set[str]:
    """Run jobs in their order, so many at once, each after those it needs, until all are done or the time is
    over; returns the names of those that are done. What a failed one would have made is not waited for."""
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, names = list(jobs), {}, {job.name for job in jobs}
    done, lost, stopped, left_out = set(), set(), set(), []
    try:
        while waiting or running:
            for job in [job for job, process in running.items() if process.poll() is not None]:
                process = running.pop(job)
                lines = _log(logs, job).read_text(
                    errors="replace", encoding="utf-8"
                ).strip().splitlines() or [""]
                how = {0: "done", CALL_AGAIN: "out of time, saved"}.get(process.returncode, "FAILED")
                how = "stopped" if process.returncode and job.name in stopped else how
                if process.returncode == 0:  # the scores alone, without the folder that they lie in
                    lines.append("{" + lines[-1].partition("{")[2] if "{" in lines[-1] else lines[-1])
                clock.say(f"{how}: {job.name}: {lines[-1]}")
                if process.returncode == 0:
                    done.add(job.name)
                else:
                    lost.add(job.name)
                ended()
            if clock.left < 0:
                for job, process in running.items():
                    if job.name not in stopped and (not job.timed or clock.left < -GATHER / 3):
                        process.terminate()
                        stopped.add(job.name)
                if clock.left < -2 * GATHER / 3:
                    break
            for job in list(waiting):  # those that something needs come before it
                if lost.intersection(job.after):
                    waiting.remove(job)
                    left_out.append(job)
                    lost.add(job.name)
            # One that measures waits until all before it have ended, and holds up all that come after it.
            for job in list(waiting):
                ready = all(name in done or name not in names for name in job.after)
                busy = len(running) >= side_by_side or any(other.alone for other in running)
                if clock.left < START or busy or (job.alone and (running or job is not waiting[0])):
                    break
                if ready:
                    waiting.remove(job)
                    running[job] = _start(job, clock, side_by_side, logs)
                    clock.say(f"started: {job.name}")
            if not running:
                break
            time.sleep(0.2)
    finally:
        for job, process in running.items():
            clock.say(f"killed, it goes on from its last checkpoint: {job.name}")
            process.kill()
            process.wait()
    if not_begun := [*left_out, *waiting]:
        clock.say(f"not begun: {', '.join(job.name for job in not_begun)}")
    return done


def _start(job: Job, clock: Clock, side_by_side: int, logs: Path) -> subprocess.Popen:
    threads = max(1, 2 * (os.cpu_count() or 1) // side_by_side)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "TQDM_DISABLE": "1", "PYTHONPATH": path}
    minutes = ("--minutes", f"{clock.left / 60:.2f}") if job.timed else ()
    with _log(logs, job).open("w", encoding="utf-8") as log:
        command = (sys.executable, *job.command, *minutes)
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _log(logs: Path, job: Job) -> Path:
    return logs / f"{job.name.replace('/', '_')}.log"


def window(options: argparse.Namespace) -> int:
    """One window, from the data to what goes home; 0 if all of it is made, else 75: call again."""
    clock = Clock(options.minutes)
    unpacking = subprocess.Popen([sys.executable, __file__, "unpack", str(options.data)])  # while torch loads
    from dkdm_lab.experiments import presets
    from dkdm_lab.system.paths import cache_dir, results_dir

    if unpacking.wait():
        return 1
    clock.say("the data are there")
    work = cache_dir() / ("rehearsal" if options.tiny else "window")
    results, models, logs = work / "results", work / "models", work / "logs"
    os.environ["DKDM_LEDGER"], book = str(results), results_dir()
    if options.resume and (options.resume / "pack").is_dir():
        subprocess.run(
            [sys.executable, "-m", "dkdm_lab", "unpack", str(options.resume / "pack")], cwd=ROOT, check=True
        )
    name = "cifar16" if options.window == 1 else "cifar10-short"
    preset = presets.get(name).replace(**{**(TINY if options.tiny else {}), **dict(options.settings)})
    options.out.mkdir(parents=True, exist_ok=True)

    def have(preset: str) -> dict[str, dict]:
        files = [f for place in (book, results) for f in sorted((place / preset).glob("*.json"))]
        return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}

    def home() -> None:
        gather(work, options.out, "rehearsal" if options.tiny else "results")

    def go(jobs: list[Job]) -> bool:
        done = run_jobs(jobs, clock, options.jobs, logs, home)
        return all(job.name in done for job in jobs)

    seeds = options.seeds or {1: (0, 1, 2), 2: (0,), 3: (1, 2)}[options.window]
    if options.window == 1:
        samples = 12 if options.tiny else 10_000
        jobs = window_1(preset, have(name), seeds, samples, results)
        complete = go([job for job in jobs if not (results / "gpu" / f"{job.name}.json").is_file()])
    else:
        plans = [place / "gpu" / f"{PLAN}.json" for place in (results, book)]
        complete = any(p.is_file() for p in plans) or go(
            window_2(preset, have(name), seeds, None, results, TINY_SECONDS if options.tiny else SECONDS)
        )
        if plan := next((json.loads(p.read_text(encoding="utf-8")) for p in plans if p.is_file()), None):
            there = any((place / TEACHER).is_dir() for place in (models, ROOT / "book" / "models"))
            publish = [] if there else [publication(preset, models)]
            complete = go([*publish, *window_2(preset, have(name), seeds, plan, results)]) and complete
    home()
    carry(name, options.out, clock)
    clock.say("all is made" if complete else "not all is made; the same command goes on")
    return 0 if complete else CALL_AGAIN


def gather(work: Path, out: Path, name: str = "results") -> None:
    """What goes home so far, in two files: results and logs, and the published model. name: of the first; a
    rehearsal's is not one that :func:`take` looks for."""
    from dkdm_lab.system.files import whole

    for file, folders in ((f"{name}.tar", ("results", "logs")), ("models.tar", ("models",))):
        found = [f for folder in folders for f in sorted((work / folder).rglob("*")) if f.is_file()]
        found = [f for f in found if not any(part.startswith(".") for part in f.relative_to(work).parts)]
        if found:
            with whole(out / file) as scratch, tarfile.open(scratch, "w") as tar:
                for each in found:
                    tar.add(each, each.relative_to(work).as_posix())


def carry(preset: str, out: Path, clock: Clock) -> None:
    """A pack of what the next lease's students stand on: the teacher and its images, finished or under way.
    One that would be too large to go home is left out."""
    from dkdm_lab.experiments import packing

    pack = out / "pack"
    shutil.rmtree(pack, ignore_errors=True)
    try:
        manifest = packing.pack(preset, pack, methods=("teacher", "synthetic"))
    except (ValueError, RuntimeError) as error:
        clock.say(f"nothing is packed: {error}")
        return
    if (number := len(manifest["parts"])) > PACKED:
        shutil.rmtree(pack)
        clock.say(f"{pack}: {number} files are more than {PACKED}, the pack is left out")


def take(out: Path, book: Path, replace: bool = False) -> list[str]:
    """Put a window's results and models into book/; returns what was written. ValueError, before anything is
    written, where other files lie in their place and they are not to be replaced."""
    from dkdm_lab.system.files import whole

    if not (out / "results.tar").is_file():
        raise ValueError(f"{out}: found no results.tar, expected what a window left there")
    with tempfile.TemporaryDirectory() as scratch:
        for file in (out / "results.tar", out / "models.tar"):
            if file.is_file():
                with tarfile.open(file) as tar:
                    tar.extractall(scratch, filter="data")
        found = [f for part in ("results", "models") for f in sorted((Path(scratch) / part).rglob("*"))]
        places = {f: book / f.relative_to(scratch) for f in found if f.is_file()}
        new = {f: p for f, p in places.items() if not p.is_file() or p.read_bytes() != f.read_bytes()}
        others = [place for place in new.values() if place.exists()]
        if others and not replace:
            raise ValueError(f"{others[0]}: found another file there; --replace takes the window's instead")
        for file, place in new.items():
            with whole(place) as written:
                shutil.copyfile(file, written)
    return [str(place.relative_to(book)) for place in new.values()]


def _parser() -> argparse.ArgumentParser:
    from dkdm_lab.parser import minutes
    from dkdm_lab.system.options import Command, file, folder, listed, option, setting
    from dkdm_lab.system.settings import Count, Range, Seed

    seconds = Annotated[float, Range(0, 86_400, above=True), "that each student has"]
    settings = {"action": "append", "default": [], "type": option(setting), "dest": "settings"}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Command)
    data = commands.add_parser("data", help="pack CIFAR-10's training images and Inception's weights")
    data.add_argument("out", type=option(folder))
    unpack = commands.add_parser("unpack", help="put them into data_cache, as each window does first")
    unpack.add_argument("data", type=Path)
    for number in (1, 2, 3):
        of = commands.add_parser(str(number), help=f"window {number}")
        of.add_argument("--data", type=Path, required=True)
        of.add_argument("--out", type=option(folder), required=True, help="for what goes home")
        of.add_argument("--minutes", type=minutes, default=9.0, help="all together (default: 9)")
        of.add("--jobs", Annotated[Count, "side by side"], default=JOBS)
        of.add_argument("--seeds", type=listed(Seed), help="other ones")
        of.add_argument("--resume", type=Path, metavar="OUT", help="go on from what a window left here")
        of.add_argument("--tiny", action="store_true", help="a rehearsal: two iterations, eight samples")
        of.add_argument("--set", **settings)
    measured = commands.add_parser("equal-time", help="the measurement in window 2")
    measured.add_argument("--set", **settings)
    measured.add("--seconds", seconds, default=SECONDS)
    measured.add_argument("--out", type=option(file), required=True)
    taken = commands.add_parser("take", help="put a window's results into book/")
    taken.add_argument("out", type=Path)
    taken.add_argument("--replace", action="store_true", help="other files that lie there")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.command == "data":
            from dkdm_lab.data import load_images
            from dkdm_lab.metrics import inception_weights

            images = load_images("cifar10").permute(0, 2, 3, 1).numpy()
            for part in pack_data(images, inception_weights(), options.out)["parts"]:
                print(f"{options.out / part['name']}: {part['bytes'] / 1e6:.1f} MB")
        elif options.command == "unpack":
            place_data(options.data)
        elif options.command == "equal-time":
            from dkdm_lab.experiments import presets
            from dkdm_lab.system.files import write_json

            preset = presets.get("cifar10-short").replace(**dict(options.settings))
            write_json(options.out, equal_time(preset, options.seconds))
        elif options.command == "take":
            print(*take(options.out, ROOT / "book", options.replace), sep="\n")
        else:
            options.window = int(options.command)
            return window(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"window: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
