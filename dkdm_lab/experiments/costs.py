"""What a run costs in floating-point operations, from its result, and what is left of one under way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dkdm_lab import networks
from dkdm_lab.data.sets import judged
from dkdm_lab.experiments.artifact import read
from dkdm_lab.pools import POOLS

if TYPE_CHECKING:
    from dkdm_lab.experiments.runs import Run

# FID's Inception, per image: 5.7e9 multiply-adds at 299x299. The digits' classifier does not count beside it.
INCEPTION = 11.4e9


def cost(result: dict, iteration: int | None = None) -> float:
    """What a training cost up to an iteration (default: all of it), in floating-point operations.

    A training step counts three evaluations of the student, forward and backward; each evaluation of the
    teacher counts one, those for the synthetic set or the warm-up before the first iteration too. The
    teacher's own training is not counted, nor is scoring: nobody pays for them who has a teacher.
    """
    settings = result["settings"]
    iterations = settings["iterations"]
    iteration = iterations if iteration is None else iteration
    before = max(0.0, result["teacher_evaluations"] - _per_iteration(settings) * iterations)
    return before * operations(settings.get("teacher", "exact")) + iteration * operations_per_step(settings)


def operations(network: str) -> float:
    """Floating-point operations of one evaluation of a named network; the toy's exact teacher counts none."""
    return 0.0 if network == "exact" else networks.flops(network)


def operations_per_step(settings: dict) -> float:
    """Floating-point operations of one training step, from a run's settings, as :func:`cost` counts them."""
    student = settings["teacher" if settings["method"] == "teacher" else "student"]
    of_teacher = _per_iteration(settings) * operations(settings.get("teacher", "exact"))
    return 3 * settings["batch_size"] * operations(student) + of_teacher


def _per_iteration(settings: dict) -> float:
    """A pool's evaluations of its teacher per iteration; a discarded turn costs as much as a shown one,
    and an answer that is replayed nothing."""
    if settings["method"] not in POOLS:
        return 0.0
    return settings["batch_size"] / (1 - settings["discard"]) / settings.get("replay", 1)


def curve(result: dict, metric: str) -> tuple[list[int], list[float]]:
    """Iterations and values of a metric over a run's training, from its result; NaN for a score that was not
    finite, which JSON holds as null."""
    points = result["curve"]
    values = [math.nan if point[metric] is None else point[metric] for point in points]
    return [point["iteration"] for point in points], values


# -- what is left of a run ----------------------------------------------------------------------------


def remaining(run: Run) -> float:
    """Floating-point operations that are left of a run: training, sampling and scoring; without the runs that
    it needs, and without what is done once for many, as the statistics of the real images."""
    p, done = run.preset, run.iteration
    if run.status == "finished":
        return 0.0
    if run.method == "synthetic":
        drawing = (p.synthetic_images - done) * p.synthetic_steps * operations(p.teacher)
        return drawing + _judging(run, p.synthetic_images)
    file = run.folder / "curve.json"
    scored = read(file, "delete it: its scores are lost", kind=list) if done and file.is_file() else []
    last = scored[-1]["iteration"] if scored else 0
    points = [point for point in run.callback_at if point > last] if run.iterations else [0]
    cheap = p.curve_samples or p.samples
    to_score = sum(scoring(run, p.samples if point == run.iterations else cheap) for point in points)
    warmup = _warmup(run) * operations(p.teacher) if run.method in POOLS and not done else 0.0
    return warmup + (run.iterations - done) * operations_per_step(run.asked) + to_score


def scoring(run: Run, n: int) -> float:
    """Drawing and judging ``n`` samples; of a class-conditional model also those with guidance."""
    p = run.preset
    times, sets = (3, 2) if p.classes else (1, 1)
    network = operations(p.teacher if run.method in ("teacher", "synthetic") else p.student)
    return times * n * p.steps * network + sets * _judging(run, n)


def _warmup(run: Run) -> float:
    """Evaluations of the teacher before a pool's first turn, on average."""
    p = run.preset
    if run.method == "iterative":
        return 0.0
    size = p.batch_size * (round(p.rho * p.T) if run.method == "dynamic" else 1)
    return size * {"harvest": 1, "respaced": 5, "full": p.T / 2}[p.warmup]


def _judging(run: Run, n: int) -> float:
    return n * INCEPTION if judged(run.preset.data).features == "inception" else 0.0
