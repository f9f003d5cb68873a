"""What a student and its teacher draw, side by side: a sheet to look at, and a score."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dkdm_lab.data.images import to_uint8
from dkdm_lab.metrics.scores import score
from dkdm_lab.networks.classifier_free_guidance import Guided
from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.sources import Conditions
from dkdm_lab.system import budget
from dkdm_lab.system.provenance import device
from dkdm_lab.teachers.pipelines import Pipeline


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
    teacher: Pipeline,
    student: Denoiser,
    n: int,
    conditions: Conditions | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> dict:
    """FID' of a student: its ``n`` images against as many of its teacher's, in 50 steps, by Inception. Of the
    samples a batch at a time is in memory, of the images all, with 8 bits a number."""
    steps = min(50, teacher.diffusion.T)

    def images(denoiser: Denoiser, number: int) -> Tensor:
        parts = []
        for first in range(0, n, batch_size):
            chosen = torch.arange(first, min(first + batch_size, n))
            x = teacher.diffusion.sample(
                denoiser,
                len(chosen),
                steps,
                condition=None if conditions is None else conditions[chosen % len(conditions)].cpu(),
                batch_size=batch_size,
                seed=seed + number,
                first=first,
                device=device(),
                callback=budget.between_steps,
            )
            parts.append(to_uint8(teacher.decode(x, min(batch_size, 32))))
        return torch.cat(parts)

    found = score(images(student, 2), images(teacher.denoiser, 3), metrics=("FID",))
    return {"FID'": found["FID"], "N": n, "steps": steps}
