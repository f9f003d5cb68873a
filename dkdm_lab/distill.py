"""Distil any teacher to a student, with no data set: what ``dkdm distill`` does."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from dkdm_lab import ranks
from dkdm_lab.data import Conditions, to_uint8
from dkdm_lab.evaluation import score
from dkdm_lab.files import write_json
from dkdm_lab.networks import Denoiser
from dkdm_lab.pipelines import Pipeline
from dkdm_lab.pools import DynamicPool
from dkdm_lab.runs import device, provenance
from dkdm_lab.training import train

# Settings that came later than the first distillations, and what those were made with.
_LATER = {"stride": 1, "mixed_precision": "no"}


@dataclass(frozen=True)
class Distillation:
    """What decides a distillation; the defaults are Table 6's, but for the number of iterations and the pool.

    That pool is a tenth of the paper's and moves by strides; None is a tenth of the teacher's T. In short
    trainings it does better (chapter 6). The paper's is ``rho=0.4, stride=1``.
    """

    teacher: str
    student: str
    iterations: int = 10_000
    batch_size: int = 128
    rho: float = 0.04
    stride: int | None = None
    variance: str | None = None
    storage: str = "float32"
    lr: float = 1e-4
    ema: float = 0.9999
    mixed_precision: str = "no"
    guidance: float = 1.0
    seed: int = 0


def distill(
    teacher: Pipeline,
    settings: Distillation,
    out: str | Path,
    conditions: Conditions | None = None,
    evaluate: int = 0,
    checkpoint_every: int = 1000,
    compile: str | None = None,
    progress: bool = True,
) -> Denoiser:
    """Train a student from ``teacher`` with the dynamic pool and write it to ``out``, a pipeline of the
    teacher's kind with a card; returns it, in eval mode.

    evaluate: how many images to compare with as many of the teacher's, see :func:`compare`; 0 for none.
    compile: a mode of `torch.compile`, see :func:`~dkdm_lab.training.train`.
    While it is under way ``out`` holds its settings and checkpoints: called again it goes on from there.
    Under `accelerate launch` all ranks call it and train together.
    Errors: ValueError where ``out`` holds anything else, or a student or conditions do not fit the teacher.
    """
    out = Path(out)
    asked = dataclasses.asdict(settings)
    file = out / "distillation.json"
    if out.exists() and not file.is_file() and any(out.iterdir()):
        raise ValueError(f"{out}: found other files there, expected an empty or a new folder")
    if file.is_file():
        found = json.loads(file.read_text())
        # Before moves had a variance of their own, a teacher that learns none left them the process's.
        variance = None if teacher.denoiser.learns_variance else teacher.diffusion.variance
        begun = {**_LATER, "variance": variance, **found["settings"]}
        for key, value in asked.items():
            if begun.get(key) != value:
                raise ValueError(
                    f"{out}: this distillation was begun with {key} = {begun.get(key)!r}, "
                    f"expected {value!r}; move the folder away to begin anew"
                )
        if "result" in found:
            raise ValueError(f"{out}: this distillation is finished; move the folder away to begin anew")
    torch.manual_seed(settings.seed)
    student = teacher.student(settings.student).to(device())
    stride = max(1, teacher.diffusion.T // 10) if settings.stride is None else settings.stride
    pool = DynamicPool(
        teacher.diffusion,
        teacher.denoiser.to(device()),
        ranks.share(settings.batch_size),
        rho=settings.rho,
        stride=stride,
        variance=settings.variance,
        storage=settings.storage,
        conditions=conditions,
        guidance=settings.guidance,
        seed=ranks.seed(settings.seed + 1),
        device=device(),
    )
    main = ranks.rank() == 0
    if main:
        write_json(file, {"settings": asked})
    else:  # the same first weights, but not the same dropout
        torch.manual_seed(ranks.seed(settings.seed))
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
    evaluations = sum(ranks.everyones(pool.evaluations))
    if not main:
        return averaged
    result = {
        "simple": history.simple[-1],
        "vlb": history.vlb[-1],
        "parameters": averaged.parameter_count,
        "teacher_parameters": teacher.denoiser.parameter_count,
        "teacher_evaluations": evaluations,
        "stride": stride,
    }
    found = {"settings": asked, "result": result, "made_with": provenance()}
    if evaluate:
        result["metrics"] = compare(teacher, averaged, evaluate, conditions, settings.seed)
    files = {
        "README.md": _card(settings, result, conditions),
        "distillation.json": json.dumps(found, indent=1),
    }
    teacher.save(out, averaged, files)
    return averaged


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
                    denoiser, n, steps, condition=condition, seed=seed + number, device=device()
                )
            )
        )
        for number, denoiser in enumerate((student, teacher.denoiser), 2)
    ]
    found = score(*images, metrics=("FID",))
    return {"FID'": found["FID"], "N": n, "steps": steps}


def _card(settings: Distillation, result: dict, conditions: Conditions | None) -> str:
    """The model card, as the Hub shows it."""
    fid, measured = "not measured", "They are no FID: how good the samples are has not been measured."
    if metrics := result.get("metrics"):
        fid = format(metrics["FID'"], ".2f")
        measured = (
            f"FID' compares {metrics['N']:,} of its images, drawn in {metrics['steps']} steps, with as many "
            "of its teacher's, not with real ones."
        )
    smaller = result["parameters"] / result["teacher_parameters"]
    guided = f", guided by {settings.guidance:g} on their way" if settings.guidance != 1 else ""
    strides = f", strides of {result['stride']} steps" if result["stride"] != 1 else ""
    drawn = "" if conditions is None else f", each under one of {len(conditions):,} conditions{guided}"
    return f"""---
library_name: diffusers
tags: [diffusion, distillation, data-free, dkdm]
---

# Distilled from {settings.teacher}

A student of {result["parameters"]:,} parameters ({smaller:.0%} of its teacher's), trained by data-free
knowledge distillation for diffusion models (DKDM, Xiang et al., CVPR 2025). **No data set was used**: what it
learned from are noisy samples that its teacher denoised, drawn from noise{drawn}.

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

The losses compare the student with its teacher on the teacher's own noisy samples. {measured}
"""
