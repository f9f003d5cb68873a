"""Runs: one training and its score. What it was asked, where it lies, what it stands on, what came out.

A run's folder, ``data_cache/runs/<preset>/<name>/``, holds ``settings.json``, ``checkpoints/`` while it
is under way, ``model/`` (diffusers' format), ``files.json`` and ``result.json`` when it is finished. One kind
of run trains nothing: ``synthetic`` is the teacher's data set of Table 4, kept as ``images.npz``; while it is
under way, ``checkpoints/`` holds the parts of it that are drawn.

How a run is made stands in :mod:`~dkdm_lab.experiments.run_making`, how it is judged in
:mod:`~dkdm_lab.experiments.run_scores`, what it costs in :mod:`~dkdm_lab.experiments.costs`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from torch import Tensor, nn

from dkdm_lab.beyond.autoencoder import train_autoencoder
from dkdm_lab.data.images import load_images
from dkdm_lab.data.sets import judged
from dkdm_lab.data.toy import GaussianMixture
from dkdm_lab.experiments import costs, run_making, run_scores, shipped_models
from dkdm_lab.experiments.artifact import MADE_ANEW, ON_THE_WAY, Artifact, set_options
from dkdm_lab.experiments.costs import cost, curve, operations, operations_per_step
from dkdm_lab.experiments.presets import PRESETS, Preset
from dkdm_lab.experiments.run_scores import ERROR_IMAGES, SHOWN
from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.networks.folders import read_model
from dkdm_lab.pools import POOLS
from dkdm_lab.sources import Conditions
from dkdm_lab.system import budget
from dkdm_lab.system.files import once, readable
from dkdm_lab.system.paths import cache_dir, results_dir
from dkdm_lab.system.provenance import device
from dkdm_lab.system.settings import Seed, accept, kind
from dkdm_lab.teachers.pipelines import Pipeline, encode

__all__ = [
    "ERROR_IMAGES",
    "METHODS",
    "ON_THE_WAY",
    "SHOWN",
    "Run",
    "cost",
    "curve",
    "operations",
    "operations_per_step",
]

METHODS = ("teacher", "synthetic", "data-based", "data-limited", "data-free", *POOLS)

# -- which settings decide a run ----------------------------------------------------------------------

_COMMON = (
    "data", "schedule", "T", "clip", "batch_size", "steps", "samples", "curve", "mixed_precision",
    "early_stop", "reference_images",
)  # fmt: skip
# Settings that only some presets have; no result of another says anything about them.
_SPECIAL = ("sampler", "pipeline", "autoencoder", "classes", "teacher_seed", "curve_samples")
_TRAINING_OF_TEACHER = ("teacher_iterations", "teacher_lr", "teacher_ema")
_TEACHER = ("teacher", *_TRAINING_OF_TEACHER)
_STUDENT = ("student", "iterations", "lr", "ema")
_SYNTHETIC = ("synthetic_images", "synthetic_steps")
_OF_METHOD = {
    "teacher": (*_TEACHER, "flip"),
    "synthetic": (*_TEACHER, *_SYNTHETIC),
    "data-based": (*_STUDENT, "flip"),
    "data-limited": (*_TEACHER, *_STUDENT, *_SYNTHETIC, "flip", "real_fraction"),
    "data-free": (*_TEACHER, *_STUDENT, *_SYNTHETIC, "flip"),
    "iterative": (*_TEACHER, *_STUDENT, "discard"),
    "shuffled": (*_TEACHER, *_STUDENT, "discard", "warmup", "variance"),
    "dynamic": (
        *_TEACHER,
        *_STUDENT,
        "discard",
        "warmup",
        "rho",
        "storage",
        "stride",
        "variance",
        "turns",
        "replay",
    ),
}


def _deciding(preset: Preset, method: str) -> tuple[str, ...]:
    """The names of the settings that decide a run."""
    plain = {field.name: field.default for field in dataclasses.fields(Preset)}
    own = PRESETS[preset.name]
    special = [
        name for name in _SPECIAL if (getattr(preset, name), getattr(own, name)) != (plain[name], plain[name])
    ]
    if preset.classes:
        special += ["sample_guidance", *(["guidance"] if method in POOLS else [])]
    names = (*_COMMON, *_OF_METHOD[method], *special)
    if preset.pipeline:  # how a teacher that is only read was trained, its card says
        names = tuple(name for name in names if name not in _TRAINING_OF_TEACHER)
    return names


@dataclass(frozen=True)
class Run(Artifact):
    """One experiment: a preset, a method of :data:`METHODS`, a seed.

    The seed decides everything: the pool, the student's first weights, and, unless the preset has one teacher
    for all seeds (``teacher_seed``), the teacher it trains with.
    """

    preset: Preset
    method: str
    seed: int = 0

    noun = "run"

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method: found {self.method!r}, expected one of {', '.join(METHODS)}")
        accept("seed", kind(Seed), self.seed)
        p = self.preset
        if self.method == "data-limited" and p.classes:
            raise ValueError(f"data-limited: not for the class-conditional preset {p.name}")
        if self.method in ("data-free", "data-limited") and p.synthetic_images < p.batch_size:
            raise ValueError(
                f"synthetic_images: found {p.synthetic_images}, expected at least one batch, {p.batch_size}"
            )

    # -- what it is -----------------------------------------------------------------------------------

    @property
    def settings(self) -> dict:
        """All that decides the outcome, and nothing that does not; what ``settings.json`` holds."""
        if not self._of_the_book:
            return self.asked
        return self.asked | {"pipeline_weights": shipped_models.fingerprint(self.preset.pipeline)}

    @property
    def asked(self) -> dict:
        """The settings that can be said without looking at a model of the book."""
        names = _deciding(self.preset, self.method)
        return {
            "preset": self.preset.name,
            "method": self.method,
            "seed": self.seed,
            **{name: getattr(self.preset, name) for name in names},
        }

    @property
    def name(self) -> str:
        """``<method>-seed<n>``, and every setting that is not the preset's own and changes the outcome."""
        own = dataclasses.asdict(PRESETS[self.preset.name])
        settings = {k: v for k, v in self.asked.items() if k in own and k not in ON_THE_WAY}
        others = [f"{k}={v}" for k, v in settings.items() if v != own[k]]
        return "-".join([self.method, f"seed{self.seed}", *others])

    @property
    def title(self) -> str:
        return f"{self.preset.name}/{self.name}"

    @property
    def folder(self) -> Path:
        return cache_dir() / "runs" / self.preset.name / self.name

    @property
    def ledger_file(self) -> Path:
        return results_dir() / self.preset.name / f"{self.name}.json"

    @property
    def outputs(self) -> tuple[str, ...]:
        if self.method == "synthetic":
            return ("images.npz",)
        return () if self.given else ("model",)

    def command(self) -> str:
        """The options of `dkdm train` that make this run."""
        named = [f"--preset {self.preset.name}", f"--method {self.method}", f"--seed {self.seed}"]
        return " ".join([*named, *set_options(PRESETS[self.preset.name], self.preset, without=["live"])])

    @property
    def iterations(self) -> int:
        """How many iterations the run has; images, if it is a ``synthetic`` one; 0 where it only scores."""
        if self.method == "synthetic":
            return self.preset.synthetic_images
        if self.method != "teacher":
            return self.preset.iterations
        return 0 if self.given else self.preset.teacher_iterations

    @property
    def how_far(self) -> str:
        what = "image" if self.method == "synthetic" else "iteration"
        return f"{what} {self.iteration:,} of {self.iterations:,}"

    @property
    def given(self) -> bool:
        """Whether this is a teacher that is not trained here."""
        return self.method == "teacher" and bool(self.preset.pipeline or self.preset.teacher == "exact")

    @property
    def callback_at(self) -> tuple[int, ...]:
        """The iterations after which a training is scored."""
        n = self.preset.curve
        return tuple(round(self.iterations * (k + 1) / n) for k in range(n))

    @property
    def diffusion(self):
        return self.preset.diffusion()

    @property
    def conditions(self) -> Conditions | None:
        """The labels of a class-conditional preset, with the one for none after the last."""
        classes = self.preset.classes
        return Conditions.classes(classes, classes) if classes else None

    def labels(self, n: int, first: int = 0) -> Tensor | None:
        """The labels ``[n]`` of samples of a class-conditional model from number ``first`` on: each class in
        turn; None without classes."""
        return torch.arange(first, first + n) % self.preset.classes if self.preset.classes else None

    # -- what it stands on ----------------------------------------------------------------------------

    def teacher_run(self) -> Run:
        """The run whose model teaches this one."""
        return Run(self.preset, "teacher", self.seed).shared()

    def synthetic_run(self) -> Run:
        """The run whose images data-free and data-limited training use."""
        return Run(self.preset, "synthetic", self.seed).shared()

    def shared(self) -> Run:
        """The run that stands for this one: a teacher or its synthetic set is one for all seeds where the
        preset says so (``teacher_seed``), any other run itself."""
        one = self.preset.teacher_seed
        alone = one is None or self.method not in ("teacher", "synthetic")
        return self if alone else dataclasses.replace(self, seed=one)

    def needs(self) -> list[Run]:
        """The runs whose results this one uses."""
        teacher = [] if self.method in ("teacher", "data-based") else [self.teacher_run()]
        synthetic = [self.synthetic_run()] if self.method in ("data-free", "data-limited") else []
        return teacher + synthetic

    @property
    def _of_the_book(self) -> bool:
        """Whether the teacher is one of book/models, named without a folder."""
        return bool(self.preset.pipeline) and Path(self.preset.pipeline).name == self.preset.pipeline

    @cached_property
    def _pipeline(self) -> Pipeline:
        """The preset's pretrained pipeline, and the process it was trained for."""
        return _read_pipeline(self.preset, self._of_the_book)

    @property
    def latent(self) -> bool:
        """Whether its models denoise latents, which are not images yet."""
        return bool(self.preset.autoencoder or (self.preset.pipeline and self._pipeline.vae is not None))

    def vae(self, progress: bool = True) -> nn.Module | None:
        """The autoencoder whose latents this preset's models denoise, in eval mode; None in pixel space. One
        of the book's own is trained first where it is not there, once for all runs of a seed."""
        p = self.preset
        own = _own_autoencoder(self, progress) if p.autoencoder and not p.pipeline else None
        return self._pipeline.vae if p.pipeline else own

    def training_set(self) -> Tensor:
        """The real training set; in latent space encoded, once; the toy's is drawn large."""
        vae, found = self.vae(), judged(self.preset.data).training_set()
        return found if vae is None else encode(vae, found)

    def source(self, progress: bool = True):
        """The source this method trains from, seeded by the run."""
        return run_making.source(self, progress)

    # -- what came out --------------------------------------------------------------------------------

    def images(self, progress: bool = True) -> Tensor:
        """The teacher's data set, uint8 ``[N, C, H, W]`` (the toy's points and latents: float), of a
        ``synthetic`` run; generated first where it is not finished."""
        self.result(progress)
        with readable(self.folder / "images.npz", MADE_ANEW):
            return torch.from_numpy(np.load(self.folder / "images.npz")["x"])

    def model(self, progress: bool = True) -> nn.Module:
        """The trained denoiser, in eval mode; trains it first where it is not finished."""
        if self.method == "synthetic":
            raise ValueError("synthetic: this run has images, not a model")
        if self.method == "teacher" and self.preset.teacher == "exact":
            return GaussianMixture.ring().denoiser(self.diffusion)
        if self.given:
            return self._pipeline.denoiser
        self.result(progress)
        return Denoiser.from_pretrained(self.folder / "model").to(device())

    def against_teacher(self, progress: bool = True) -> dict:
        """FID' and sFID' (Sec. 12), the distance from the teacher's own distribution; measured first where
        it was not yet."""
        return run_scores.against_teacher(self, progress)

    def remaining_operations(self) -> float:
        return costs.remaining(self)

    def _make(self, progress: bool) -> None:
        run_making.make(self, progress)


def _own_autoencoder(run: Run, progress: bool) -> nn.Module:
    """The autoencoder of a preset that has one of the book's own, trained once per seed."""
    name = run.preset.autoencoder
    folder = run.folder.parent / f"{name}-seed{run.seed}"

    def make(new: Path) -> None:
        images = load_images(run.preset.data)
        vae = train_autoencoder(
            name, images, seed=run.seed, checkpoint=folder / "checkpoints", progress=progress
        )
        vae.save_pretrained(new)
        budget.kept()

    once(folder, "config.json", make)
    return read_model(folder, {"VQModel": VQModel}).eval().to(device())


def _read_pipeline(preset: Preset, of_the_book: bool) -> Pipeline:
    named = preset.pipeline
    found = Pipeline.from_pretrained(shipped_models.find(named) if of_the_book else named).to(device())
    if not np.allclose(found.diffusion.betas, preset.diffusion().betas, rtol=1e-3):
        raise ValueError(f"{named}: found {found.diffusion}, expected the betas of {preset.diffusion()}")
    return found
