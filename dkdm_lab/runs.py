"""Runs: one training and its score. What it was asked, where it lies, how far it is, what came out.

A run's folder, ``data_cache/runs/<preset>/<name>/``, holds ``settings.json``, ``checkpoint.pt`` while it
is under way, ``model/`` (diffusers' format) and ``result.json`` when it is finished. A finished run is
read, an interrupted one resumed, and a folder made with other settings is never reused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from dkdm_lab import networks
from dkdm_lab.data import GaussianMixture, NoisedImages, cache_dir, load_images, to_uint8
from dkdm_lab.evaluation import digits_classifier_hash, energy_distance, score
from dkdm_lab.networks import Denoiser
from dkdm_lab.pools import POOLS
from dkdm_lab.presets import PRESETS, Preset
from dkdm_lab.training import train

METHODS = ("teacher", "data-based", "data-free", *POOLS)

_COMMON = ("data", "schedule", "T", "clip", "batch_size", "steps", "samples", "curve", "mixed_precision")
_TEACHER = ("teacher", "teacher_iterations", "teacher_lr", "teacher_ema")
_STUDENT = ("student", "iterations", "lr", "ema")
_OF_METHOD = {
    "teacher": _TEACHER,
    "data-based": _STUDENT,
    "data-free": (*_TEACHER, *_STUDENT, "synthetic_images", "synthetic_steps"),
    "iterative": (*_TEACHER, *_STUDENT, "discard"),
    "shuffled": (*_TEACHER, *_STUDENT, "discard", "warmup"),
    "dynamic": (*_TEACHER, *_STUDENT, "discard", "warmup", "rho"),
}


@dataclass(frozen=True)
class Run:
    """One experiment: a preset, a method of :data:`METHODS`, a seed.

    The seed decides everything: the teacher it trains with, the pool, the student's first weights.
    """

    preset: Preset
    method: str
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method: found {self.method!r}, expected one of {', '.join(METHODS)}")

    @property
    def settings(self) -> dict:
        """All that decides the outcome, and nothing that does not; what ``settings.json`` holds."""
        names = (*_COMMON, *_OF_METHOD[self.method])
        return {
            "preset": self.preset.name,
            "method": self.method,
            "seed": self.seed,
            **{name: getattr(self.preset, name) for name in names},
        }

    @property
    def name(self) -> str:
        """``<method>-seed<n>``, and every setting that is not the preset's own."""
        own = dataclasses.asdict(PRESETS[self.preset.name])
        others = [f"{k}={v}" for k, v in self.settings.items() if k in own and v != own[k]]
        return "-".join([self.method, f"seed{self.seed}", *others])

    @property
    def folder(self) -> Path:
        return cache_dir() / "runs" / self.preset.name / self.name

    @property
    def status(self) -> str:
        """``finished``, ``resumable`` or ``not begun``; ValueError for a folder made with other settings."""
        self._check_settings()
        if (self.folder / "result.json").is_file():
            return "finished"
        return "resumable" if (self.folder / "checkpoint.pt").is_file() else "not begun"

    @property
    def diffusion(self):
        return self.preset.diffusion()

    def teacher_run(self) -> Run:
        """The run whose model teaches this one."""
        return Run(self.preset, "teacher", self.seed)

    def result(self, progress: bool = True) -> dict:
        """The result of this run: read if it is finished, else trained (or resumed) and scored first."""
        if self.status != "finished":
            self._execute(progress)
        return json.loads((self.folder / "result.json").read_text())

    def model(self, progress: bool = True) -> nn.Module:
        """The trained denoiser, in eval mode; trains it first where it is not finished."""
        if self.method == "teacher" and self.preset.teacher == "exact":
            return GaussianMixture.ring().denoiser(self.diffusion)
        self.result(progress)
        return Denoiser.from_pretrained(self.folder / "model").to(device())

    # -- execution ------------------------------------------------------------------------------------

    def source(self, progress: bool = True):
        """The source this method trains from, seeded by the run."""
        p, teacher = self.preset, None
        if self.method not in ("teacher", "data-based"):
            teacher = self.teacher_run().model(progress)
        options = {"batch_size": p.batch_size, "seed": self.seed + 1, "device": device()}
        if self.method == "data-free":
            synthetic = self.diffusion.sample(
                teacher,
                p.synthetic_images,
                p.synthetic_steps,
                seed=self.seed + 2,
                device=device(),
                progress=progress,
            )
            data = synthetic if p.data == "toy" else to_uint8(synthetic)
            source = NoisedImages(self.diffusion, data, **options)
            source.evaluations = p.synthetic_images * p.synthetic_steps
            return source
        if teacher is None:
            data = GaussianMixture.ring().sample(100_000, seed=0) if p.data == "toy" else load_images(p.data)
            return NoisedImages(self.diffusion, data, **options)
        options["discard"] = p.discard
        if self.method != "iterative":
            options["warmup"] = p.warmup
        if self.method == "dynamic":
            options["rho"] = p.rho
        return POOLS[self.method](self.diffusion, teacher, **options)

    def _execute(self, progress: bool) -> None:
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "settings.json", self.settings)
        started, p = time.perf_counter(), self.preset
        if self.method == "teacher" and p.teacher == "exact":
            self._finish({"metrics": self._score(self.model())}, started)
            return
        of_teacher = self.method == "teacher"
        iterations = p.teacher_iterations if of_teacher else p.iterations
        source = self.source(progress)
        torch.manual_seed(self.seed)
        student = networks.build(p.teacher if of_teacher else p.student).to(device())
        curve_file = self.folder / "curve.json"
        resuming = (self.folder / "checkpoint.pt").is_file()
        curve = json.loads(curve_file.read_text()) if resuming and curve_file.is_file() else []

        def evaluate(iteration, averaged, _history):
            # A run killed after a score and before its checkpoint comes by here again.
            curve[:] = [point for point in curve if point["iteration"] < iteration]
            curve.append({"iteration": iteration, **self._score(averaged)})
            write_json(curve_file, curve)

        with _explained(self.folder):
            averaged, history = train(
                student,
                source,
                self.diffusion,
                iterations,
                lr=p.teacher_lr if of_teacher else p.lr,
                ema=p.teacher_ema if of_teacher else p.ema,
                mixed_precision=p.mixed_precision if torch.cuda.is_available() else "no",
                callback=evaluate,
                callback_at=tuple(round(iterations * (k + 1) / p.curve) for k in range(p.curve)),
                checkpoint=self.folder / "checkpoint.pt",
                checkpoint_every=p.checkpoint_every,
                progress=progress,
                description=f"{p.name}: {self.name}",
            )
            averaged.save_pretrained(self.folder / "model", self.diffusion)
            loss = {key: [round(v, 6) for v in values] for key, values in vars(history).items()}
            self._finish(
                {
                    "metrics": {k: v for k, v in curve[-1].items() if k != "iteration"},
                    "curve": curve,
                    "parameters": averaged.parameter_count,
                    "teacher_evaluations": source.evaluations,
                    "student_evaluations": iterations * p.batch_size,
                    "loss": loss,
                    "resumed": resuming,  # then wall_s counts the last leg only
                },
                started,
            )

    def _finish(self, outcome: dict, started: float) -> None:
        wall = {"wall_s": round(time.perf_counter() - started, 1)}
        write_json(
            self.folder / "result.json",
            {"run": self.name, "settings": self.settings, **outcome, **wall, "made_with": provenance()},
        )
        for left in ("checkpoint.pt", "curve.json"):
            (self.folder / left).unlink(missing_ok=True)

    def _score(self, denoiser: nn.Module) -> dict:
        """The preset's metrics of samples from ``denoiser``."""
        p = self.preset
        sample_seed = self.seed + 3
        x = self.diffusion.sample(denoiser, p.samples, p.steps, seed=sample_seed, device=device())
        if p.data == "toy":
            return {
                "energy-distance": energy_distance(x, GaussianMixture.ring().sample(p.samples, seed=4)),
                "N": len(x),
            }
        if p.data == "digits":
            return score(to_uint8(x), "digits", "digits", metrics=("FID", "precision", "recall"))
        return score(
            to_uint8(x), f"{p.data}-train", "inception", metrics=("FID", "KID", "precision", "recall")
        )

    def _check_settings(self) -> None:
        file = self.folder / "settings.json"
        if not file.is_file():
            return
        found = json.loads(file.read_text())
        for key in sorted(found.keys() | self.settings.keys()):
            if found.get(key) != self.settings.get(key):
                raise ValueError(
                    f"{self.folder}: this run was made with {key} = {found.get(key)!r}, expected "
                    f"{self.settings.get(key)!r}; move the folder away to run anew"
                )


def curve(result: dict, metric: str) -> tuple[list[int], list[float]]:
    """Iterations and values of a metric over a run's training, from its result."""
    return [point["iteration"] for point in result["curve"]], [point[metric] for point in result["curve"]]


def device() -> torch.device:
    """The device that runs use: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def provenance() -> dict:
    """Versions, hardware and commit: how a number was made."""
    packages = ("torch", "diffusers", "accelerate", "torch-fidelity", "numpy")
    cores = f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else cores
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "hardware": hardware,
        "commit": _commit(),
        "digits_classifier": digits_classifier_hash(),
    }


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        ask = {"cwd": root, "capture_output": True, "text": True, "check": True}
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **ask).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "dkdm_lab"], **ask).stdout.strip()
        return commit + ("+changes" if changed else "")
    return "unknown"


def write_json(file: Path, value) -> None:
    """Write JSON whole or not at all."""
    with _explained(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            scratch.write_text(json.dumps(value, indent=1) + "\n")
            os.replace(scratch, file)
        finally:
            scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(folder: Path):
    """Turn the system's refusals to write into one clear sentence."""
    reasons = {
        errno.EACCES: "no permission to write",
        errno.EPERM: "no permission to write",
        errno.EROFS: "the file system is read-only",
        errno.ENOSPC: "no space left on the disk",
        errno.EDQUOT: "no space left in the quota",
        errno.EFBIG: "the file is larger than allowed here",
        errno.ENOTDIR: "a file stands where a folder is expected",
    }
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        if number not in reasons:
            raise
        raise OSError(
            number,
            f"{folder}: {reasons[number]}; runs need a writable data_cache with space "
            "(set DKDM_DATA_CACHE to use another folder)",
        ) from error


def _system_error(error: BaseException | None) -> int | None:
    """The system's error number behind an exception, also where torch or safetensors wrapped it."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
            return int(found.group(1))
        error = error.__cause__ or error.__context__
    return None
