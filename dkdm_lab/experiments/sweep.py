"""Filling the ledger with runs and parts of studies: what it misses, what that costs, and in which order.

The order is the cheapest first; an artifact that another one stands on goes before it. Costs are
floating-point operations, those of the training that is still to be done, of the sampling and of the scoring.
Parts of a study have no costs, and are made in the order in which they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dkdm_lab.experiments import ledger
from dkdm_lab.experiments.artifact import Artifact, read
from dkdm_lab.experiments.costs import scoring
from dkdm_lab.system import budget


@dataclass(frozen=True)
class Task:
    """One thing to make: a run, a part of a study, or, if ``primed``, a run's FID' against the teacher's
    distribution (Sec. 12)."""

    artifact: Artifact
    primed: bool = False

    def __str__(self) -> str:
        return self.artifact.title + (", FID'" if self.primed else "")

    def needs(self) -> list[Task]:
        """What it stands on and is not there yet; a teacher that is only read is there."""
        made = self.artifact
        needs = [made, made.synthetic_run()] if self.primed else made.needs()
        return [Task(need) for need in needs if not need.given and need.status != "finished"]

    def operations(self) -> float:
        """What is left of it to be computed, without what it needs; 0 for a run that is finished."""
        if self.primed:
            return scoring(self.artifact, self.artifact.preset.samples)
        return self.artifact.remaining_operations()


def missing(wanted: Iterable[tuple[Artifact, bool]]) -> list[Task]:
    """What the ledger does not have, of artifacts and whether a run's FID' is wanted too."""
    tasks = []
    for artifact, primed in wanted:
        found = read(artifact.ledger_file, ledger.LEDGER) if artifact.ledger_file.is_file() else None
        tasks += [Task(artifact)] if found is None else []
        tasks += [Task(artifact, primed=True)] if primed and "against_teacher" not in (found or {}) else []
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


def fill(wanted: Iterable[tuple[Artifact, bool]], progress: bool = True) -> Iterator[str]:
    """Make what the ledger misses of runs or parts of a study, and of a run's FID' where that is wanted too;
    yields lines to print.

    Where it is stopped, as by a :func:`~dkdm_lab.system.budget.budget`, it says what is under way and what is
    left before it raises :class:`~dkdm_lab.system.budget.Stopped`.
    """
    wanted = list(dict.fromkeys(wanted))
    tasks = missing(wanted)
    order = in_order(tasks)
    todo, before, started = list(order), sum(task.operations() for task in order), budget.now()
    absent = {task.artifact for task in tasks}

    def report() -> Iterator[str]:
        still = {task.artifact for task in todo if task in tasks}
        yield (
            f"Finished: {len(wanted) - len(still)} of {len(wanted)} runs are in the ledger, "
            f"{len(absent) - len(still)} of them from this call."
        )
        for artifact in dict.fromkeys(task.artifact for task in todo):
            if artifact.status == "resumable":
                yield f"Under way: {artifact.title}, {artifact.how_far}."
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
            yield f"[{len(order) - len(todo) + 1}/{len(order)}] {task}: {task.artifact.status}"
            metrics = task.artifact.result(progress).get("metrics", "made")
            if task.primed:
                metrics = task.artifact.against_teacher(progress)
            entered = f" -> {ledger.enter(task.artifact).name}" if task in tasks else ""
            yield f"    {metrics}{entered}"
            todo.pop(0)
    except KeyboardInterrupt:
        yield from report()
        raise
    yield from report()
