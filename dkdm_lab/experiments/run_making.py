"""How a run is made: where its batches come from, its training, or its synthetic set, and its result."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dkdm_lab import networks
from dkdm_lab.data.images import load_labels, mix
from dkdm_lab.data.sets import judged
from dkdm_lab.experiments import run_scores
from dkdm_lab.experiments.artifact import FILES, RESULT, SETTINGS, read, record_files
from dkdm_lab.experiments.run_scores import AGAINST_TEACHER
from dkdm_lab.metrics.digits import digits_classifier_hash
from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.pools import POOLS
from dkdm_lab.sources import NoisedImages, Replay
from dkdm_lab.system import budget, distributed
from dkdm_lab.system.files import explained, readable, whole, write_json
from dkdm_lab.system.progress import progress_bar
from dkdm_lab.system.provenance import device, provenance
from dkdm_lab.training import train

if TYPE_CHECKING:
    from dkdm_lab.experiments.runs import Run

DRAWN_AT_A_TIME = 256  # images of a synthetic set drawn and kept: as many as the sampler has in a batch


def make(run: Run, progress: bool) -> None:
    """Make a run on all ranks, and write its result on the main one."""
    if distributed.rank() == 0:
        with explained(run.folder):
            run.folder.mkdir(parents=True, exist_ok=True)
            write_json(run.folder / SETTINGS, run.settings)
            # Of a run whose model was lost: they speak of that model, and would vouch for the next one.
            for name in (RESULT, FILES, AGAINST_TEACHER):
                (run.folder / name).unlink(missing_ok=True)
    if run.method == "synthetic":
        _draw_synthetic(run, progress)
    elif run.given:
        _score_given(run)
    else:
        _train(run, progress)


# -- where the batches come from ----------------------------------------------------------------------


def source(run: Run, progress: bool = True):
    """The source that a run's method trains from, seeded by the run."""
    p = run.preset
    options = {
        "batch_size": distributed.local_batch_size(p.batch_size),
        "seed": distributed.rank_seed(run.seed + 1),
        "device": device(),
        "conditions": run.conditions,
    }
    if run.method in POOLS:
        return _pool(run, options, progress)
    synthetic = run.method in ("data-free", "data-limited")
    if synthetic:
        data = run.synthetic_run().images(progress)
        labels = run.labels(len(data))
        if run.method == "data-limited":
            data = mix(run.training_set(), data, p.real_fraction, run.seed)
    else:
        data, labels = run.training_set(), load_labels(p.data) if p.classes else None
    mine = slice(distributed.rank(), None, distributed.world_size())
    labels = None if labels is None else labels[mine]
    images = NoisedImages(run.diffusion, data[mine], flip=p.flip, labels=labels, **options)
    if synthetic and distributed.rank() == 0:
        images.evaluations = p.synthetic_images * p.synthetic_steps
    return images


def _pool(run: Run, options: dict, progress: bool):
    p = run.preset
    teacher = run.teacher_run().model(progress)
    options |= {"discard": p.discard, "guidance": p.guidance}
    if run.method != "iterative":
        options |= {"warmup": p.warmup, "variance": p.variance}
    if run.method == "dynamic":
        # The same number of samples, in fewer and larger batches.
        options |= {"rho": p.rho / p.turns, "storage": p.storage, "stride": p.stride}
        options["batch_size"] *= p.turns
    pool = POOLS[run.method](run.diffusion, teacher, **options)
    if p.compile is not None:
        pool.compile_teacher(p.compile)
    if run.method != "dynamic" or (p.turns, p.replay) == (1, 1):
        return pool
    return Replay(pool, pool.batch_size // p.turns, p.replay, options["seed"])


# -- what is made -------------------------------------------------------------------------------------


def _draw_synthetic(run: Run, progress: bool) -> None:
    """The teacher's data set (Table 4); the main rank makes it, in parts that are kept as they come."""
    p, teacher = run.preset, run.teacher_run().model(progress)
    started, n = time.perf_counter(), p.synthetic_images

    def work() -> None:
        parts = []
        steps = range(0, n, DRAWN_AT_A_TIME)
        for first in progress_bar(steps, desc=run.title, show=progress):
            last = min(first + DRAWN_AT_A_TIME, n)
            file = run.folder / "checkpoints" / f"{last:09d}.npz"
            if not file.is_file():
                x = run_scores.draw(run, teacher, last - first, p.synthetic_steps, run.seed + 2, first)
                _save_images(run, file, x)
                budget.kept()
            with readable(file, "delete it, and this part is drawn again"):
                parts.append(torch.from_numpy(np.load(file)["x"]))
        x = torch.cat(parts)
        _save_images(run, run.folder / "images.npz", x)
        # FID' has this set for its reference.
        scores = run_scores.reported(run_scores.distance(run, x, keep=True))
        _finish(run, {**scores, "teacher_evaluations": n * p.synthetic_steps}, started)

    distributed.done_by_main(work)


def _save_images(run: Run, file, x: Tensor) -> None:
    with explained(run.folder), whole(file) as scratch:
        np.savez(scratch, x=x.numpy())


def _score_given(run: Run) -> None:
    """The scores of a teacher that is only read."""
    started, model = time.perf_counter(), run.model()

    def work() -> None:
        run_scores.keep_samples(run, model)
        _finish(run, run_scores.reported(run_scores.score_model(run, model)), started)

    distributed.done_by_main(work)


def _train(run: Run, progress: bool) -> None:
    """A training, scored on its way and at its end."""
    started, p, of_teacher = time.perf_counter(), run.preset, run.method == "teacher"
    batches = source(run, progress)
    torch.manual_seed(run.seed)
    student = networks.build(p.teacher if of_teacher else p.student).to(device())
    if distributed.rank() != 0:  # the same first weights, but not the same dropout
        torch.manual_seed(distributed.rank_seed(run.seed))
    resuming = run.status == "resumable"
    curve = _Curve(run, resuming)
    with explained(run.folder):
        averaged, history = train(
            student,
            batches,
            run.diffusion,
            run.iterations,
            lr=p.teacher_lr if of_teacher else p.lr,
            ema=p.teacher_ema if of_teacher else p.ema,
            mixed_precision=p.mixed_precision if torch.cuda.is_available() else "no",
            compile=p.compile,
            callback=curve,
            callback_at=run.callback_at,
            checkpoint=run.folder / "checkpoints",
            checkpoint_every=p.checkpoint_every,
            progress=progress,
            description=run.title,
        )
        evaluations = sum(distributed.gather(batches.evaluations))
        if distributed.rank() != 0:
            return
        kept = curve.kept
        scores = run_scores.reported(kept)
        if p.early_stop:
            averaged = Denoiser.from_pretrained(run.folder / "model").to(device())
        else:
            averaged.save_pretrained(run.folder / "model", run.diffusion)
        run_scores.keep_samples(run, averaged)
        outcome = {
            **scores,
            "of_iteration": kept["iteration"],
            "curve": curve.points,
            **run_scores.teacher_error(run, averaged),
            "parameters": averaged.parameter_count,
            "teacher_evaluations": evaluations,
            "student_evaluations": run.iterations * p.batch_size,
            "loss": {key: [round(v, 6) for v in values] for key, values in vars(history).items()},
            "resumed": resuming,  # then wall_s counts the last leg only
        }
        _finish(run, outcome, started)


class _Curve:
    """The scores of a training on its way, kept in ``curve.json``, so that a resumed one has those before it.
    Called after the iterations that are to be scored, it saves the best model where training stops early."""

    def __init__(self, run: Run, resuming: bool):
        self.run, self.file = run, run.folder / "curve.json"
        self.points: list[dict] = (
            read(self.file, "delete it: scores on the way are lost, the training goes on", kind=list)
            if resuming and self.file.is_file()
            else []
        )

    def __call__(self, iteration: int, averaged: nn.Module, _history) -> None:
        # A run that was stopped after a score comes by here again.
        if self.points and self.points[-1]["iteration"] == iteration:
            return
        run = self.run
        self.points[:] = [point for point in self.points if point["iteration"] < iteration]
        found = run_scores.score_model(run, averaged, last=iteration == run.iterations)
        self.points.append({"iteration": iteration, **run_scores.finite(found)})
        if run.preset.early_stop and self._best is self.points[-1]:
            averaged.save_pretrained(run.folder / "model", run.diffusion)
        write_json(self.file, self.points)
        budget.kept()

    @property
    def kept(self) -> dict:
        """The point whose model is the run's: the best where training stops early, else the last."""
        if self.run.preset.early_stop:
            return self._best
        return self.points[-1] if self.points else {"iteration": self.run.iterations}  # which nobody scored

    @property
    def _best(self) -> dict:
        """The first of the points with the lowest score; one that is not finite is never lower."""

        def key(point: dict) -> float:
            value = point[self.run.preset.curve_metric]
            return math.inf if value is None else value

        return min(self.points, key=key)


def _finish(run: Run, outcome: dict, started: float) -> None:
    wall = {"wall_s": round(time.perf_counter() - started, 1)}
    made_with = provenance()
    if judged(run.preset.data).features == "digits":
        made_with |= {"digits_classifier": digits_classifier_hash()}
    record_files(run.folder, run.outputs)
    result = {"run": run.name, "settings": run.settings, **outcome, **wall, "made_with": made_with}
    write_json(run.folder / RESULT, result)
    budget.kept()
    run.tidy()
