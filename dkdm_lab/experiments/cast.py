"""Which networks and settings play the parts of the paper's tables and figures at each preset."""

from __future__ import annotations

from collections.abc import Mapping

from dkdm_lab.data.sets import judged
from dkdm_lab.experiments.presets import PRESETS

_TABLE_8 = {
    "CNN": "cnn-57m",
    "ViT": "vit-19m",
    "student": "cnn-14m",
    "sizes": ("cnn-57m", "cnn-44m", "cnn-32m", "cnn-24m", "cnn-14m"),
}
# Networks that play the paper's parts, and the iterations of three teachers for Fig. 10; only CIFAR-10's
# sizes and architectures are the paper's own. The digits' five sizes follow Table 8's: width, depth, both.
CAST = {
    "cifar10": {**_TABLE_8, "teachers": (50_000, 200_000, 450_000)},
    "imagenet32": {**_TABLE_8, "teachers": (125_000, 500_000, 1_000_000)},
    "celeba64": {
        "CNN": "celeba-295m",
        "ViT": "celeba-vit",
        "student": "celeba-57m",
        "sizes": ("celeba-295m", "celeba-57m"),
        "teachers": (50_000, 200_000, 450_000),
    },
    "fashion": {
        "CNN": "fashion-teacher",
        "ViT": "fashion-vit",
        "student": "fashion-student",
        "sizes": ("fashion-teacher", "fashion-6m", "fashion-2m", "fashion-student"),
        "teachers": (100, 400, 1000),
    },
    # For cifar16 no sizes and no worse teachers were planned; in Table 11 its students are the preset's own.
    "cifar16": {
        "CNN": "cifar16-teacher",
        "ViT": "cifar16-vit",
        "student": "cifar16-student",
        "as teacher": "cifar16-student",
        "sizes": (),
        "teachers": (),
        "fractions": (0.05, 0.20),
    },
    "cifar10-short": {
        "CNN": "cifar10-6m",
        "ViT": "vit-19m",
        "student": "cifar10-2m",
        "as teacher": "cifar10-2m",
        "sizes": (),
        "teachers": (),
        "fractions": (),
    },
    "digits": {
        "CNN": "digits-teacher",
        "ViT": "digits-vit",
        "student": "digits-student",
        "sizes": ("digits-teacher", "digits-466k", "digits-290k", "digits-student", "digits-53k"),
        "teachers": (250, 1000, 2000),
    },
}
FRACTIONS = (0.05, 0.10, 0.15, 0.20)  # Table 2
RHOS = (0.05, 0.4, 1.0)  # around Fig. 4b's; 0.4 is the preset's own
DISCARDS = (0.0, 0.25, 0.5)  # Sec. 11 names no values
# Beyond the paper, at `digits-pools`: strides, and the pool's size as rho: 2, 4 and 40 batches. The paper's
# own are 1 and 0.4.
STRIDES = (1, 2, 5, 10, 20)
SIZES = (0.02, 0.04, 0.4)
STRIDED = {"rho": 0.04, "stride": 100}  # the pool that `dkdm distill` takes, at T = 1000
# At `digits-moves`: pools of 2, 4, 8, 16 and 40 batches, strides of 1, T / 50, T / 20 and T / 10. FIXED: how
# pools move with a teacher of fixed variance, by the posterior's in steps of one, else by the analytic one.
MOVED_SIZES = (0.02, 0.04, 0.08, 0.16, 0.4)
MOVED_STRIDES = (1, 2, 5, 10)
FIXED = {1: "small"} | dict.fromkeys(MOVED_STRIDES[1:], "analytic")
# How a pool of 16 batches at a stride of 10 saves answers. The longer trainings cost as many operations as
# the preset's 1,000 iterations without replay: a digits' teacher costs 1.32 times a step of the student.
REPLAYED = {"rho": 0.16, "stride": 10}
REPLAYS = (
    {"turns": 4},
    {"replay": 2},
    {"turns": 4, "replay": 2},
    {"turns": 4, "replay": 3},
    {"turns": 4, "replay": 2, "iterations": 1398},
    {"turns": 4, "replay": 3, "iterations": 1611},
)
NATURAL_SMALL = ("cifar16", "cifar10-short")  # presets of natural images for small machines
STORED = ("bfloat16", "float16")  # what a pool may lie in that rounds it

# The presets that a claim of the paper can be looked up at: its own and ours, in pixel or in latent space.
PIXELS = ("digits", "cifar16", "fashion", "cifar10-short", "cifar10", "celeba64", "imagenet32")
LATENTS = ("digits-latent", "celebahq256", "ffhq256")
NATURAL = PIXELS[1:]  # judged by Inception, which alone has sFID


def run_of(method: str, **settings) -> dict:
    """A run as :func:`~dkdm_lab.experiments.ledger.results` looks it up: its method, and the settings in
    which it differs from its preset."""
    return {"method": method, **settings}


def metric_name(metric: str, preset: str) -> str:
    """What a metric of the paper is called in a preset's results, after the features it is measured in."""
    return f"{judged(PRESETS[preset].data).prefix}{metric}"


def fractions_of(preset: str) -> tuple[float, ...]:
    """The shares of real images that data-limited training is run with at a preset."""
    return CAST.get(preset, {}).get("fractions", FRACTIONS)


def as_teacher(cast: dict, method: str) -> dict:
    """A run of Table 11, whose students have the architecture of their teacher."""
    if method == "teacher":
        return run_of(method)
    return run_of(method, student=cast.get("as teacher", cast["CNN"]))


def ways(preset: str) -> dict[str, dict]:
    """The ways to train a student that Table 2 and Fig. 4a compare at a preset, and its teacher, by the names
    of their rows."""
    limited = {f"data-limited {f:.0%}": run_of("data-limited", real_fraction=f) for f in fractions_of(preset)}
    rows = {"teacher": run_of("teacher"), "data-based": run_of("data-based"), **limited}
    rows |= {name: run_of(name) for name in ("data-free", "iterative", "shuffled", "dynamic")}
    return rows | ({"dynamic (strides)": run_of("dynamic", **STRIDED)} if preset in NATURAL_SMALL else {})


def figure_curves(preset: str) -> list[tuple[str, str, Mapping | None]]:
    """Figure, curve and run of every curve of the paper's figures, as a preset's networks play them; no run
    where a chapter measures it."""
    cast = CAST[preset]
    return [
        ("Fig. 4a", "baseline (data-free)", run_of("data-free")),
        ("Fig. 4a", "iterative", run_of("iterative")),
        ("Fig. 4a", "shuffled", run_of("shuffled")),
        ("Fig. 4a", "dynamic, rho = 0.4", run_of("dynamic")),
        *[("Fig. 4b", f"dynamic, rho = {rho}", run_of("dynamic", rho=rho)) for rho in RHOS],
        *[
            ("Fig. 6", f"{method}, size {size} of {len(cast['sizes'])}", run_of(method, student=name))
            for method in ("data-free", "dynamic")
            for size, name in enumerate(cast["sizes"], 1)
        ],
        ("Fig. 7", "memory against rho: see the chapter on cost", None),
        *[
            ("Fig. 8", f"{method}, p = {p}", run_of(method, discard=p))
            for method in ("iterative", "shuffled", "dynamic")
            for p in DISCARDS
        ],
        ("Fig. 9", "FID against FID', teacher", run_of("teacher")),
        ("Fig. 9", "FID against FID', student", as_teacher(cast, "dynamic")),
        *[
            ("Fig. 10", f"student of teacher {number} of 3", run_of("dynamic", teacher_iterations=n))
            for number, n in enumerate(cast["teachers"], 1)
        ],
    ]
