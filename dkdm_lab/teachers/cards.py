"""The model card of a student, as the Hub shows it."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from dkdm_lab.sources import Conditions
from dkdm_lab.teachers.pipelines import Pipeline


def card(settings, result: dict, conditions: Conditions | None, teacher: Pipeline, out: Path) -> str:
    """The model card, as the Hub shows it. settings: a :class:`~dkdm_lab.teachers.distill.Distillation`."""
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
    begun = "" if settings.init == "random" else ", begun with its teacher's weights where they fit"
    before = result.get("iterations_before")
    before = f", after {before:,} of {settings.continued}" if before else ""
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
| student | {settings.student}{begun} |
| method | dynamic iterative distillation (Algorithm 1), rho = {settings.rho:g}{strides} |
| iterations | {settings.iterations:,} of batch size {settings.batch_size}{before} |
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


def _pictures(settings, result: dict, out: Path) -> str:
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
