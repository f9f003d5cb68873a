"""The hyperparameter tables as data: one preset a data set, every value with the table it comes from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from dkdm_lab.diffusion import GaussianDiffusion


@dataclass(frozen=True)
class Preset:
    """Everything that decides an experiment but the method and the seed."""

    name: str
    data: str  # what `data.load_images` takes, or "toy"
    schedule: str  # "cosine" or "linear"
    T: int
    clip: bool  # clamp x_0 to [-1, 1] in reverse steps
    batch_size: int

    teacher: str  # a network's name; "exact" for the toy's closed form
    teacher_iterations: int
    teacher_lr: float
    teacher_ema: float

    student: str
    iterations: int
    lr: float
    ema: float

    rho: float  # Algorithm 1: |B+| = rho * T * batch_size
    synthetic_images: int  # Table 4: what data-free training generates
    synthetic_steps: int

    steps: int  # sampling steps of every evaluation
    samples: int  # N of every evaluation
    warmup: str = "harvest"  # the shuffle denoise; the paper's is "full"
    discard: float = 0.0  # Sec. 11
    curve: int = 4  # evaluations over a training, evenly spaced, the last at its end
    checkpoint_every: int = 1000
    mixed_precision: str = "no"
    live: dict = field(default_factory=dict)  # what `make book` changes, to fit its time

    def replace(self, **changes) -> Preset:
        """This preset with other values; ValueError for a name it does not have."""
        known = {f.name for f in dataclasses.fields(self)} - {"name", "live"}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ValueError(
                f"preset {self.name}: found no setting {unknown[0]!r}, expected one of {sorted(known)}"
            )
        return dataclasses.replace(self, **changes)

    @property
    def metric(self) -> str:
        """The name of the score that decides, as results hold it."""
        return {"toy": "energy-distance", "digits": "digits-FID"}.get(self.data, "FID")

    def diffusion(self) -> GaussianDiffusion:
        """The preset's forward process."""
        return getattr(GaussianDiffusion, self.schedule)(self.T, clip=self.clip)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="toy",  # 8 Gaussians on a circle; the teacher is exact
            data="toy",
            schedule="cosine",
            T=100,
            clip=False,  # the plane has no pixel range
            batch_size=256,
            teacher="exact",
            teacher_iterations=0,
            teacher_lr=0.0,
            teacher_ema=0.0,
            student="toy-student",
            iterations=2000,
            lr=3e-3,
            ema=0.99,
            rho=0.4,
            synthetic_images=2000,
            synthetic_steps=100,
            steps=50,
            samples=4000,
            live={"iterations": 1500},
        ),
        Preset(
            name="digits",  # scikit-learn's 1,797 real digits, 8x8
            data="digits",
            schedule="cosine",
            T=100,
            clip=True,
            batch_size=128,
            teacher="digits-teacher",
            teacher_iterations=2000,
            teacher_lr=5e-4,
            teacher_ema=0.999,
            student="digits-student",
            iterations=1500,
            lr=1e-3,
            ema=0.999,
            rho=0.4,
            synthetic_images=1797,  # as many as the data set, as in Table 4
            synthetic_steps=100,
            steps=50,
            samples=2000,
            curve=5,
            live={"teacher_iterations": 1000, "iterations": 600, "curve": 3},
        ),
        Preset(
            name="cifar10",
            data="cifar10",
            schedule="cosine",  # Table 6
            T=1000,  # Table 6
            clip=True,
            batch_size=128,  # Table 6
            teacher="cnn-57m",  # Table 6
            teacher_iterations=450_000,  # DDPM-IP's published checkpoint; the paper does not train it
            teacher_lr=1e-4,
            teacher_ema=0.9999,
            student="cnn-14m",  # Table 6
            iterations=200_000,  # Table 6, with early stopping
            lr=1e-4,  # Table 6
            ema=0.9999,  # the authors' configuration
            rho=0.4,  # Table 6
            synthetic_images=50_000,  # Table 4
            synthetic_steps=1000,  # Table 4: IDDPM-1000
            steps=50,  # Sec. 4.1
            samples=50_000,  # Sec. 4.1
            curve=20,
            mixed_precision="fp16",  # Sec. 8.1
        ),
    )
}


def get(name: str, live: bool = False, **changes) -> Preset:
    """A preset by name; ``live`` applies its cuts for `make book`, ``changes`` come last."""
    if name not in PRESETS:
        raise ValueError(f"preset: found {name!r}, expected one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    return preset.replace(**{**(preset.live if live else {}), **changes})
