"""What training and sampling cost here: seconds by part of a step, and memory.

Seconds on a CPU mean little elsewhere, so what the ledger keeps and the book quotes are ratios made in one
run; on a GPU, whose name stands beside them, seconds too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers.training_utils import EMAModel

from dkdm_lab import networks
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.experiments.presets import Preset
from dkdm_lab.pools import POOLS, Pool
from dkdm_lab.sources import NoisedImages
from dkdm_lab.system.profile import profiled
from dkdm_lab.system.provenance import device, provenance
from dkdm_lab.training import train


@dataclass(frozen=True)
class Cost:
    """One way of training, measured: seconds per iteration; the share of each part of a step, by name; bytes
    at the peak on a GPU (None on a CPU, which keeps no such count); bytes of the source's samples."""

    seconds: float
    shares: dict[str, float]
    peak_bytes: int | None
    source_bytes: int


def training_cost(preset: Preset, method: str, iterations: int = 12, repeats: int = 3, seed: int = 0) -> Cost:
    """Seconds per iteration of a method's training at a preset, the median of ``repeats`` measurements.

    The networks are untrained and data-based training gets random images of the right shape: neither
    changes what is computed. The first iterations, where libraries choose their kernels, are left out.
    """
    torch.manual_seed(seed)
    student = networks.build(preset.student).to(device())
    source = training_source(preset, method, student.shape, seed)
    if isinstance(source, Pool):
        source.fill()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    options = {
        "lr": preset.lr,
        "ema": preset.ema,
        "mixed_precision": preset.mixed_precision if torch.cuda.is_available() else "no",
        "progress": False,
    }
    diffusion, moments = preset.diffusion(), []
    paused = _Paused(source, iterations, lambda: moments.append(_moment()))
    if preset.compile is not None and isinstance(source, Pool):
        source.compile_teacher(preset.compile)
    # Once compiled, networks stay so.
    train(student, paused, diffusion, WARM + repeats * iterations + 1, compile=preset.compile, **options)
    with profiled() as parts:
        train(student, source, diffusion, iterations, **options)
    return Cost(
        statistics.median(ended - begun for begun, ended in pairwise(moments)) / iterations,
        {name: spent / sum(parts.values()) for name, spent in parts.items()},
        torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        sum(x.numel() * x.element_size() for x in _samples(source)),
    )


@dataclass(frozen=True)
class Overhead:
    """One step beside the bare work of its networks: seconds of the whole step, of the teacher's evaluation
    (0 without one) and of the student's forward, backward, optimiser and average; medians. ratio: whole
    over the sum of the others, the median of ratios made side by side."""

    whole: float
    teacher: float
    student: float
    ratio: float


def overhead(
    preset: Preset,
    method: str,
    *,
    iterations: int = 8,
    repeats: int = 5,
    seed: int = 0,
    channels_last: bool = True,
    compile: str | None = None,
) -> Overhead:
    """What the training loop and the source add to a step at a preset. One training pauses every so many
    iterations, and then its bare parts are measured as often, so that a machine that slows down does so
    for both.

    channels_last: the networks' memory format. compile: a mode of `torch.compile` for them. The precision
    is the preset's, on a CPU too.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(seed)
    student = networks.build(preset.student).to(device(), memory_format=memory_format)
    source = training_source(preset, method, student.shape, seed)
    diffusion, precision = preset.diffusion(), preset.mixed_precision
    options = {"lr": preset.lr, "ema": preset.ema, "mixed_precision": precision, "progress": False}
    teacher = source.teacher if isinstance(source, Pool) else None
    for network in filter(None, (student, teacher)):
        network.to(memory_format=memory_format)
        if compile is not None:
            network.compile_network(compile)
    bare = _bare_parts(preset, student, teacher)
    begun: float | None = None
    rows: list[tuple[float, float, float]] = []

    def pause() -> None:
        nonlocal begun
        if begun is not None:
            whole = (_moment() - begun) / iterations
            rows.append((whole, *bare(iterations)))
        begun = _moment()

    bare(1)  # where libraries choose their kernels
    train(student, _Paused(source, iterations, pause), diffusion, WARM + repeats * iterations + 1, **options)
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    return Overhead(*medians, statistics.median(all_of / (a + b) for all_of, a, b in rows))


def _bare_parts(preset: Preset, student, teacher) -> Callable[[int], tuple[float, float]]:
    """A function that measures the bare parts of a step, so many times each: seconds of the teacher's
    evaluation (0 without one) and of the student's forward, backward, optimiser and average."""
    x = torch.randn(preset.batch_size, *student.shape, device=device())
    t = torch.randint(preset.T, (preset.batch_size,), device=device())
    kind = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[preset.mixed_precision]
    autocast = torch.autocast(device().type, kind, enabled=kind != torch.float32)
    optimizer = torch.optim.AdamW(student.parameters(), lr=preset.lr, weight_decay=0.0, fused=True)
    average = EMAModel(student.parameters(), decay=preset.ema, foreach=True)
    average.to(device())

    def evaluate() -> None:
        with torch.no_grad(), autocast:
            teacher(x, t)
        torch.clear_autocast_cache()  # which waits for the end of the loop's own autocast, around the pause

    def descend() -> None:
        with autocast:
            eps, v = student(x, t)
        loss = eps.float().square().mean() if v is None else (eps.float() * v.float()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(student.parameters())
        torch.clear_autocast_cache()

    def bare(times: int) -> tuple[float, float]:
        return seconds_of(evaluate, times) if teacher else 0.0, seconds_of(descend, times)

    return bare


WARM = 4  # iterations before a measurement, in which libraries choose their kernels


class _Paused:
    """A source that pauses before its batch after the first :data:`WARM`, and then every so many. Between two
    pauses there are steps and nothing else; what a training does once comes before or after them."""

    def __init__(self, source, every: int, pause: Callable[[], None]):
        self.source, self.every, self.pause, self.asked = source, every, pause, 0

    def __getattr__(self, name: str):
        return getattr(self.source, name)

    def __next__(self):
        steps = self.asked - WARM
        self.asked += 1
        if steps >= 0 and steps % self.every == 0:
            self.pause()
        return next(self.source)


def _moment() -> float:
    """Now, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(work: Callable[[], object], times: int = 1) -> float:
    """Seconds of a call, the mean of so many."""
    started = _moment()
    for _ in range(times):
        work()
    return (_moment() - started) / times


def seconds_before(preset: Preset, method: str, seed: int = 0) -> float:
    """Seconds before a training's first iteration at a preset: a pool's warm-up, or the teacher's synthetic
    set of data-free training; without the compiling."""
    if method == "data-free":
        once = min(256, preset.synthetic_images)  # a batch of the sampler
        seconds = sampling_seconds(preset.teacher, once, preset.synthetic_steps, repeats=1)
        return seconds * preset.synthetic_images / once
    if method not in POOLS:
        return 0.0
    shape = networks.build(preset.student).shape
    first, second = (training_source(preset, method, shape, seed) for _ in range(2))
    if preset.compile is not None:
        first.compile_teacher(preset.compile)
    second.guided.teacher = first.teacher
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = kinds.get(preset.mixed_precision) if torch.cuda.is_available() else None
    with torch.autocast(device().type, kind, enabled=kind is not None):
        first.fill()  # where libraries choose their kernels, and networks are compiled
        return seconds_of(second.fill)


def iterations_within(seconds: float, before: float, step: float) -> int:
    """How many iterations of ``step`` seconds fit into so many, after what comes ``before`` the first one.
    ValueError where none does."""
    count = int((seconds - before) / step)
    if count < 1:
        raise ValueError(
            f"seconds: found {seconds:g}, expected at least {before + step:.3g} for the first iteration: "
            f"what comes before it takes {before:.3g} s"
        )
    return count


def sampling_seconds(name: str, n: int, steps: int, repeats: int = 3) -> float:
    """Seconds to sample ``n`` images with a network of a name, untrained: the median of ``repeats``."""
    network = networks.build(name).to(device()).eval()
    diffusion, seconds = GaussianDiffusion.cosine(1000), []
    for _ in range(repeats + 1):
        seconds.append(seconds_of(lambda: diffusion.sample(network, n, steps, device=device())))
    return statistics.median(seconds[1:])


def measure(preset: Preset, sizes: tuple[str, ...], seed: int = 0) -> dict:
    """What ``dkdm measure`` keeps: the cost of training by data and by the dynamic pool, and of sampling
    with networks of several sizes, relative to the first of them; seconds only where a GPU made them."""
    gpu = torch.cuda.is_available()
    costs = {method: training_cost(preset, method, seed=seed) for method in ("data-based", "dynamic")}
    unit = costs["data-based"].seconds
    training = {
        method: {
            "time": cost.seconds / unit,
            "shares": {part: round(share, 4) for part, share in cost.shares.items()},
            "source_bytes": cost.source_bytes,
            **({"seconds": cost.seconds, "peak_bytes": cost.peak_bytes} if gpu else {}),
        }
        for method, cost in costs.items()
    }
    seconds = {name: sampling_seconds(name, 32, 10) for name in sizes}
    first = seconds[sizes[0]]
    sampling = {name: {"time": s / first, **({"seconds": s} if gpu else {})} for name, s in seconds.items()}
    return {
        "preset": preset.name,
        "seed": seed,
        "training": training,
        "sampling": sampling,
        "made_with": provenance(),
    }


def training_source(preset: Preset, method: str, shape: tuple[int, ...], seed: int):
    """A source of a method at a preset, with an untrained teacher or random images."""
    options = {"batch_size": preset.batch_size, "seed": seed, "device": device()}
    diffusion = preset.diffusion()
    if method not in POOLS:
        generator = torch.Generator().manual_seed(seed)
        count = 4 * preset.batch_size
        images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
        return NoisedImages(diffusion, images, flip=preset.flip, **options)
    teacher = networks.build(preset.teacher).to(device())
    if method == "dynamic":
        options |= {"rho": preset.rho, "storage": preset.storage, "stride": preset.stride}
        options["variance"] = preset.variance
    return POOLS[method](diffusion, teacher, **options)


def _samples(source) -> list[torch.Tensor]:
    return [source.x, source.t] if isinstance(source, Pool) else [source.data]
