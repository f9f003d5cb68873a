"""A stopwatch for the sections of a training step, for `dkdm_lab.experiments.speed`; else it does not run."""

from __future__ import annotations

import time
from contextlib import contextmanager

import torch

# The sections of a step. "teacher" is the pool's evaluation, and not counted in "source" again.
SECTIONS = ("source", "teacher", "forward", "backward", "update")

_running: list[dict[str, float]] = []


@contextmanager
def profiled():
    """Measure what happens inside: yields ``{section: seconds}``, complete when the block ends."""
    seconds = dict.fromkeys(SECTIONS, 0.0)
    _running.append(seconds)
    try:
        yield seconds
    finally:
        _running.pop()
        seconds["source"] -= seconds["teacher"]


@contextmanager
def section(name: str):
    """Count the block as a section of the step, if a clock is running; a GPU's work is waited for then."""
    if not _running:
        yield
        return
    started = _now()
    yield
    _running[-1][name] += _now() - started


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
