"""Runs: one training and its score. What it was asked, where it lies, how far it is, what came out.

A run's folder, ``data_cache/runs/<preset>/<name>/``, holds ``settings.json``, ``checkpoints/`` while it
is under way, ``model/`` (diffusers' format) and ``result.json`` when it is finished. A finished run is
read, an interrupted one resumed, and a folder made with other settings is never reused. One kind of run
trains nothing: ``synthetic`` is the teacher's data set of Table 4, kept as ``images.npz``; while it is under
way, ``checkpoints/`` holds the parts of it that are drawn.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from PIL import Image
from torch import nn

from dkdm_lab import networks
from dkdm_lab.beyond.autoencoder import train_autoencoder
from dkdm_lab.data.images import load_images, load_labels, mix, to_model, to_uint8
from dkdm_lab.data.toy import GaussianMixture
from dkdm_lab.experiments import shipped_models
from dkdm_lab.experiments.presets import PRESETS, Preset
from dkdm_lab.metrics.digits import class_accuracy, digits_classifier_hash
from dkdm_lab.metrics.scores import score
from dkdm_lab.metrics.two_samples import energy_distance
from dkdm_lab.networks.classifier_free_guidance import Guided
from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.networks.folders import read_model
from dkdm_lab.pools import POOLS, Pool
from dkdm_lab.sources import Conditions, NoisedImages
from dkdm_lab.system import budget, distributed
from dkdm_lab.system.files import alone, explained, once, read_json, readable, tidy, whole, write_json
from dkdm_lab.system.paths import cache_dir
from dkdm_lab.system.progress import progress_bar
from dkdm_lab.system.provenance import device, provenance
from dkdm_lab.system.settings import Seed, accept, kind
from dkdm_lab.teachers.pipelines import Pipeline, decode, encode
from dkdm_lab.training import train

_MADE_ANEW = "what this run found is lost; move its folder away, and the run is made anew"

METHODS = ("teacher", "synthetic", "data-based", "data-limited", "data-free", *POOLS)

PART = 256  # images of a synthetic set drawn and kept at a time: as many as the sampler has in a batch

_COMMON = (
    "data", "schedule", "T", "clip", "batch_size", "steps", "samples", "curve", "mixed_precision",
    "early_stop", "reference_images",
)  # fmt: skip
# Settings that only some presets have; no result of another says anything of them.
_SPECIAL = ("sampler", "pipeline", "autoencoder", "classes", "teacher_seed")
# How often and how a run is scored on its way changes nothing in where it ends.
ON_THE_WAY = {"curve", "curve_samples"}
# What came later than the first results, and what those were made with.
_LATER = {
    "flip": False,
    "early_stop": False,
    "reference_images": None,
    "storage": "float32",
    "stride": 1,
    "variance": "stretched",
}
_TRAINING_OF_TEACHER = ("teacher_iterations", "teacher_lr", "teacher_ema")
_TEACHER = ("teacher", *_TRAINING_OF_TEACHER)
_STUDENT = ("student", "iterations", "lr", "ema")
_SYNTHETIC = ("synthetic_images", "synthetic_steps")
_TEACHERS_OWN = ("teacher", "synthetic")
_OF_METHOD = {
    "teacher": (*_TEACHER, "flip"),
    "synthetic": (*_TEACHER, *_SYNTHETIC),
    "data-based": (*_STUDENT, "flip"),
    "data-limited": (*_TEACHER, *_STUDENT, *_SYNTHETIC, "flip", "real_fraction"),
    "data-free": (*_TEACHER, *_STUDENT, *_SYNTHETIC, "flip"),
    "iterative": (*_TEACHER, *_STUDENT, "discard"),
    "shuffled": (*_TEACHER, *_STUDENT, "discard", "warmup", "variance"),
    "dynamic": (*_TEACHER, *_STUDENT, "discard", "warmup", "rho", "storage", "stride", "variance"),
}


@dataclass(frozen=True)
class Run:
    """One experiment: a preset, a method of :data:`METHODS`, a seed.

    The seed decides everything: the pool, the student's first weights, and, unless the preset has one teacher
    for all seeds (``teacher_seed``), the teacher it trains with.
    """

    preset: Preset
    method: str
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method: found {self.method!r}, expected one of {', '.join(METHODS)}")
        accept("seed", kind(Seed), self.seed)
        p = self.preset
        if self.method == "data-limited" and p.classes:
            raise ValueError(f"data-limited: not for the class-conditional preset {p.name}")
        if self.method in ("data-free", "data-limited") and p.synthetic_images < p.batch_size:
            raise ValueError(
                f"synthetic_images: found {p.synthetic_images}, expected at least one batch, {p.batch_size}"
            )

    @property
    def settings(self) -> dict:
        """All that decides the outcome, and nothing that does not; what ``settings.json`` holds."""
        weights = (
            {"pipeline_weights": shipped_models.fingerprint(self.preset.pipeline)}
            if self._of_the_book
            else {}
        )
        return self.asked | weights

    @property
    def asked(self) -> dict:
        """The settings that can be said without looking at a model of the book."""
        plain = {field.name: field.default for field in dataclasses.fields(Preset)}
        own = PRESETS[self.preset.name]
        special = [
            name
            for name in (*_SPECIAL, "curve_samples")
            if (getattr(self.preset, name), getattr(own, name)) != (plain[name], plain[name])
        ]
        if self.preset.classes:
            special += ["sample_guidance", *(["guidance"] if self.method in POOLS else [])]
        names = (*_COMMON, *_OF_METHOD[self.method], *special)
        if self.preset.pipeline:  # how a teacher that is only read was trained, its card says
            names = tuple(name for name in names if name not in _TRAINING_OF_TEACHER)
        return {
            "preset": self.preset.name,
            "method": self.method,
            "seed": self.seed,
            **{name: getattr(self.preset, name) for name in names},
        }

    @property
    def name(self) -> str:
        """``<method>-seed<n>``, and every setting that is not the preset's own and changes the outcome."""
        own = dataclasses.asdict(PRESETS[self.preset.name])
        settings = {k: v for k, v in self.asked.items() if k in own and k not in ON_THE_WAY}
        others = [f"{k}={v}" for k, v in settings.items() if v != own[k]]
        return "-".join([self.method, f"seed{self.seed}", *others])

    @property
    def folder(self) -> Path:
        return cache_dir() / "runs" / self.preset.name / self.name

    @property
    def status(self) -> str:
        """``finished``, ``resumable`` or ``not begun``; ValueError for a folder made with other settings."""
        self._check_settings()
        if (self.folder / "result.json").is_file():
            return "finished"
        return "resumable" if any((self.folder / "checkpoints").glob("[0-9]*")) else "not begun"

    @property
    def iteration(self) -> int:
        """The iteration of the newest checkpoint, of a ``synthetic`` run its number of images so far; 0 where
        there is none, or no longer."""
        return max((int(place.stem) for place in (self.folder / "checkpoints").glob("[0-9]*")), default=0)

    @property
    def iterations(self) -> int:
        """How many iterations the run has; images, if it is a ``synthetic`` one; 0 where it only scores."""
        p = self.preset
        if self.method == "synthetic":
            return p.synthetic_images
        if self.method != "teacher":
            return p.iterations
        return 0 if self.given else p.teacher_iterations

    @property
    def given(self) -> bool:
        """Whether this is a teacher that is not trained here."""
        return self.method == "teacher" and bool(self.preset.pipeline or self.preset.teacher == "exact")

    @property
    def callback_at(self) -> tuple[int, ...]:
        """The iterations after which a training is scored."""
        n = self.preset.curve
        return tuple(round(self.iterations * (k + 1) / n) for k in range(n))

    @property
    def diffusion(self):
        return self.preset.diffusion()

    def teacher_run(self) -> Run:
        """The run whose model teaches this one."""
        return Run(self.preset, "teacher", self._teacher_seed)

    @property
    def _teacher_seed(self) -> int:
        return self.seed if self.preset.teacher_seed is None else self.preset.teacher_seed

    def vae(self, progress: bool = True) -> nn.Module | None:
        """The autoencoder whose latents this preset's models denoise, in eval mode; None in pixel space. One
        of the book's own is trained first where it is not there, once for all runs of a seed."""
        p = self.preset
        if p.pipeline:
            return self._pipeline.vae
        if not p.autoencoder:
            return None
        folder = self.folder.parent / f"{p.autoencoder}-seed{self.seed}"

        def make(new: Path) -> None:
            images = load_images(p.data)
            vae = train_autoencoder(
                p.autoencoder, images, seed=self.seed, checkpoint=folder / "checkpoints", progress=progress
            )
            vae.save_pretrained(new)
            budget.kept()

        once(folder, "config.json", make)
        return read_model(folder, {"VQModel": VQModel}).eval().to(device())

    @property
    def _of_the_book(self) -> bool:
        """Whether the teacher is one of book/models, named without a folder."""
        named = self.preset.pipeline
        return bool(named) and Path(named).name == named

    @cached_property
    def _pipeline(self) -> Pipeline:
        """The preset's pretrained pipeline, and the process it was trained for."""
        named = self.preset.pipeline
        place = shipped_models.find(named) if self._of_the_book else named
        found = Pipeline.from_pretrained(place).to(device())
        if not np.allclose(found.diffusion.betas, self.diffusion.betas, rtol=1e-3):
            raise ValueError(
                f"{self.preset.pipeline}: found {found.diffusion}, expected the betas of {self.diffusion}"
            )
        return found

    @property
    def conditions(self) -> Conditions | None:
        """The labels of a class-conditional preset, with the one for none after the last."""
        classes = self.preset.classes
        return Conditions.classes(classes, classes) if classes else None

    def synthetic_run(self) -> Run:
        """The run whose images data-free and data-limited training use."""
        return Run(self.preset, "synthetic", self._teacher_seed)

    def shared(self) -> Run:
        """The run that stands for this one: a teacher or its synthetic set is one for all seeds where the
        preset says so (``teacher_seed``), any other run itself."""
        return Run(self.preset, self.method, self._teacher_seed) if self.method in _TEACHERS_OWN else self

    def needs(self) -> list[Run]:
        """The runs whose results this one uses."""
        teacher = [] if self.method in ("teacher", "data-based") else [self.teacher_run()]
        synthetic = [self.synthetic_run()] if self.method in ("data-free", "data-limited") else []
        return teacher + synthetic

    def command(self) -> str:
        """The options of `dkdm train` that make this run."""
        own, here = PRESETS[self.preset.name], self.preset
        changes = {f.name: getattr(here, f.name) for f in dataclasses.fields(Preset)}
        others = [f"--set {k}={v!r}" for k, v in changes.items() if k != "live" and v != getattr(own, k)]
        return " ".join([f"--preset {here.name}", f"--method {self.method}", f"--seed {self.seed}", *others])

    def result(self, progress: bool = True, wait: bool = True) -> dict:
        """The result of this run: read if it is finished, else trained (or resumed) and scored first. Where
        another process is at it, ``wait`` for its end, or be refused with a RuntimeError.

        Under `accelerate launch` all ranks call it and train together."""
        self._tidy()
        if distributed.broadcast(self.status) != "finished":
            with distributed.held_by_main(alone(self.folder, wait)):
                if (
                    distributed.broadcast(self.status) != "finished"
                ):  # another process may have had it in its hands
                    self._execute(progress)
            distributed.barrier()
        return read_json(self.folder / "result.json", _MADE_ANEW, ("settings",))

    def images(self, progress: bool = True) -> torch.Tensor:
        """The teacher's data set, uint8 ``[N, C, H, W]`` (the toy's points and latents: float), of a
        ``synthetic`` run; generated first where it is not finished."""
        self.result(progress)
        with readable(self.folder / "images.npz", _MADE_ANEW):
            return torch.from_numpy(np.load(self.folder / "images.npz")["x"])

    def model(self, progress: bool = True) -> nn.Module:
        """The trained denoiser, in eval mode; trains it first where it is not finished."""
        if self.method == "synthetic":
            raise ValueError("synthetic: this run has images, not a model")
        if self.method == "teacher" and self.preset.teacher == "exact":
            return GaussianMixture.ring().denoiser(self.diffusion)
        if self.method == "teacher" and self.preset.pipeline:
            return self._pipeline.denoiser
        self.result(progress)
        return Denoiser.from_pretrained(self.folder / "model").to(device())

    # -- execution ------------------------------------------------------------------------------------

    def source(self, progress: bool = True):
        """The source this method trains from, seeded by the run."""
        p = self.preset
        options = {
            "batch_size": distributed.local_batch_size(p.batch_size),
            "seed": distributed.rank_seed(self.seed + 1),
            "device": device(),
            "conditions": self.conditions,
        }
        if self.method in ("teacher", "data-based"):
            data, labels = self._real(), load_labels(p.data) if p.classes else None
        elif self.method in ("data-free", "data-limited"):
            data = self.synthetic_run().images(progress)
            labels = self._labels(len(data))
            if self.method == "data-limited":
                data = mix(self._real(), data, p.real_fraction, self.seed)
        else:
            return self._pool(options, progress)
        mine = slice(distributed.rank(), None, distributed.world_size())
        labels = None if labels is None else labels[mine]
        source = NoisedImages(self.diffusion, data[mine], flip=p.flip, labels=labels, **options)
        if self.method in ("data-free", "data-limited") and distributed.rank() == 0:
            source.evaluations = p.synthetic_images * p.synthetic_steps
        return source

    def _pool(self, options: dict, progress: bool):
        p = self.preset
        teacher = self.teacher_run().model(progress)
        options |= {"discard": p.discard, "guidance": p.guidance}
        if self.method != "iterative":
            options |= {"warmup": p.warmup, "variance": p.variance}
        if self.method == "dynamic":
            options |= {"rho": p.rho, "storage": p.storage, "stride": p.stride}
        return POOLS[self.method](self.diffusion, teacher, **options)

    def _real(self) -> torch.Tensor:
        """The real training set; in latent space encoded, once; the toy's is drawn large."""
        if self.preset.data == "toy":
            return GaussianMixture.ring().sample(100_000, seed=0)
        vae, images = self.vae(), load_images(self.preset.data)
        return images if vae is None else encode(vae, images)

    def _labels(self, n: int, first: int = 0) -> torch.Tensor | None:
        """Of ``n`` samples of a class-conditional model from number ``first`` on: each class in turn."""
        return torch.arange(first, first + n) % self.preset.classes if self.preset.classes else None

    def _generate(self, progress: bool) -> None:
        """The teacher's data set (Table 4); the main rank makes it, in parts that are kept as they come."""
        p, teacher = self.preset, self.teacher_run().model(progress)
        started, n = time.perf_counter(), p.synthetic_images

        def work() -> None:
            parts = []
            for first in progress_bar(range(0, n, PART), desc=f"{p.name}: {self.name}", show=progress):
                last = min(first + PART, n)
                file = self.folder / "checkpoints" / f"{last:09d}.npz"
                if not file.is_file():
                    x = self._draw(teacher, last - first, p.synthetic_steps, self.seed + 2, first)
                    with explained(self.folder), whole(file) as scratch:
                        np.savez(scratch, x=x.numpy())
                    budget.kept()
                with readable(file, "delete it, and this part is drawn again"):
                    parts.append(torch.from_numpy(np.load(file)["x"]))
            x = torch.cat(parts)
            with explained(self.folder), whole(self.folder / "images.npz") as file:
                np.savez(file, x=x.numpy())
            cost = {"teacher_evaluations": n * p.synthetic_steps}
            self._finish({"metrics": self._distance(x), **cost}, started)

        distributed.done_by_main(work)

    def _execute(self, progress: bool) -> None:
        main = distributed.rank() == 0
        if main:
            with explained(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / "settings.json", self.settings)
        if self.method == "synthetic":
            self._generate(progress)
            return
        started, p = time.perf_counter(), self.preset
        if self.given:
            model = self.model()

            def work() -> None:
                self._show(model)
                self._finish({"metrics": self._score(model)}, started)

            distributed.done_by_main(work)
            return
        of_teacher = self.method == "teacher"
        iterations = self.iterations
        source = self.source(progress)
        if p.compile is not None and isinstance(source, Pool):
            source.compile_teacher(p.compile)
        torch.manual_seed(self.seed)
        student = networks.build(p.teacher if of_teacher else p.student).to(device())
        if not main:  # the same first weights, but not the same dropout
            torch.manual_seed(distributed.rank_seed(self.seed))
        curve_file = self.folder / "curve.json"
        resuming = self.status == "resumable"
        curve = (
            read_json(curve_file, "delete it: scores on the way are lost, the training goes on", kind=list)
            if resuming and curve_file.is_file()
            else []
        )

        def evaluate(iteration, averaged, _history):
            # A run stopped after a score comes by here again.
            if curve and curve[-1]["iteration"] == iteration:
                return
            curve[:] = [point for point in curve if point["iteration"] < iteration]
            curve.append({"iteration": iteration, **self._score(averaged, last=iteration == iterations)})
            if p.early_stop and self._best(curve) is curve[-1]:
                averaged.save_pretrained(self.folder / "model", self.diffusion)
            write_json(curve_file, curve)
            budget.kept()

        with explained(self.folder):
            averaged, history = train(
                student,
                source,
                self.diffusion,
                iterations,
                lr=p.teacher_lr if of_teacher else p.lr,
                ema=p.teacher_ema if of_teacher else p.ema,
                mixed_precision=p.mixed_precision if torch.cuda.is_available() else "no",
                compile=p.compile,
                callback=evaluate,
                callback_at=self.callback_at,
                checkpoint=self.folder / "checkpoints",
                checkpoint_every=p.checkpoint_every,
                progress=progress,
                description=f"{p.name}: {self.name}",
            )
            evaluations = sum(distributed.gather(source.evaluations))
            if not main:
                return
            if not p.early_stop:
                averaged.save_pretrained(self.folder / "model", self.diffusion)
            last = curve[-1] if curve else {"iteration": iterations}  # which nobody scored
            reported = self._best(curve) if p.early_stop else last
            if p.early_stop:
                averaged = Denoiser.from_pretrained(self.folder / "model").to(device())
            self._show(averaged)
            loss = {key: [round(v, 6) for v in values] for key, values in vars(history).items()}
            self._finish(
                {
                    "metrics": {k: v for k, v in reported.items() if k != "iteration"},
                    "of_iteration": reported["iteration"],
                    "curve": curve,
                    **self._teacher_error(averaged),
                    "parameters": averaged.parameter_count,
                    "teacher_evaluations": evaluations,
                    "student_evaluations": iterations * p.batch_size,
                    "loss": loss,
                    "resumed": resuming,  # then wall_s counts the last leg only
                },
                started,
            )

    def _finish(self, outcome: dict, started: float) -> None:
        wall = {"wall_s": round(time.perf_counter() - started, 1)}
        write_json(
            self.folder / "result.json",
            {"run": self.name, "settings": self.settings, **outcome, **wall, "made_with": self._made_with()},
        )
        budget.kept()
        self._tidy()

    def _tidy(self) -> None:
        """Remove what a killed process left, and what a finished run has no use for."""
        if distributed.rank() != 0 or not self.folder.is_dir():
            return
        tidy(self.folder)
        if (self.folder / "result.json").is_file():
            (self.folder / "curve.json").unlink(missing_ok=True)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
            (self.folder / ".checkpoints.lock").unlink(missing_ok=True)

    def _made_with(self) -> dict:
        """Versions, hardware, commit; and which classifier judged digits."""
        judge = {"digits_classifier": digits_classifier_hash()} if self.preset.features == "digits" else {}
        return provenance() | judge

    def _best(self, curve: list[dict]) -> dict:
        """The point of a curve that early stopping would keep."""
        return min(curve, key=lambda point: point[self.preset.curve_metric])

    def _score(self, denoiser: nn.Module, last: bool = True) -> dict:
        """The preset's metrics of samples from ``denoiser``; of a class-conditional one with guidance too,
        under names that begin with ``guided-``, and how many samples show the class that was asked for.
        Before the ``last`` score of a training ``curve_samples`` may make it a cheaper one."""
        p = self.preset
        if p.curve_samples and not last:
            x = self._draw(denoiser, p.curve_samples, p.steps, self.seed + 3)
            found = score(self._images(x), self._reference(), p.features, (), first=p.curve_samples)
            return {p.curve_metric: found[p.curve_metric]}
        if not p.classes:
            return self._distance(self._samples(denoiser))
        scores = {}
        guided = Guided(denoiser, self.preset.sample_guidance, self.conditions.null)
        for prefix, model in (("", denoiser), ("guided-", guided)):
            x = self._samples(model)
            found = self._distance(x) | {"class-accuracy": class_accuracy(x, self._labels(len(x)))}
            counts = {name: found.pop(name) for name in ("N", "N_reference")}
            scores |= {prefix + name: value for name, value in found.items()}
        return scores | counts

    def _samples(self, denoiser: nn.Module) -> torch.Tensor:
        """What an evaluation draws, for :meth:`_distance`; the same noise for all methods of a seed."""
        return self._draw(denoiser, self.preset.samples, self.preset.steps, self.seed + 3)

    def _show(self, denoiser: nn.Module) -> None:
        """Keep the first of an evaluation's samples to look at: images side by side in ``samples.png``."""
        p = self.preset
        if p.data != "toy":
            x = self._images(self._draw(denoiser, SHOWN, p.steps, self.seed + 3, timed=False))
            strip = torch.cat([*x], dim=2).permute(1, 2, 0).squeeze(-1)
            with whole(self.folder / "samples.png") as file:
                Image.fromarray(strip.numpy()).save(file, format="png")

    def _teacher_error(self, denoiser: nn.Module) -> dict:
        """The mean squared difference of a student's eps from its teacher's on noised real images, by quarter
        of the levels, lowest noise first. It is far less noisy than a score of samples, and says where the
        student is wrong. Empty where there is no teacher, or none trained yet."""
        p, run = self.preset, self.teacher_run()
        there = p.pipeline or p.teacher == "exact" or run.status == "finished"
        if self.method == "teacher" or p.classes or not there:
            return {}
        teacher = run.model(progress=False)
        generator = torch.Generator().manual_seed(5)  # the same images, levels and noise for every run
        x0 = self._real()
        x0 = x0[torch.randperm(len(x0), generator=generator)[:ERROR_IMAGES]]
        x0 = to_model(x0) if x0.dtype == torch.uint8 else x0
        noise = torch.randn(x0.shape, generator=generator)
        quarters = []
        for quarter in range(4):
            t = torch.randint(p.T // 4, (len(x0),), generator=generator) + quarter * p.T // 4
            x_t = self.diffusion.q_sample(x0, t, noise)
            errors = []
            for x, level in zip(x_t.split(256), t.split(256), strict=True):
                x, level = x.to(device()), level.to(device())
                with torch.no_grad():
                    eps = [one(x, level)[0] for one in (denoiser, teacher)]
                errors.append((eps[0] - eps[1]).square().mean().cpu() * len(x))
            quarters.append(float(sum(errors)) / len(x0))
        return {"teacher_error": quarters, "teacher_error_images": len(x0)}

    def _draw(
        self, denoiser: nn.Module, n: int, steps: int, seed: int, first: int = 0, timed: bool = True
    ) -> torch.Tensor:
        """Samples by the preset's sampler, from number ``first`` on: points and latents as they are, images
        in 8 bits a value. timed: whether a budget of minutes may end it."""
        p = self.preset
        x = self.diffusion.sample(
            denoiser,
            n,
            steps,
            method=p.sampler,
            condition=self._labels(n, first),
            first=first,
            seed=seed,
            device=device(),
            callback=budget.between_steps if timed else None,
        )
        latent = p.autoencoder or (p.pipeline and self._pipeline.vae is not None)
        return x if p.data == "toy" or latent else to_uint8(x)

    def _images(self, x: torch.Tensor) -> torch.Tensor:
        """What was drawn as uint8 images: latents are decoded."""
        return x if x.dtype == torch.uint8 else to_uint8(decode(self.vae(), x))

    def _distance(self, x: torch.Tensor) -> dict:
        """The preset's metrics of images (uint8), latents, or the toy's points, against the real ones."""
        p = self.preset
        if p.data == "toy":
            reference = GaussianMixture.ring().sample(p.samples, seed=4)
            return {"energy-distance": energy_distance(x, reference), "N": len(x)}
        metrics = ("FID", "precision", "recall") if p.data == "digits" else None
        return score(self._images(x), self._reference(), p.features, metrics, first=p.curve_samples)

    def _reference(self) -> torch.Tensor:
        """The real images that samples are compared with."""
        return load_images(self.preset.data, n=self.preset.reference_images)

    def against_teacher(self, progress: bool = True) -> dict:
        """FID' and sFID' (Sec. 12): this run's samples against the teacher's own distribution, as its
        synthetic set shows it, not against the data. For the teacher too: there the two differ in their
        noise and in their number of steps. Computed once and kept in ``against_teacher.json``."""
        file = self.folder / "against_teacher.json"
        if not file.is_file():
            reference = self.synthetic_run().images(progress)
            x = self._samples(self.model(progress))
            if self.preset.data == "toy":
                found = {"energy-distance": energy_distance(x, reference), "N": len(x)}
            else:
                metrics = ("FID",) if self.preset.features == "digits" else ("FID", "sFID")
                found = score(self._images(x), self._images(reference), self.preset.features, metrics)
            write_json(file, found)
            budget.kept()
        return read_json(file, "delete it, and it is measured again")

    def _check_settings(self) -> None:
        file = self.folder / "settings.json"
        if not file.is_file():
            return
        found = read_json(file, _MADE_ANEW)
        if key := other_setting(found, self.settings):
            made_with = found.get(key, _LATER.get(key))
            raise ValueError(
                f"{self.folder}: this run was made with {key} = {made_with!r}, expected "
                f"{self.settings.get(key)!r}; move the folder away to run anew"
            )


def other_setting(found: dict, expected: dict) -> str | None:
    """The first setting in which two runs differ that decides their outcome; None for none. One that came
    later than a run has there the value that it was made with."""
    for key in sorted((found.keys() | expected.keys()) - ON_THE_WAY):
        if found.get(key, _LATER.get(key)) != expected.get(key, _LATER.get(key)):
            return key
    return None


def cost(result: dict, iteration: int | None = None) -> float:
    """What a training cost up to an iteration (default: all of it), in floating-point operations.

    A training step counts three evaluations of the student, forward and backward; each evaluation of the
    teacher counts one, those for the synthetic set or the warm-up before the first iteration too. The
    teacher's own training is not counted, nor is scoring: nobody pays for them who has a teacher.
    """
    settings = result["settings"]
    iterations = settings["iterations"]
    iteration = iterations if iteration is None else iteration
    before = max(0.0, result["teacher_evaluations"] - _in_turns(settings) * iterations)
    return before * operations(settings.get("teacher", "exact")) + iteration * operations_per_step(settings)


def operations(network: str) -> float:
    """Floating-point operations of one evaluation of a named network; the toy's exact teacher counts none."""
    return 0.0 if network == "exact" else networks.flops(network)


def operations_per_step(settings: dict) -> float:
    """Floating-point operations of one training step, from a run's settings, as :func:`cost` counts them."""
    student = settings["teacher" if settings["method"] == "teacher" else "student"]
    in_turns = _in_turns(settings) * operations(settings.get("teacher", "exact"))
    return 3 * settings["batch_size"] * operations(student) + in_turns


def _in_turns(settings: dict) -> float:
    """A pool's evaluations of its teacher per iteration; a discarded turn costs as much as a shown one."""
    return settings["batch_size"] / (1 - settings["discard"]) if settings["method"] in POOLS else 0.0


def curve(result: dict, metric: str) -> tuple[list[int], list[float]]:
    """Iterations and values of a metric over a run's training, from its result."""
    return [point["iteration"] for point in result["curve"]], [point[metric] for point in result["curve"]]


SHOWN = 24  # samples of each run that are kept to look at
ERROR_IMAGES = 1024  # real images that a student's eps is compared with its teacher's on
