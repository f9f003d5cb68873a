"""Distil any teacher to a student, with no data set: what ``dkdm distill`` does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch

from dkdm_lab.metrics.scores import require
from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.networks.schedulers import read_json
from dkdm_lab.pools import DynamicPool
from dkdm_lab.sources import Conditions
from dkdm_lab.system import budget, distributed
from dkdm_lab.system.checkpoint import tensors_hash
from dkdm_lab.system.files import added, explained, tidy, write_json
from dkdm_lab.system.provenance import device, provenance
from dkdm_lab.system.settings import CountOrNone, Scored, accept, kind
from dkdm_lab.teachers import hub
from dkdm_lab.teachers.distillation import Distillation
from dkdm_lab.teachers.finishing import PARTS, RECORD, Finishing
from dkdm_lab.teachers.pipelines import Pipeline
from dkdm_lab.teachers.students import begin_as, go_on_from, keep_less
from dkdm_lab.training import History, check_tracker, train

# Settings that came later than the first distillations, and what those were made with.
_LATER = {"stride": 1, "mixed_precision": "no", "init": "random", "accumulate": 1, "continued": None}


def distill(
    teacher: Pipeline,
    settings: Distillation,
    out: str | Path,
    conditions: Conditions | None = None,
    evaluate: int = 0,
    checkpoint_every: int = 1000,
    compile: str | None = None,
    progress: bool = True,
    samples: int = 8,
    report: Callable[[str], None] = lambda line: None,
    checkpointing: bool = False,
    log_with: str | None = None,
    push_to_hub: str | None = None,
) -> Denoiser:
    """Train a student from ``teacher`` with the dynamic pool and write it to ``out``, a pipeline of the
    teacher's kind with a card, its losses (``history.json``, ``loss.png``) and a sheet of its samples beside
    the teacher's (``samples.png``); returns it, in eval mode.

    evaluate: how many images to compare with as many of the teacher's, see
    :func:`~dkdm_lab.teachers.samples.compare`; 0 for none. compile: a mode of `torch.compile`, see
    :func:`~dkdm_lab.training.train`. samples: how many columns the sheet has at most, see
    :func:`~dkdm_lab.teachers.samples.sheet_size`; 0 for no sheet. report: is told in a line what will be
    trained, and in another how long it will take. checkpointing: compute the student's activations twice and
    keep fewer of them. log_with: one of accelerate's trackers; those that keep files have them in
    ``out/logs``. push_to_hub: a repository's name there, which gets all that ``out`` holds once it is saved.

    While it is under way ``out`` holds its settings and checkpoints: called again it goes on from there,
    also after a :func:`~dkdm_lab.system.budget.budget` ended it. The student is on the disk before anything
    else is made of it; what is missing then, since the process was killed or something failed, is made by
    the same call, and so is an evaluation that was not asked for before. Under `accelerate launch` all ranks
    call it and train together.

    Errors: ValueError where ``out`` holds anything else, or a student, conditions or a number do not fit;
    what ``evaluate``, ``log_with`` and ``push_to_hub`` need is looked for first. RuntimeError where
    the student is saved and something else that belongs to it could not be made.
    """
    for name, value in (("samples", samples), ("checkpoint_every", checkpoint_every)):
        accept(name, kind(CountOrNone), value)
    out, main = Path(out), distributed.rank() == 0
    settings = _settled(settings, teacher)
    begin = None if settings.continued is None else _finished_student(settings.continued, teacher)
    decided = content(teacher, conditions, begin)
    found = _begun(out, settings, teacher, decided)
    _require(evaluate, log_with, push_to_hub)
    samples = samples if _draws_images(teacher) else 0

    def finish(student: Denoiser, found: dict) -> Denoiser:
        if main:
            more = (evaluate, samples, push_to_hub, found)
            Finishing(teacher, student, settings, out, conditions, *more).make()
        return student

    if "result" in found:  # the student is there
        return finish(Denoiser.from_pretrained(out).to(device()), found)

    torch.manual_seed(settings.seed)
    student, said = _student(teacher, settings, begin, checkpointing)
    pool = _pool(teacher, settings, conditions, compile, progress and main)
    record = {"settings": dataclasses.asdict(settings), "content": decided}
    if main:
        report(_summary(teacher, student, pool) + said)
        write_json(out / RECORD, record, "choose another place for the student")
    else:  # the same first weights, but not the same dropout
        torch.manual_seed(distributed.rank_seed(settings.seed))
    averaged, history = train(
        student,
        pool,
        teacher.diffusion,
        settings.iterations,
        lr=settings.lr,
        ema=settings.ema,
        mixed_precision=settings.mixed_precision,
        compile=compile,
        accumulate=settings.accumulate,
        checkpoint=out / "checkpoints",
        checkpoint_every=checkpoint_every,
        log_with=log_with,
        log_dir=out / "logs",
        progress=progress,
        description=f"distilling {settings.student}",
        report=report if main else None,
    )
    evaluations = sum(distributed.gather(pool.evaluations))
    if not main:
        return averaged
    record["result"] = _result(teacher, averaged, history, pool, evaluations)
    if begin is not None:
        record["result"]["iterations_before"] = _iterations_of(settings.continued)
    record["made_with"] = provenance()
    record["missing"] = [part for part in PARTS if samples or part != "samples.png"]
    _save(out, teacher, averaged, history, record)
    return finish(averaged, record)


def _result(
    teacher: Pipeline, student: Denoiser, history: History, pool: DynamicPool, evaluations: int
) -> dict:
    """What came out of a training, in numbers."""
    return {
        "simple": history.simple[-1],
        "vlb": history.vlb[-1],
        "parameters": student.parameter_count,
        "teacher_parameters": teacher.denoiser.parameter_count,
        "teacher_evaluations": evaluations,
        "stride": pool.stride,
    }


def _save(out: Path, teacher: Pipeline, student: Denoiser, history: History, record: dict) -> None:
    """Put a student into ``out``, with its losses and the record that says so."""
    with explained(out, "the same call goes on from its last checkpoint"), added(out, RECORD) as new:
        teacher.write_network(new, student)
        (new / "history.json").write_text(json.dumps(vars(history)), encoding="utf-8")
        (new / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    budget.kept()


def _settled(settings: Distillation, teacher: Pipeline) -> Distillation:
    """The settings, with those that follow from the teacher."""
    settings = dataclasses.replace(
        settings,
        lr=_learning_rate(settings.iterations) if settings.lr is None else settings.lr,
        batch_size=default_batch_size(teacher) if settings.batch_size is None else settings.batch_size,
    )
    if settings.batch_size % settings.accumulate:
        raise ValueError(
            f"accumulate: found {settings.accumulate}, expected a divisor of the batch size, "
            f"{settings.batch_size}"
        )
    return settings


def _require(evaluate: int, log_with: str | None, push_to_hub: str | None) -> None:
    """Look for all that is needed after the last iteration, before the first one."""
    check_tracker(log_with)
    if evaluate:
        accept("evaluate", kind(Scored), evaluate)
    if distributed.rank() == 0:
        if evaluate:
            require("inception", evaluate)
        if push_to_hub is not None:
            hub.require(push_to_hub)


def _student(
    teacher: Pipeline, settings: Distillation, begin: Denoiser | None, checkpointing: bool
) -> tuple[Denoiser, str]:
    """The student with its first weights, and what is to be said of these."""
    student, said = teacher.student(settings.student).to(device()), ""
    if settings.init == "teacher":
        said = begin_as(student, teacher.denoiser)
    if begin is not None:
        go_on_from(student, begin, settings.continued)
        before = _iterations_of(settings.continued)
        said = f"; it goes on after {before:,} iterations of {settings.continued}"
    if checkpointing:
        keep_less(student.network)
    return student, said


def _pool(
    teacher: Pipeline,
    settings: Distillation,
    conditions: Conditions | None,
    compile: str | None,
    progress: bool,
) -> DynamicPool:
    pool = DynamicPool(
        teacher.diffusion,
        teacher.denoiser.to(device()),
        distributed.local_batch_size(settings.batch_size // settings.accumulate),
        rho=settings.rho * settings.accumulate,  # as many samples in all
        stride=max(1, teacher.diffusion.T // 10) if settings.stride is None else settings.stride,
        variance=settings.variance,
        storage=settings.storage,
        conditions=conditions,
        guidance=settings.guidance,
        seed=distributed.rank_seed(settings.seed + 1),
        device=device(),
        progress=progress,
    )
    if compile is not None:
        pool.compile_teacher(compile)
    teacher.denoiser.at_once = pool.batch_size  # in the warm-up too, which asks for many more
    return pool


def finished(out: str | Path) -> bool:
    """Whether a distillation in ``out`` has its student."""
    file = Path(out) / RECORD
    return file.is_file() and "result" in read_json(file)


def _learning_rate(iterations: int) -> float:
    return round(1e-4 * min(10.0, max(1.0, 10_000 / iterations)), 6)


def default_batch_size(teacher: Pipeline) -> int:
    """Table 6's 128 for teachers of up to 100M parameters, half of it for each doubling beyond: 16 for Stable
    Diffusion 1.5, 4 for SDXL. A rule of thumb, for what fits depends on the device."""
    doublings = max(0.0, math.log2(teacher.denoiser.parameter_count / 1e8))
    return max(1, 128 >> math.ceil(doublings - 0.01))


def content(
    teacher: Pipeline, conditions: Conditions | None, begin: Denoiser | None = None
) -> dict[str, str | None]:
    """What decides a distillation beside its settings, as SHA-256s: the teacher's weights, the levels of its
    process, the prompts or labels, the null label, and the weights of the student that is continued."""
    names = None if conditions is None else conditions.names
    values = None if conditions is None else conditions.values
    labels = values is not None and values.ndim == 1 and conditions.null is not None
    return {
        "the teacher's weights": tensors_hash(teacher.denoiser.network.state_dict()),
        "the teacher's schedule": tensors_hash({"betas": torch.from_numpy(teacher.diffusion.betas)}),
        "prompts or labels": hashlib.sha256(json.dumps(names).encode()).hexdigest()
        if names is not None
        else tensors_hash({} if values is None else {"values": values}),
        "null class": str(int(conditions.null)) if labels else None,
        "the continued student's weights": None
        if begin is None
        else tensors_hash(begin.network.state_dict()),
    }


def _finished_student(folder: str, teacher: Pipeline) -> Denoiser:
    """A student that was distilled before; ValueError for a folder that has none, or one of another kind of
    process than the teacher's."""
    if not finished(folder):
        raise ValueError(
            f"{folder}: found no finished student there, expected one to continue; a distillation that was "
            "stopped goes on by the same call"
        )
    begin = Denoiser.from_pretrained(folder, size=teacher.denoiser.terms.size)
    theirs, own = teacher.denoiser, (begin.prediction, begin.diffusion.T, begin.condition)
    if own != (theirs.prediction, theirs.diffusion.T, theirs.condition):
        raise ValueError(
            f"{folder}: found a student that predicts {own[0]} at {own[1]:,} levels and takes "
            f"{own[2] or 'no condition'}, expected {theirs.prediction}, {theirs.diffusion.T:,} and "
            f"{theirs.condition or 'none'}, as the teacher"
        )
    return begin


def _iterations_of(folder: str) -> int:
    """How many iterations a finished student has had, and those that it went on from."""
    found = read_json(Path(folder) / RECORD)
    return found["settings"]["iterations"] + found["result"].get("iterations_before", 0)


def _begun(out: Path, settings: Distillation, teacher: Pipeline, decided: dict) -> dict:
    """What ``out`` holds of this distillation, if anything; ValueError where it holds something else."""
    tidy(out)
    file = out / RECORD
    if not file.is_file():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out}: found other files there, expected an empty or a new folder")
        return {}
    found = read_json(file)
    if not isinstance(found.get("settings"), dict):
        raise ValueError(f"{file}: found no settings, expected those of a distillation; move {out} away")
    # What moves had before they had a variance of their own.
    variance = "stretched" if teacher.denoiser.learns_variance else teacher.diffusion.variance
    begun = {**_LATER, "variance": variance, **found["settings"]}
    for key, value in dataclasses.asdict(settings).items():
        if begun.get(key) != value:
            raise ValueError(
                f"{out}: this distillation was begun with {key} = {begun.get(key)!r}, "
                f"expected {value!r}; move the folder away to begin anew"
            )
    for what, expected in decided.items():  # older ones have no content
        if found.get("content", decided).get(what) != expected:
            raise ValueError(
                f"{out}: this distillation was begun with another content of {what}, expected that of then; "
                "move the folder away to begin anew"
            )
    return found


def _draws_images(teacher: Pipeline) -> bool:
    shape = teacher.denoiser.shape
    return teacher.vae is not None or (len(shape) == 3 and shape[0] in (1, 3))


def _summary(teacher: Pipeline, student: Denoiser, pool: DynamicPool) -> str:
    """What will be trained, in a line."""
    theirs, own = teacher.denoiser.parameter_count, student.parameter_count
    megabytes = pool.size * math.prod(pool.shape) * pool.storage.dtype.itemsize / 1e6
    guided = 2 if pool.guided.guidance != 1 else 1
    shape = " x ".join(map(str, pool.shape))
    return (
        f"teacher: {theirs:,} parameters; student: {own:,} ({own / theirs:.0%}); pool: {pool.size:,} samples "
        f"of {shape}, {megabytes:,.1f} MB, filled by about {guided * pool.size:,} evaluations of the teacher"
    )
