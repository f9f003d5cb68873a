"""Distil any teacher to a student, with no data set: what ``dkdm distill`` does."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load
from torch import Tensor

from dkdm_lab.data.images import to_uint8
from dkdm_lab.metrics.scores import require, score
from dkdm_lab.networks.classifier_free_guidance import Guided
from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.pools import DynamicPool
from dkdm_lab.sources import Conditions
from dkdm_lab.system import budget, distributed, figures
from dkdm_lab.system.files import added, alone, explained, tidy, whole, write_json
from dkdm_lab.system.provenance import device, provenance
from dkdm_lab.system.settings import CountOrNone, Scored, accept, kind
from dkdm_lab.teachers.distillation import Distillation
from dkdm_lab.teachers.pipelines import Pipeline
from dkdm_lab.training import train

# Settings that came later than the first distillations, and what those were made with.
_LATER = {"stride": 1, "mixed_precision": "no"}


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
) -> Denoiser:
    """Train a student from ``teacher`` with the dynamic pool and write it to ``out``, a pipeline of the
    teacher's kind with a card, its losses (``history.json``, ``loss.png``) and a sheet of its samples beside
    the teacher's (``samples.png``); returns it, in eval mode.

    evaluate: how many images to compare with as many of the teacher's, see :func:`compare`; 0 for none.
    compile: a mode of `torch.compile`, see :func:`~dkdm_lab.training.train`. samples: how many columns the
    sheet has at most, see :func:`sheet_size`; 0 for no sheet. report: is told in a line what will be trained.

    While it is under way ``out`` holds its settings and checkpoints: called again it goes on from there,
    also after a :func:`~dkdm_lab.system.budget.budget` ended it. The
    student is on the disk before anything else is made of it; what is missing then, since the process was
    killed or something failed, is made by the same call, and so is an evaluation that was not asked for
    before. Under `accelerate launch` all ranks call it and train together.

    Errors: ValueError where ``out`` holds anything else, or a student, conditions or a number do not fit;
    what ``evaluate`` needs is looked for first, see :func:`~dkdm_lab.metrics.require`. RuntimeError where
    the student is saved and something else that belongs to it could not be made.
    """
    if evaluate:
        accept("evaluate", kind(Scored), evaluate)
    accept("samples", kind(CountOrNone), samples)
    if settings.lr is None:
        settings = dataclasses.replace(settings, lr=_learning_rate(settings.iterations))
    out = Path(out)
    file = out / "distillation.json"
    tidy(out)
    found = _begun(out, settings, teacher)
    main = distributed.rank() == 0
    if evaluate and main:
        require("inception", evaluate)
    samples = samples if _draws_images(teacher) else 0
    if "result" in found:  # the student is there
        student = Denoiser.from_pretrained(out).to(device())
        if main:
            _complete(teacher, student, settings, out, conditions, evaluate, samples, found)
        return student

    torch.manual_seed(settings.seed)
    student = teacher.student(settings.student).to(device())
    stride = max(1, teacher.diffusion.T // 10) if settings.stride is None else settings.stride
    pool = DynamicPool(
        teacher.diffusion,
        teacher.denoiser.to(device()),
        distributed.local_batch_size(settings.batch_size),
        rho=settings.rho,
        stride=stride,
        variance=settings.variance,
        storage=settings.storage,
        conditions=conditions,
        guidance=settings.guidance,
        seed=distributed.rank_seed(settings.seed + 1),
        device=device(),
    )
    if compile is not None:
        pool.compile_teacher(compile)
    if main:
        report(_summary(teacher, student, pool))
        write_json(file, {"settings": dataclasses.asdict(settings)}, "choose another place for the student")
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
        checkpoint=out / "checkpoints",
        checkpoint_every=checkpoint_every,
        progress=progress,
        description=f"distilling {settings.student}",
    )
    evaluations = sum(distributed.gather(pool.evaluations))
    if not main:
        return averaged
    found = {
        "settings": dataclasses.asdict(settings),
        "result": {
            "simple": history.simple[-1],
            "vlb": history.vlb[-1],
            "parameters": averaged.parameter_count,
            "teacher_parameters": teacher.denoiser.parameter_count,
            "teacher_evaluations": evaluations,
            "stride": stride,
        },
        "made_with": provenance(),
        "missing": list(_PARTS if samples else [part for part in _PARTS if part != "samples.png"]),
    }
    with explained(out, "the same call goes on from its last checkpoint"), added(out, file.name) as new:
        teacher.write_network(new, averaged)
        (new / "history.json").write_text(json.dumps(vars(history)), encoding="utf-8")
        (new / file.name).write_text(json.dumps(found, indent=1), encoding="utf-8")
    budget.kept()
    _complete(teacher, averaged, settings, out, conditions, evaluate, samples, found)
    return averaged


def _learning_rate(iterations: int) -> float:
    return round(1e-4 * min(10.0, max(1.0, 10_000 / iterations)), 6)


# What belongs to a student beside its weights and its losses, in the order in which it is made.
_PARTS = ("the teacher's other parts", "loss.png", "samples.png", "README.md")


def _begun(out: Path, settings: Distillation, teacher: Pipeline) -> dict:
    """What ``out`` holds of this distillation, if anything; ValueError where it holds something else."""
    file = out / "distillation.json"
    if not file.is_file():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out}: found other files there, expected an empty or a new folder")
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    # What moves had before they had a variance of their own.
    variance = "stretched" if teacher.denoiser.learns_variance else teacher.diffusion.variance
    begun = {**_LATER, "variance": variance, **found["settings"]}
    for key, value in dataclasses.asdict(settings).items():
        if begun.get(key) != value:
            raise ValueError(
                f"{out}: this distillation was begun with {key} = {begun.get(key)!r}, "
                f"expected {value!r}; move the folder away to begin anew"
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
    found: dict,
) -> None:
    """Make what is missing beside a student that is saved: each part by itself, for one may fail."""
    missing, result = set(found.get("missing", ())), found["result"]
    if evaluate and result.get("metrics", {}).get("N") != evaluate:
        missing.add("metrics")
    if not samples:
        missing.discard("samples.png")
    if not missing:
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
        result["metrics"] = compare(teacher, student, evaluate, conditions, settings.seed)

    def card() -> None:
        with whole(out / "README.md") as scratch:
            scratch.write_text(_card(settings, result, conditions, teacher, out), encoding="utf-8")

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


def sheet_size(teacher: Pipeline, evaluations: int, guidance: float = 1.0, most: int = 8) -> tuple[int, int]:
    """How many columns and sampling steps a sheet can have for a tenth of the ``evaluations`` of its teacher
    that a training took, guided ones counted twice; at most ``most`` columns of 50 steps, at least two of 10.
    """
    allowed = evaluations // (10 if guidance == 1 else 20)
    steps = min(50, teacher.diffusion.T, max(10, allowed // most))
    return min(most, max(2, allowed // steps)), steps


def samples_of(
    denoisers: Mapping[str, Denoiser],
    pipeline: Pipeline,
    n: int,
    steps: int,
    conditions: tuple[Conditions, Tensor] | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, Tensor]:
    """What each denoiser makes of the same noise: ``{name: uint8 images [n, C, H, W]}``, drawn in ``steps``
    and decoded as those of ``pipeline``. conditions: what there is, and ``[n]`` int64, which of it each
    sample has."""
    rows, given = {}, None
    for name, denoiser in denoisers.items():
        if conditions is not None:
            given = conditions[0][conditions[1]].cpu()
            if guidance != 1:
                denoiser = Guided(denoiser, guidance, conditions[0].null)
        x = pipeline.diffusion.sample(
            denoiser,
            n,
            steps,
            condition=given,
            batch_size=batch_size,
            seed=seed + 2,
            device=device(),
            callback=budget.between_steps,
        )
        rows[name] = to_uint8(pipeline.decode(x, batch_size))
    return rows


def compare(
    teacher: Pipeline, student: Denoiser, n: int, conditions: Conditions | None = None, seed: int = 0
) -> dict:
    """FID' of a student: its ``n`` images against as many of its teacher's, in 50 steps, by Inception."""
    steps = min(50, teacher.diffusion.T)
    condition = None if conditions is None else conditions[torch.arange(n) % len(conditions)].cpu()
    images = [
        to_uint8(
            teacher.decode(
                teacher.diffusion.sample(
                    denoiser,
                    n,
                    steps,
                    condition=condition,
                    seed=seed + number,
                    device=device(),
                    callback=budget.between_steps,
                )
            )
        )
        for number, denoiser in enumerate((student, teacher.denoiser), 2)
    ]
    found = score(*images, metrics=("FID",))
    return {"FID'": found["FID"], "N": n, "steps": steps}


def _card(
    settings: Distillation, result: dict, conditions: Conditions | None, teacher: Pipeline, out: Path
) -> str:
    """The model card, as the Hub shows it."""
    fid, metrics = "not measured", result.get("metrics")
    unknown = ["FID, precision and recall against real images, for no data set was at hand."]
    if metrics:
        fid = format(metrics["FID'"], ".2f")
        unknown.append(
            f"FID' compares {metrics['N']:,} of its images, drawn in {metrics['steps']} steps, with as many "
            "of its teacher's, not with real ones."
        )
    else:
        unknown.append("How near its samples come to its teacher's (FID'), which the losses do not say.")
    unknown.append("What its teacher should not have learned, as biases or images known by heart.")
    open_questions = "\n".join(f"- {what}" for what in unknown)
    smaller = result["parameters"] / result["teacher_parameters"]
    guided = f", guided by {settings.guidance:g} on their way" if settings.guidance != 1 else ""
    strides = f", strides of {result['stride']} steps" if result["stride"] != 1 else ""
    drawn = "" if conditions is None else f", each under one of {len(conditions):,} conditions{guided}"
    metadata, licence = _metadata(teacher)
    return f"""---
{metadata}
---

# Distilled from {settings.teacher}

A student of {result["parameters"]:,} parameters ({smaller:.0%} of its teacher's), trained by data-free
knowledge distillation for diffusion models (DKDM, Xiang et al., CVPR 2025). **No data set was used**: what it
learned from are noisy samples that its teacher denoised, drawn from noise{drawn}.
{_pictures(settings, result, out)}
| | |
|---|---|
| teacher | {settings.teacher} |
| student | {settings.student} |
| method | dynamic iterative distillation (Algorithm 1), rho = {settings.rho:g}{strides} |
| iterations | {settings.iterations:,} of batch size {settings.batch_size} |
| learning rate, EMA | {settings.lr:g}, {settings.ema:g} |
| teacher evaluations | {result["teacher_evaluations"]:,} |
| L'_simple at the end | {result["simple"]:.3g} |
| L'_vlb at the end, bits per dimension | {result["vlb"]:.3g} |
| FID' | {fid} |
| seed | {settings.seed} |

The losses compare the student with its teacher on the teacher's own noisy samples. They are no FID.

## What was not evaluated

{open_questions}

## Licence

{licence}
"""


def _pictures(settings: Distillation, result: dict, out: Path) -> str:
    """The part of the card that shows samples and losses, as far as they could be made."""
    text = ""
    if (shown := result.get("samples")) and (out / "samples.png").is_file():
        guided = f" and guidance {settings.guidance:g}" if settings.guidance != 1 else ""
        text += f"""
![Samples of the teacher in one row and of the student in the other](samples.png)

Teacher and student from the same noise, column by column, in {shown["steps"]} steps{guided}; not selected.
"""
        if prompts := shown.get("prompts"):
            text += (
                "\n"
                + "\n".join(f"{n}. {' '.join(prompt.split())}" for n, prompt in enumerate(prompts, 1))
                + "\n"
            )
    if (out / "loss.png").is_file():
        text += """
![The losses over the iterations](loss.png)
"""
    return text


def _metadata(teacher: Pipeline) -> tuple[str, str]:
    """The head of a card, in YAML, and what to say of the licence, which is the teacher's own."""
    theirs = {}
    if teacher.folder is not None and (teacher.folder / "README.md").is_file():
        try:
            theirs = metadata_load(teacher.folder / "README.md") or {}
        except Exception:  # somebody else's file; the licence counts as not named
            theirs = {}
    kept = {key: theirs[key] for key in ("license", "license_name", "license_link") if theirs.get(key)}
    licence = (
        f"The teacher's card gives its licence as `{kept.get('license_name') or kept['license']}`, which "
        "holds for this student as far as it holds for what is made from its teacher."
        if "license" in kept
        else "The teacher names none that could be read. Ask its makers before you pass this student on."
    )
    data = {"library_name": "diffusers", "tags": ["diffusion", "distillation", "data-free", "dkdm"], **kept}
    # The Hub's cache names a folder by the model's id; where other folders are published nobody can say.
    parts = [] if teacher.folder is None else teacher.folder.parts
    if ids := [match for part in parts if (match := re.fullmatch(r"models--(.+?)--(.+)", part))]:
        data["base_model"] = "/".join(ids[-1].groups())
    tags = {None: "unconditional-image-generation", "text": "text-to-image"}  # the Hub has none for classes
    if teacher.denoiser.condition in tags:
        data["pipeline_tag"] = tags[teacher.denoiser.condition]
    return ModelCardData(**data).to_yaml(), licence
