"""How a run is judged: its samples, their scores, and how far a student is from its teacher."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from dkdm_lab.data.images import to_model, to_uint8
from dkdm_lab.data.sets import judged
from dkdm_lab.experiments.artifact import read
from dkdm_lab.metrics.digits import class_accuracy
from dkdm_lab.metrics.scores import score
from dkdm_lab.metrics.two_samples import energy_distance
from dkdm_lab.networks.classifier_free_guidance import Guided
from dkdm_lab.system import budget
from dkdm_lab.system.files import whole, write_json
from dkdm_lab.system.provenance import device
from dkdm_lab.teachers.pipelines import decode

if TYPE_CHECKING:
    from dkdm_lab.experiments.runs import Run

SHOWN = 24  # samples of each run that are kept to look at
AGAINST_TEACHER = "against_teacher.json"  # in a run's folder: its FID', once that was measured
ERROR_IMAGES = 1024  # real images that a student's eps is compared with its teacher's on


def draw(
    run: Run, denoiser: nn.Module, n: int, steps: int, seed: int, first: int = 0, timed: bool = True
) -> Tensor:
    """Samples by the preset's sampler, from number ``first`` on: points and latents as they are, images
    in 8 bits per value. timed: whether a budget of minutes may end it."""
    x = run.diffusion.sample(
        denoiser,
        n,
        steps,
        method=run.preset.sampler,
        condition=run.labels(n, first),
        first=first,
        seed=seed,
        device=device(),
        callback=budget.between_steps if timed else None,
    )
    return x if run.latent or not judged(run.preset.data).of_images else to_uint8(x)


def evaluation_samples(run: Run, denoiser: nn.Module) -> Tensor:
    """What an evaluation draws, for :func:`distance`; the same noise for all methods of a seed."""
    return draw(run, denoiser, run.preset.samples, run.preset.steps, run.seed + 3)


def score_model(run: Run, denoiser: nn.Module, last: bool = True) -> dict:
    """The preset's metrics of samples from ``denoiser``; of a class-conditional one with guidance too,
    under names that begin with ``guided-``, and how many samples show the class that was asked for.
    Before the ``last`` score of a training ``curve_samples`` may make it a cheaper one."""
    p = run.preset
    if p.curve_samples and not last:
        x = images_of(run, draw(run, denoiser, p.curve_samples, p.steps, run.seed + 3))
        found = score(x, _reference(run), p.features, (), first=p.curve_samples)
        return {p.curve_metric: found[p.curve_metric]}
    if not p.classes:
        return distance(run, evaluation_samples(run, denoiser))
    scores = {}
    guided = Guided(denoiser, p.sample_guidance, run.conditions.null)
    for prefix, model in (("", denoiser), ("guided-", guided)):
        x = evaluation_samples(run, model)
        found = distance(run, x) | {"class-accuracy": class_accuracy(x, run.labels(len(x)))}
        counts = {name: found.pop(name) for name in ("N", "N_reference")}
        scores |= {prefix + name: value for name, value in found.items()}
    return scores | counts


def distance(run: Run, x: Tensor, keep: bool = False) -> dict:
    """The preset's metrics of images (uint8), latents, or the toy's points, against the real ones. keep: as
    of :func:`~dkdm_lab.metrics.score`."""
    p, data = run.preset, judged(run.preset.data)
    if not data.of_images:
        return {data.metric: energy_distance(x, _reference(run)), "N": len(x)}
    images, reference = images_of(run, x), _reference(run)
    return score(images, reference, p.features, data.metrics, first=p.curve_samples, keep=keep)


def images_of(run: Run, x: Tensor, timed: bool = True) -> Tensor:
    """What was drawn as uint8 images: latents are decoded. timed: as of :func:`draw`."""
    return x if x.dtype == torch.uint8 else to_uint8(decode(run.vae(), x, timed=timed))


def _reference(run: Run) -> Tensor:
    """The real images, or points, that samples are compared with."""
    return judged(run.preset.data).reference(run.preset.samples, run.preset.reference_images)


def keep_samples(run: Run, denoiser: nn.Module) -> None:
    """Keep the first of an evaluation's samples to look at: images side by side in ``samples.png``."""
    if judged(run.preset.data).of_images:
        drawn = draw(run, denoiser, SHOWN, run.preset.steps, run.seed + 3, timed=False)
        strip = torch.cat([*images_of(run, drawn, timed=False)], dim=2).permute(1, 2, 0).squeeze(-1)
        with whole(run.folder / "samples.png") as file:
            Image.fromarray(strip.numpy()).save(file, format="png")


def teacher_error(run: Run, denoiser: nn.Module) -> dict:
    """The mean squared difference of a student's eps from its teacher's on noised real images, by quarter
    of the levels, lowest noise first. It is far less noisy than a score of samples, and says where the
    student is wrong. Empty where there is no teacher, or none trained yet."""
    p, teacher_run = run.preset, run.teacher_run()
    if run.method == "teacher" or p.classes or not (teacher_run.given or teacher_run.status == "finished"):
        return {}
    teacher = teacher_run.model(progress=False)
    generator = torch.Generator().manual_seed(5)  # the same images, levels and noise for every run
    x0 = run.training_set()
    x0 = x0[torch.randperm(len(x0), generator=generator)[:ERROR_IMAGES]]
    x0 = to_model(x0) if x0.dtype == torch.uint8 else x0
    noise = torch.randn(x0.shape, generator=generator)
    quarters = []
    for quarter in range(4):
        t = torch.randint(p.T // 4, (len(x0),), generator=generator) + quarter * p.T // 4
        x_t = run.diffusion.q_sample(x0, t, noise)
        errors = []
        for x, level in budget.each(zip(x_t.split(256), t.split(256), strict=True)):
            x, level = x.to(device()), level.to(device())
            with torch.no_grad():
                eps = [one(x, level)[0] for one in (denoiser, teacher)]
            errors.append((eps[0] - eps[1]).square().mean().cpu() * len(x))
        quarters.append(float(sum(errors)) / len(x0))
    return {"teacher_error": quarters, "teacher_error_images": len(x0)}


def against_teacher(run: Run, progress: bool = True) -> dict:
    """FID' and sFID' (Sec. 12): a run's samples against the teacher's own distribution, as its synthetic set
    shows it, not against the data. For the teacher too: there the two differ in their noise and in their
    number of steps. Computed once and kept in :data:`AGAINST_TEACHER`."""
    file = run.folder / AGAINST_TEACHER
    if not file.is_file():
        data = judged(run.preset.data)
        reference = run.synthetic_run().images(progress)
        x = evaluation_samples(run, run.model(progress))
        if data.of_images:
            pair = images_of(run, x), images_of(run, reference)
            found = score(*pair, run.preset.features, data.teacher_metrics)
        else:
            found = {data.metric: energy_distance(x, reference), "N": len(x)}
        if _is_no_number(found[data.metric]):
            raise FloatingPointError(
                f"{run.title}: found no finite {data.metric} from the teacher's distribution, expected "
                "samples that can be scored: a model that drew them has diverged"
            )
        write_json(file, reported(found)["metrics"])
        budget.kept()
    return read(file, "delete it, and it is measured again")


# -- scores that are not numbers ----------------------------------------------------------------------


def finite(scores: dict) -> dict:
    """Scores as JSON can hold them: None for one that is not finite."""
    return {name: None if _is_no_number(value) else value for name, value in scores.items()}


def _is_no_number(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def reported(scores: dict) -> dict:
    """The scores of a finished run, as its result holds them: one that is not finite, as of a model that has
    diverged, is left out and named under ``not_finite``."""
    scores = finite({name: value for name, value in scores.items() if name != "iteration"})
    missing = [name for name, value in scores.items() if value is None]
    found = {"metrics": {name: value for name, value in scores.items() if value is not None}}
    return found | ({"not_finite": missing} if missing else {})
