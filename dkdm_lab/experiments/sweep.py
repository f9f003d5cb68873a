"""Filling the ledger: what a preset misses in it, what that costs, and in which order it is made.

The order is the cheapest first; a run that another one stands on goes before it. Costs are floating-point
operations, those of the training that is still to be done, of the sampling and of the scoring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dkdm_lab.experiments import ledger, runs
from dkdm_lab.experiments.runs import Run, operations_per_step
from dkdm_lab.pools import POOLS
from dkdm_lab.system import budget
from dkdm_lab.system.files import read_json
from dkdm_lab.system.paths import results_dir

# FID's Inception, per image: 5.7e9 multiply-adds at 299x299. The digits' classifier does not count beside it.
INCEPTION = 11.4e9


@dataclass(frozen=True)
class Task:
    """One thing to make: a run, or, if ``primed``, its FID' against the teacher's distribution (Sec. 12)."""

    run: Run
    primed: bool = False

    def __str__(self) -> str:
        return f"{self.run.preset.name}/{self.run.name}" + (", FID'" if self.primed else "")

    def needs(self) -> list[Task]:
        """What it stands on and is not there yet; a teacher that is only read is there."""
        runs = [self.run, self.run.synthetic_run()] if self.primed else self.run.needs()
        return [Task(run) for run in runs if run.status != "finished" and not run.given]

    def operations(self) -> float:
        """What is left of it to be computed, without what it needs; 0 for a run that is finished."""
        if self.primed:
            return _scoring(self.run, self.run.preset.samples)
        return remaining(self.run)


def remaining(run: Run) -> float:
    """Floating-point operations that are left of a run: training, sampling and scoring; without the runs that
    it needs, and without what is done once for many, as the statistics of the real images."""
    p, done = run.preset, run.iteration
    if run.status == "finished":
        return 0.0
    if run.method == "synthetic":
        return (p.synthetic_images - done) * p.synthetic_steps * runs.operations(p.teacher) + _judging(
            run, p.synthetic_images
        )
    file = run.folder / "curve.json"
    scored = read_json(file, "delete it: its scores are lost", kind=list) if done and file.is_file() else []
    last = scored[-1]["iteration"] if scored else 0
    points = [point for point in run.callback_at if point > last] if run.iterations else [0]
    scoring = sum(
        _scoring(run, p.curve_samples if p.curve_samples and point != run.iterations else p.samples)
        for point in points
    )
    warmup = 0.0
    if run.method in POOLS and not done:
        warmup = _warmup(run) * runs.operations(p.teacher)
    return warmup + (run.iterations - done) * operations_per_step(run.asked) + scoring


def _warmup(run: Run) -> float:
    """Evaluations of the teacher before a pool's first turn, on average."""
    p = run.preset
    if run.method == "iterative":
        return 0.0
    size = p.batch_size * (round(p.rho * p.T) if run.method == "dynamic" else 1)
    return size * {"harvest": 1, "respaced": 5, "full": p.T / 2}[p.warmup]


def _scoring(run: Run, n: int) -> float:
    """Drawing and judging ``n`` samples; of a class-conditional model guided ones too."""
    p = run.preset
    times, sets = (3, 2) if p.classes else (1, 1)
    network = runs.operations(p.teacher if run.method in ("teacher", "synthetic") else p.student)
    return times * n * p.steps * network + sets * _judging(run, n)


def _judging(run: Run, n: int) -> float:
    return n * INCEPTION if run.preset.features == "inception" and run.preset.data != "toy" else 0.0


def missing(wanted: Iterable[tuple[Run, bool]]) -> list[Task]:
    """What the ledger does not have, of runs and whether their FID' is wanted too."""
    tasks = []
    for run, primed in wanted:
        file = results_dir() / run.preset.name / f"{run.name}.json"
        found = read_json(file, ledger.LEDGER) if file.is_file() else None
        tasks += [Task(run)] if found is None else []
        tasks += [Task(run, primed=True)] if primed and "against_teacher" not in (found or {}) else []
    return tasks


def in_order(tasks: Iterable[Task]) -> list[Task]:
    """The tasks and what they need, the cheapest next each time: by itself and with what it still needs."""
    tasks = list(dict.fromkeys(tasks))
    needs: dict[Task, list[Task]] = {}

    def look(task: Task) -> None:
        if task not in needs:
            needs[task] = task.needs()
            for each in needs[task]:
                look(each)

    def chain(task: Task) -> list[Task]:
        """What is still to be made for a task, itself at the end."""
        before = [each for need in needs[task] for each in chain(need)]
        return [each for each in dict.fromkeys([*before, task]) if each not in order]

    for task in tasks:
        look(task)
    costs = {task: task.operations() for task in needs}
    order: dict[Task, None] = {}
    left = tasks
    while left:
        cheapest = min((chain(task) for task in left), key=lambda each: sum(costs[task] for task in each))
        order |= dict.fromkeys(cheapest)
        left = [task for task in left if task not in order]
    return list(order)


def fill(wanted: Iterable[tuple[Run, bool]], progress: bool = True) -> Iterator[str]:
    """Make what the ledger misses of runs and whether their FID' is wanted too; yields lines to print.

    Where it is stopped, as by a :func:`~dkdm_lab.system.budget.budget`, it says what is under way and what is
    left before it raises :class:`~dkdm_lab.system.budget.Stopped`.
    """
    wanted = list(dict.fromkeys(wanted))
    tasks = missing(wanted)
    order = in_order(tasks)
    todo, before, started = list(order), sum(task.operations() for task in order), budget.now()
    absent = {task.run for task in tasks}

    def report() -> Iterator[str]:
        still = {task.run for task in todo if task in tasks}
        yield (
            f"Finished: {len(wanted) - len(still)} of {len(wanted)} runs are in the ledger, "
            f"{len(absent) - len(still)} of them from this call."
        )
        for run in dict.fromkeys(task.run for task in todo):
            if run.status == "resumable":
                what = "image" if run.method == "synthetic" else "iteration"
                yield f"Under way: {Task(run)}, {what} {run.iteration:,} of {run.iterations:,}."
        if todo:
            after, seconds = sum(task.operations() for task in todo), budget.now() - started
            time = "for a time that this call was too short to estimate"
            if before > after and seconds:
                time = f"about {after * seconds / (before - after) / 60:,.1f} minutes at this call's speed"
            yield f"Left: {len(todo)} of {len(order)} tasks, {time}."

    try:
        while todo:
            task = todo[0]
            budget.check()
            yield f"[{len(order) - len(todo) + 1}/{len(order)}] {task}: {task.run.status}"
            metrics = task.run.result(progress)["metrics"]
            if task.primed:
                metrics = task.run.against_teacher(progress)
            entered = f" -> {ledger.enter(task.run).name}" if task in tasks else ""
            yield f"    {metrics}{entered}"
            todo.pop(0)
    except KeyboardInterrupt:
        yield from report()
        raise
    yield from report()
