"""A preset: all that decides an experiment but the method and the seed, each value with its range."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dkdm_lab.system.paths import cache_dir
from dkdm_lab.system.settings import (
    MOST,
    Average,
    Compile,
    Count,
    CountOrNone,
    Guidance,
    Levels,
    MixedPrecision,
    Named,
    Range,
    Rate,
    Scored,
    Seed,
    Share,
    Storage,
    Variance,
    changed,
    check,
    together,
)

if TYPE_CHECKING:  # torch takes seconds to load, and a command's help needs none of it
    from dkdm_lab.diffusion import GaussianDiffusion
    from dkdm_lab.networks import Denoiser


def _networks() -> list[str]:
    from dkdm_lab.networks import NETWORKS

    return [*NETWORKS]


def _teachers() -> list[str]:
    return [*_networks(), "exact"]


def _autoencoders() -> list[str]:
    from dkdm_lab.beyond.autoencoder import AUTOENCODERS

    return [*AUTOENCODERS]


def _data() -> list[str]:
    """Sets that the module knows, and folders of images that lie in data_cache."""
    from dkdm_lab.data import DATASETS

    folders = (place.name for place in cache_dir().glob("*") if place.is_dir())
    return [*dict.fromkeys(["toy", "digits", "cifar16", *DATASETS, *sorted(folders)])]


Network = Annotated[str, Named("a network's name", _networks)]


@functools.cache
def _described(network: str) -> Denoiser:
    """A network without weights, for its shape and what it takes and learns."""
    import torch

    from dkdm_lab.networks import build

    with torch.device("meta"):
        return build(network)


# Settings after whose change :meth:`Preset._fit` looks again.
_FITTING = {
    "data", "teacher", "student", "pipeline", "autoencoder", "classes", "variance", "reference_images",
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """Everything that decides an experiment but the method and the seed.

    Errors: ValueError for a value that is not of its type or out of its range, and for values that do not go
    together; see :mod:`dkdm_lab.system.settings`.
    """

    name: str
    data: Annotated[str, Named("a set of images that `load_images` takes, or toy", _data)]
    schedule: Annotated[Literal["cosine", "linear", "scaled_linear"], "of the noise"]
    T: Annotated[Levels, "diffusion steps"]
    clip: Annotated[bool, "clamp x_0 to [-1, 1] in reverse steps"]
    batch_size: Annotated[Count, "samples per iteration, of all processes together"]

    teacher: Annotated[
        str, Named("a network's name, or exact", _teachers), "exact: the toy's own, in closed form"
    ]
    teacher_iterations: Annotated[CountOrNone, "of its training; 0 where it is exact or read"]
    teacher_lr: Annotated[Share, "learning rate of its training; 0 where it is exact or read"]
    teacher_ema: Annotated[Average, "rate of its averaged weights"]

    student: Annotated[Network, "which the teacher is distilled to"]
    iterations: Annotated[Count, "of the student's training"]
    lr: Annotated[Rate, "learning rate of the student's training"]
    ema: Annotated[Average, "rate of the student's averaged weights"]

    rho: Annotated[float, Range(0, 1000, above=True), "Algorithm 1: |B+| = rho * T * batch_size"]
    synthetic_images: Annotated[Scored, "Table 4: what data-free training generates"]
    synthetic_steps: Annotated[Count, "sampling steps of each of them"]

    steps: Annotated[Count, "sampling steps of every evaluation"]
    samples: Annotated[Scored, "N of every evaluation"]
    warmup: Annotated[Literal["full", "respaced", "harvest"], "the shuffle denoise; the paper's is full"] = (
        "harvest"
    )
    stride: Annotated[Count, "steps by which a turn moves the dynamic pool's samples; the paper's is 1"] = 1
    variance: Annotated[Variance | None, "of the pools' long moves; None: as the pool says"] = None
    storage: Annotated[Storage, "how the dynamic pool's samples rest"] = "float32"
    turns: Annotated[Count, "batches of the dynamic pool that the teacher answers at once"] = 1
    replay: Annotated[Count, "times that the student is shown each answer of the dynamic pool"] = 1
    discard: Annotated[float, Range(0, 1, below=True), "Sec. 11: chance that a turn is not shown"] = 0.0
    curve: Annotated[CountOrNone, "evaluations over a training, the last at its end; 0 for none"] = 4
    curve_samples: Annotated[Scored | None, "N of those before the last, by FID; None: samples"] = None
    checkpoint_every: Annotated[CountOrNone, "iterations between two checkpoints; 0: only when asked"] = 1000
    mixed_precision: Annotated[MixedPrecision, "accelerate's, where a GPU is"] = "no"
    compile: Annotated[Compile | None, "a mode of torch.compile for the networks"] = None
    flip: Annotated[bool, "mirror training images at random, as ADM does"] = False
    real_fraction: Annotated[
        float, Range(0, 1, above=True, below=True), "Sec. 4.1, data-limited training: share of real images"
    ] = 0.2
    early_stop: Annotated[bool, "Table 6: report and keep the curve's best point, not its last"] = False
    reference_images: Annotated[Scored | None, "real images to compare with; None: all for training"] = None
    sampler: Annotated[Literal["ddpm", "ddim"], "of evaluations and synthetic sets"] = "ddpm"
    pipeline: Annotated[
        str | None, "a trained teacher, with its VAE: a folder, a Hub id, or a model in book/models"
    ] = None
    teacher_seed: Annotated[Seed | None, "one teacher for all seeds; None for one per seed"] = None
    autoencoder: Annotated[
        str | None, Named("an autoencoder's name", _autoencoders), "trained here; its latents are denoised"
    ] = None
    classes: Annotated[Count | None, "labels of a class-conditional teacher; one more is for none"] = None
    guidance: Annotated[Guidance, "of a class-conditional teacher while pools move; 1 for none"] = 1.0
    sample_guidance: Annotated[Guidance, "of a class-conditional model's second evaluation"] = 3.0
    equal_time: Annotated[bool, "its students have equal time, so their iterations differ"] = False
    # What `make book` changes, to fit its time.
    live: dict = field(default_factory=dict, hash=False)

    def __post_init__(self):
        check(self)
        together(self, self._rules())

    def _rules(self) -> list[tuple[str, bool, str]]:
        """What the settings ask of each other: a name, whether it is wrong, what is expected of it."""
        toy, read = self.data == "toy", bool(self.pipeline) or self.teacher == "exact"
        stopping, trained = self.early_stop, "where the teacher is trained here"
        levels = f"at most T = {self.T:,}"
        visits = f"as many levels as a whole stride visits of T = {self.T:,}, for ddim"
        return [
            ("stride", self.stride > self.T, levels),
            ("steps", self.steps > self.T, levels),
            ("synthetic_steps", self.synthetic_steps > self.T, levels),
            ("steps", not self._visits(self.steps), visits),
            ("synthetic_steps", not self._visits(self.synthetic_steps), visits),
            (
                "rho",
                round(self.rho * self.T) < 1,
                f"at least 1 / T, one batch, T = {self.T:,}",
            ),
            (
                "turns",
                self.turns > round(self.rho * self.T),
                f"at most the batches of the pool, rho * T = {round(self.rho * self.T):,}",
            ),
            ("curve", stopping and not self.curve, "at least 1 with early_stop"),
            (
                "curve_samples",
                stopping and self.curve_samples is not None,
                "None with early_stop",
            ),
            (
                "curve_samples",
                (self.curve_samples or 0) > self.samples,
                f"at most samples: {self.samples:,}",
            ),
            ("guidance", self.guidance != 1 and not self.classes, "1 where classes is None: nothing guides"),
            ("teacher", toy != (self.teacher == "exact"), "exact for the data set toy, and for no other"),
            ("student", toy != (self.student == "toy-student"), "toy-student for toy, and for no other"),
            ("pipeline", toy and self.pipeline is not None, "None: the toy's teacher is exact"),
            (
                "autoencoder",
                self.autoencoder is not None and self.data != "digits",
                "None: the book's own are for the data set digits",
            ),
            ("teacher_iterations", not read and not self.teacher_iterations, f"at least 1 {trained}"),
            ("teacher_lr", not read and not self.teacher_lr, f"above 0 {trained}"),
        ]

    def _visits(self, steps: int) -> bool:
        """Whether the sampler has so many steps: ddim goes in whole strides from level 0."""
        return self.sampler == "ddpm" or any(-(-self.T // k) == steps for k in range(1, self.T + 1))

    def replace(self, /, **changes) -> Preset:
        """This preset with other values; ValueError for a name that it does not have or a value that the
        setting may not be. Networks, data sets and models of the book must be there, and fit together."""
        found = changed(self, changes, f"preset {self.name}", ("name", "live"))
        if changes.keys() & _FITTING:
            found._fit()
        return found

    def _fit(self) -> None:
        """ValueError for a model of the book that is missing, and for networks that fit neither the images
        nor each other: what would be found out only when the teacher is trained."""
        if self.data == "toy":
            return
        from dkdm_lab.data import DATASETS
        from dkdm_lab.experiments import shipped_models

        if self.pipeline and Path(self.pipeline).name == self.pipeline:
            try:
                shipped_models.fingerprint(self.pipeline)
            except FileNotFoundError as error:
                raise ValueError(f"pipeline: found {self.pipeline!r}; {error}") from None
        sets = {"digits": ((1, 8, 8), 1797), "cifar16": ((3, 16, 16), 50_000)}  # shape and number of images
        sets |= {name: (known.shape, known.sizes["train"]) for name, known in DATASETS.items()}
        shape, size = sets.get(self.data, (None, MOST))
        teacher, student = None if self.pipeline else _described(self.teacher), _described(self.student)
        if teacher and (self.autoencoder or shape is None):
            shape = teacher.shape  # latents, or images of somebody's own
        fixed = teacher and not teacher.learns_variance
        takes, both = ("class", "labels") if self.classes else (None, "no labels")
        rules = [
            (
                "reference_images",
                (self.reference_images or 0) > size,
                f"at most {size:,}",
            ),
            (
                "student",
                student.condition != takes,
                f"a network that takes {both}",
            ),
        ]
        if teacher:
            expected = f"a network for samples of {shape}"
            rules += [
                ("teacher", teacher.shape != shape, f"{expected}, as the data set {self.data}"),
                ("student", student.shape != shape, f"{expected}, as the teacher's"),
                ("teacher", teacher.condition != takes, f"a network that takes {both}"),
                (
                    "variance",
                    fixed and self.variance in ("learned", "stretched"),
                    "None, small, large, analytic or ddim: the teacher learns none",
                ),
            ]
        together(self, rules)

    @property
    def metric(self) -> str:
        """The name of the score that decides, as results hold it."""
        return {"toy": "energy-distance", "digits": "digits-FID"}.get(self.data, "FID")

    @property
    def features(self) -> str:
        """What judges the samples: ``inception``, or ``digits`` for those."""
        return "digits" if self.data == "digits" else "inception"

    @property
    def curve_metric(self) -> str:
        """The name of the score that decides on the way, in a training's curve."""
        return self.metric if self.curve_samples is None else f"{self.metric}@{self.curve_samples}"

    def diffusion(self) -> GaussianDiffusion:
        """The preset's forward process."""
        from dkdm_lab.diffusion import GaussianDiffusion

        return getattr(GaussianDiffusion, self.schedule)(self.T, clip=self.clip)
