"""Distil any teacher to a student, with no data set: what ``dkdm distill`` does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from dkdm_lab.metrics.scores import require
from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.networks.schedulers import read_json
from dkdm_lab.pools import DynamicPool
from dkdm_lab.sources import Conditions
from dkdm_lab.system import budget, distributed, figures
from dkdm_lab.system.checkpoint import tensors_hash
from dkdm_lab.system.files import added, alone, explained, tidy, whole, write_json
from dkdm_lab.system.provenance import device, provenance
from dkdm_lab.system.settings import CountOrNone, Scored, accept, kind
from dkdm_lab.teachers import hub
from dkdm_lab.teachers.cards import card as card_of
from dkdm_lab.teachers.distillation import Distillation
from dkdm_lab.teachers.pipelines import Pipeline
from dkdm_lab.teachers.samples import compare, samples_of, sheet_size
from dkdm_lab.training import check_tracker, train

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

    evaluate: how many images to compare with as many of the teacher's, see :func:`compare`; 0 for none.
    compile: a mode of `torch.compile`, see :func:`~dkdm_lab.training.train`. samples: how many columns the
    sheet has at most, see :func:`sheet_size`; 0 for no sheet. report: is told in a line what will be trained,
    and in another how long it will take. checkpointing: compute the student's activations twice and keep
    fewer of them. log_with: one of accelerate's trackers; those that keep files have them in ``out/logs``.
    push_to_hub: a repository's name there, which gets all that ``out`` holds once it is saved.

    While it is under way ``out`` holds its settings and checkpoints: called again it goes on from there,
    also after a :func:`~dkdm_lab.system.budget.budget` ended it. The
    student is on the disk before anything else is made of it; what is missing then, since the process was
    killed or something failed, is made by the same call, and so is an evaluation that was not asked for
    before. Under `accelerate launch` all ranks call it and train together.

    Errors: ValueError where ``out`` holds anything else, or a student, conditions or a number do not fit;
    what ``evaluate``, ``log_with`` and ``push_to_hub`` need is looked for first. RuntimeError where
    the student is saved and something else that belongs to it could not be made.
    """
    if evaluate:
        accept("evaluate", kind(Scored), evaluate)
    for name, value in (("samples", samples), ("checkpoint_every", checkpoint_every)):
        accept(name, kind(CountOrNone), value)
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
    out = Path(out)
    file = out / "distillation.json"
    tidy(out)
    check_tracker(log_with)
    begin = None if settings.continued is None else _finished_student(settings.continued, teacher)
    decided = content(teacher, conditions, begin)
    found = _begun(out, settings, teacher, decided)
    main = distributed.rank() == 0
    if evaluate and main:
        require("inception", evaluate)
    if push_to_hub is not None and main:
        hub.require(push_to_hub)
    samples = samples if _draws_images(teacher) else 0
    if "result" in found:  # the student is there
        student = Denoiser.from_pretrained(out).to(device())
        if main:
            _complete(teacher, student, settings, out, conditions, evaluate, samples, push_to_hub, found)
        return student

    torch.manual_seed(settings.seed)
    student = teacher.student(settings.student).to(device())
    begun = _begin_as(student, teacher.denoiser) if settings.init == "teacher" else ""
    if begin is not None:
        begun = _go_on_from(student, begin, settings.continued)
    if checkpointing:
        _keep_less(student.network)
    stride = max(1, teacher.diffusion.T // 10) if settings.stride is None else settings.stride
    pool = DynamicPool(
        teacher.diffusion,
        teacher.denoiser.to(device()),
        distributed.local_batch_size(settings.batch_size // settings.accumulate),
        rho=settings.rho * settings.accumulate,  # as many samples in all
        stride=stride,
        variance=settings.variance,
        storage=settings.storage,
        conditions=conditions,
        guidance=settings.guidance,
        seed=distributed.rank_seed(settings.seed + 1),
        device=device(),
        progress=progress and distributed.rank() == 0,
    )
    if compile is not None:
        pool.compile_teacher(compile)
    teacher.denoiser.at_once = pool.batch_size  # in the warm-up too, which asks for many more
    if main:
        report(_summary(teacher, student, pool) + begun)
        record = {"settings": dataclasses.asdict(settings), "content": decided}
        write_json(file, record, "choose another place for the student")
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
    found = {
        "settings": dataclasses.asdict(settings),
        "content": decided,
        "result": {
            "simple": history.simple[-1],
            "vlb": history.vlb[-1],
            "parameters": averaged.parameter_count,
            "teacher_parameters": teacher.denoiser.parameter_count,
            "teacher_evaluations": evaluations,
            "stride": stride,
            **({} if begin is None else {"iterations_before": _iterations_of(settings.continued)}),
        },
        "made_with": provenance(),
        "missing": list(_PARTS if samples else [part for part in _PARTS if part != "samples.png"]),
    }
    with explained(out, "the same call goes on from its last checkpoint"), added(out, file.name) as new:
        teacher.write_network(new, averaged)
        (new / "history.json").write_text(json.dumps(vars(history)), encoding="utf-8")
        (new / file.name).write_text(json.dumps(found, indent=1), encoding="utf-8")
    budget.kept()
    _complete(teacher, averaged, settings, out, conditions, evaluate, samples, push_to_hub, found)
    return averaged


def finished(out: str | Path) -> bool:
    """Whether a distillation in ``out`` has its student."""
    file = Path(out) / "distillation.json"
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


def _go_on_from(student: Denoiser, begin: Denoiser, folder: str) -> str:
    """Give a student the weights that it had; says so. ValueError where its network is another."""
    own, old = student.network.state_dict(), begin.network.state_dict()
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in old.items()}:
        raise ValueError(
            f"{folder}: found {type(begin.network).__name__} of {begin.parameter_count:,} parameters, "
            f"expected the network that student names, {type(student.network).__name__} of "
            f"{student.parameter_count:,}"
        )
    student.network.load_state_dict(old)
    return f"; it goes on after {_iterations_of(folder):,} iterations of {folder}"


def _iterations_of(folder: str) -> int:
    """How many iterations a finished student has had, and those that it went on from."""
    found = read_json(Path(folder) / "distillation.json")
    return found["settings"]["iterations"] + found["result"].get("iterations_before", 0)


def _keep_less(network: torch.nn.Module) -> None:
    """Gradient checkpointing; ValueError for a network that has none."""
    if not getattr(network, "_supports_gradient_checkpointing", False):
        raise ValueError(
            f"checkpointing: found {type(network).__name__}, which knows nothing of it, expected a network "
            "of diffusers"
        )
    network.enable_gradient_checkpointing()


def _begin_as(student: Denoiser, teacher: Denoiser) -> str:
    """Give a student its teacher's weights wherever it has one of the same name and shape; says how many."""
    theirs, own = teacher.network.state_dict(), student.network.state_dict()
    fitting = {
        key: theirs[key] for key, value in own.items() if key in theirs and theirs[key].shape == value.shape
    }
    if not fitting:
        raise ValueError(
            "init: found no weight of the student that its teacher has in the same name and shape, "
            "expected a student of the same widths, as depth0.5"
        )
    student.network.load_state_dict({**own, **fitting})
    return f"; {len(fitting)} of the student's {len(own)} tensors begin as its teacher's"


# What belongs to a student beside its weights and its losses, in the order in which it is made.
_PARTS = ("the teacher's other parts", "loss.png", "samples.png", "README.md")


def _begun(out: Path, settings: Distillation, teacher: Pipeline, decided: dict) -> dict:
    """What ``out`` holds of this distillation, if anything; ValueError where it holds something else."""
    file = out / "distillation.json"
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


def _complete(
    teacher: Pipeline,
    student: Denoiser,
    settings: Distillation,
    out: Path,
    conditions: Conditions | None,
    evaluate: int,
    samples: int,
    push_to_hub: str | None,
    found: dict,
) -> None:
    """Make what is missing beside a student that is saved: each part by itself, for one may fail. The Hub
    gets the whole, or nothing."""
    missing, result = set(found.get("missing", ())), found["result"]
    if evaluate and result.get("metrics", {}).get("N") != evaluate:
        missing.add("metrics")
    if not samples:
        missing.discard("samples.png")
    pushing = push_to_hub is not None and result.get("pushed") != push_to_hub
    if not missing and not pushing:
        raise ValueError(f"{out}: this distillation is finished; move the folder away to begin anew")
    missing.add("README.md")  # which shows the others
    teacher.to(device())

    def other_parts() -> None:
        with added(out, last="model_index.json") as new:
            teacher.write_other_parts(new, student)

    def loss() -> None:
        history = json.loads((out / "history.json").read_text(encoding="utf-8"))
        values = {"L'simple": history["simple"]}
        if student.learns_variance:
            values["L'vlb, bits per dimension"] = history["vlb"]
        with figures.style(), whole(out / "loss.png") as scratch:
            figures.losses(history["iteration"], values).savefig(scratch, dpi=_DPI)

    def sheet() -> None:
        columns, steps = sheet_size(teacher, result["teacher_evaluations"], settings.guidance, samples)
        chosen = None
        if conditions is not None:
            chosen = torch.linspace(0, len(conditions) - 1, columns).round().long()
        rows = samples_of(
            {"teacher": teacher.denoiser, "student": student},
            teacher,
            columns,
            steps,
            None if chosen is None else (conditions, chosen),
            settings.guidance,
            settings.seed,
            min(columns, settings.batch_size),
        )
        labels = None
        if chosen is not None:  # labels are short enough to stand over their columns; prompts are not
            classes = conditions.values.ndim == 1
            labels = conditions.values[chosen].tolist() if classes else range(1, columns + 1)
            labels = [str(label) for label in labels]
        with figures.style(), whole(out / "samples.png") as scratch:
            figures.sample_sheet(rows, labels).savefig(scratch, dpi=_DPI)
        result["samples"] = {"columns": columns, "steps": steps}
        if chosen is not None and conditions.names is not None:
            result["samples"]["prompts"] = [conditions.names[index] for index in chosen.tolist()]

    def metrics() -> None:
        result["metrics"] = compare(
            teacher, student, evaluate, conditions, settings.seed, max(8, 2 * settings.batch_size)
        )

    def card() -> None:
        with whole(out / "README.md") as scratch:
            scratch.write_text(card_of(settings, result, conditions, teacher, out), encoding="utf-8")

    made_by = dict(zip(_PARTS, (other_parts, loss, sheet, card), strict=True)) | {"metrics": metrics}
    failed: dict[str, Exception] = {}
    try:
        with alone(out / "checkpoints", wait=False):
            shutil.rmtree(out / "checkpoints", ignore_errors=True)  # for the weights themselves are there
            for part in (*_PARTS[:-1], "metrics", _PARTS[-1]):
                if part in missing:
                    try:
                        made_by[part]()
                    except Exception as error:  # whatever it is, the next part may be made
                        failed[part] = error
            found["missing"] = [part for part in _PARTS if part in failed]
            try:
                write_json(out / "distillation.json", found)
            except OSError as error:  # what is there says that all of it is missing: it is made once more
                failed["distillation.json"] = error
            if pushing and not failed:
                try:
                    hub.push(out, push_to_hub)
                    result["pushed"] = push_to_hub
                    write_json(out / "distillation.json", found)
                except Exception as error:  # of a library that raises many kinds
                    failed[f"its copy at {push_to_hub} on the Hub"] = error
        (out / ".checkpoints.lock").unlink(missing_ok=True)
    except KeyboardInterrupt as stopped:
        out_of_time = isinstance(stopped, budget.OutOfTime)
        why, kind = (budget.used_up(), budget.OutOfTime) if out_of_time else ("stopped", budget.Stopped)
        raise kind(
            f"{why}; the student is saved in {out}, and the same call makes what else belongs to it"
        ) from None
    if failed:
        problems = "; ".join(f"{part}: {type(error).__name__}: {error}" for part, error in failed.items())
        raise RuntimeError(
            f"{out}: the student is saved there, but not everything that belongs to it could be made "
            f"({problems}); the same call tries that again"
        ) from next(iter(failed.values()))


_DPI = 110  # of the pictures


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
