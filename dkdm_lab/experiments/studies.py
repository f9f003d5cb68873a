"""Studies: data-free distillation of what is no diffusion model, in named parts that stand on each other.

A ladder VAE and a classifier are distilled from their own noise, from real images, and from images that a
diffusion model, the *guide*, was made to draw for them. A part is a teacher, a guide, a set of images or a
student. It lies in ``data_cache/studies/<study>/seed<n>/<part>/``, made once, whole or not at all, whoever
asks first; its result goes to the ledger, ``book/results/<study>/studies/seed<n>/``.

The second source's own numbers are here too: the slides *Data-Free Knowledge Distillation of Deep Generative
Models* (Group 2, Indian Institute of Technology Mandi, 15 May 2025).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dkdm_lab import networks
from dkdm_lab.beyond.classifier import TEMPERATURE, Classifier, accuracy, train_classifier
from dkdm_lab.beyond.loss_guided_synthesis import ClassifierLosses, VAELosses, synthesise
from dkdm_lab.beyond.vae import LVAE, sample_vae, train_vae
from dkdm_lab.data.images import load_images, load_labels, to_model
from dkdm_lab.experiments import presets
from dkdm_lab.experiments.ledger import LEDGER, Spread, Table, spread
from dkdm_lab.experiments.paper import Check, Claim
from dkdm_lab.experiments.preset import Network
from dkdm_lab.experiments.speed import seconds_of
from dkdm_lab.metrics.scores import compare
from dkdm_lab.networks.folders import read_model
from dkdm_lab.sources import NoisedImages
from dkdm_lab.system.files import once, read_json, readable, whole_folder, write_json
from dkdm_lab.system.paths import cache_dir, models_dir, results_dir
from dkdm_lab.system.provenance import device, provenance
from dkdm_lab.system.settings import (
    MOST,
    Average,
    Count,
    Guidance,
    Named,
    Range,
    Seed,
    Share,
    Weight,
    accept,
    changed,
    check,
    kind,
    together,
)
from dkdm_lab.teachers.pipelines import Pipeline
from dkdm_lab.training import train

_MADE_ANEW = "what this part is was lost; move its folder away, and the part is made anew"
TIMED = 100  # images of one timed pass of a VAE, and how often it is timed
POINTS = 50  # kept of a training's losses

# What each part stands on.
PARTS = {
    "guide-unseen": (),  # a diffusion model that never saw the teachers' data
    "guide-seen": (),  # one that did, as contrast
    "vae-teacher": (),
    "images-unguided": ("guide-unseen", "vae-teacher"),  # whose losses are only measured
    "images-guided": ("guide-unseen", "vae-teacher"),
    "images-unguided-seen": ("guide-seen", "vae-teacher"),
    "images-guided-seen": ("guide-seen", "vae-teacher"),
    "vae-noise": ("vae-teacher",),  # Chen et al.'s student, which sees no image
    "vae-real": ("vae-teacher",),
    "vae-unguided": ("vae-teacher", "images-unguided"),
    "vae-guided": ("vae-teacher", "images-guided"),
    "vae-guided-seen": ("vae-teacher", "images-guided-seen"),
    "vae-both-real": ("vae-teacher",),  # noise alone in every other iteration
    "vae-both-guided": ("vae-teacher", "images-guided"),
    "classifier-teacher": (),
    "classifier-real": ("classifier-teacher",),
    "classifier-unguided": ("classifier-teacher", "images-unguided"),
    # For L_adv, images on which teacher and student agree are avoided: the student of the unguided ones.
    "images-classes": ("guide-unseen", "classifier-teacher", "classifier-unguided"),
    "classifier-guided": ("classifier-teacher", "images-classes"),
}
NAMES = {
    "vae-teacher": "teacher",
    "vae-noise": "noise only",
    "vae-real": "real images",
    "vae-unguided": "synthetic, unguided",
    "vae-guided": "synthetic, guided",
    "vae-guided-seen": "synthetic, guided, the guide saw the data",
    "vae-both-real": "noise and real, in turn",
    "vae-both-guided": "noise and guided, in turn",
    "images-unguided": "unguided",
    "images-guided": "guided",
    "images-unguided-seen": "unguided, the guide saw the data",
    "images-guided-seen": "guided, the guide saw the data",
    "classifier-teacher": "teacher",
    "classifier-real": "real images",
    "classifier-unguided": "synthetic, unguided",
    "classifier-guided": "synthetic, guided",
}
VAES = tuple(name for name in PARTS if name.startswith("vae"))
CLASSIFIERS = tuple(name for name in PARTS if name.startswith("classifier"))


# -- what is studied ----------------------------------------------------------------------------------


class Split(NamedTuple):
    """Real images, uint8 ``[N, C, H, W]``, and their classes from 0, ``[N]`` int64: to learn from, and held
    out."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def _presets() -> list[str]:
    return [*presets.PRESETS]


@dataclass(frozen=True)
class Study:
    """Everything that decides a study but the seed."""

    name: str
    data: Annotated[str, Named("a preset's name", _presets), "its process and features are used"]
    classes: Annotated[
        tuple[Annotated[int, Range(0, MOST)], ...],
        "the teachers' own; of a set without a split every third image is held out",
    ]
    samples: Annotated[int, Range(2, MOST), "of the held-out images and of generated ones, in every score"]
    draws: Annotated[Count, "sets of generated images, whose scores are averaged"]

    unseen: Annotated[str | None, "a guide's folder or Hub id; None: trained here, on all other classes"]
    seen: Annotated[str | None, "a guide's folder or Hub id; None: trained here, on the teachers' images"]
    guide: Annotated[Network, "of a guide that is trained here"]
    guide_iterations: Count
    guide_batch_size: Count
    guide_lr: Share
    guide_ema: Average
    prompts: Annotated[tuple[str, ...], "of a text-to-image guide, one per class"]
    guidance: Annotated[Guidance, "classifier-free, of a text-to-image guide"]

    teacher_width: Annotated[Count, "of the teacher VAE"]
    width: Annotated[Count, "of the student VAEs"]
    levels: Annotated[int, Range(1, 10), "of every VAE's ladder"]
    latent_channels: Count
    teacher_iterations: Count
    teacher_lr: Share
    iterations: Annotated[Count, "of the student VAEs"]
    lr: Share
    weight_decay: Share
    batch_size: Count
    blind: Annotated[Average, "share of iterations without images, of students that learn both ways"]

    images: Annotated[int, Range(2, MOST), "of a synthetic set"]
    steps: Annotated[Count, "of its synthesis"]
    synthesis_batch_size: Count
    step_size: Weight
    reconstruction: Annotated[Weight, "of a loss that guides for a VAE, as the next two"]
    kl: Weight
    batch_norm: Weight

    classifier_teacher_width: Count
    classifier_width: Count
    classifier_teacher_iterations: Count
    classifier_iterations: Count
    classifier_lr: Share
    class_step_size: Weight
    class_batch_norm: Annotated[Weight, "of a loss that guides for a classifier, as the next two"]
    classification: Weight
    adversarial: Weight
    cutmix: bool
    temperature: Annotated[float, Range(0, 1000, above=True), "of a classifier's soft labels"] = TEMPERATURE

    def __post_init__(self):
        check(self)
        together(
            self,
            [
                ("classes", len(set(self.classes)) < max(2, len(self.classes)), "at least two, each once"),
                (
                    "prompts",
                    len(self.prompts) not in (0, len(self.classes)),
                    f"none, or one for each of {len(self.classes)} classes",
                ),
            ],
        )

    @property
    def features(self) -> str:
        """What judges the images, as ``evaluation.compare`` takes it."""
        return presets.get(self.data).features

    @property
    def prefix(self) -> str:
        """What the names of scores begin with."""
        return "digits-" if self.features == "digits" else ""

    def split(self) -> Split:
        """The teachers' data."""
        classes = torch.tensor(self.classes)
        if self.data == "digits":  # one split
            images, labels, mine = self._digits()
            images, labels = images[mine], torch.searchsorted(classes, labels[mine])
            held = torch.arange(len(images)) % 3 == 0
            return Split(images[~held], labels[~held], images[held], labels[held])
        parts = []
        for name in ("train", "test"):
            images, labels = load_images(self.data, name), load_labels(self.data, name)
            mine = torch.isin(labels, classes)
            parts += [images[mine], torch.searchsorted(classes, labels[mine])]
        return Split(*parts)

    def others(self) -> Tensor:
        """What a guide that is to know nothing of the teachers' data is trained on: all other classes."""
        if self.data != "digits":
            raise ValueError(f"unseen: found None, expected a pipeline, which draws no {self.data}")
        images, _, mine = self._digits()
        return images[~mine]

    def _digits(self) -> tuple[Tensor, Tensor, Tensor]:
        labels = load_labels("digits")
        return load_images("digits"), labels, torch.isin(labels, torch.tensor(self.classes))


STUDIES = {
    study.name: study
    for study in (
        Study(
            name="digits",  # the teachers know the digits from 5 on, the unseen guide those below
            data="digits",
            classes=(5, 6, 7, 8, 9),
            samples=299,
            draws=5,
            unseen=None,
            seen=None,
            guide="digits-53k",
            guide_iterations=600,
            guide_batch_size=64,
            guide_lr=3e-3,
            guide_ema=0.99,
            prompts=(),
            guidance=1.0,
            teacher_width=16,
            width=8,
            levels=3,
            latent_channels=4,
            teacher_iterations=600,
            teacher_lr=3e-3,
            iterations=300,
            lr=4e-3,
            weight_decay=1e-4,
            batch_size=128,
            blind=0.5,
            images=600,
            steps=20,
            synthesis_batch_size=100,
            step_size=0.2,  # this one and the next: of six tried each, on a seed that is in no table
            reconstruction=1.0,
            kl=1.0,
            batch_norm=2.0,
            classifier_teacher_width=16,
            classifier_width=8,
            classifier_teacher_iterations=400,
            classifier_iterations=400,
            classifier_lr=3e-3,
            class_step_size=0.3,
            class_batch_norm=0.1,  # DiffDFKD's three weights
            classification=1.0,
            adversarial=1.0,
            cutmix=True,
        ),
        Study(
            name="cifar10",  # the slides' own sizes, as far as they say
            data="cifar10",
            classes=tuple(range(10)),
            samples=1024,  # Chen et al.'s
            draws=1,
            unseen="stable-diffusion-v1-5/stable-diffusion-v1-5",  # the slides' guide
            seen="google/ddpm-cifar10-32",
            guide="cnn-14m",  # if one is to be trained
            guide_iterations=200_000,
            guide_batch_size=128,
            guide_lr=1e-4,
            guide_ema=0.9999,
            prompts=tuple(
                f"a photo of a {name}"
                for name in (
                    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
                )
            ),
            guidance=3.0,
            teacher_width=128,  # 5.39M parameters
            width=32,  # 0.37M, the slides' 1.44 MB; their 0.03M is width 8
            levels=5,
            latent_channels=16,
            teacher_iterations=19_500,  # 50 epochs of 390 batches
            teacher_lr=1e-4,
            iterations=19_500,
            lr=1e-4,
            weight_decay=1e-4,
            batch_size=128,
            blind=0.5,
            images=1000,
            steps=20,
            synthesis_batch_size=4,
            step_size=0.02,
            reconstruction=1.0,
            kl=1.0,
            batch_norm=0.0,  # the slides' two losses
            classifier_teacher_width=128,
            classifier_width=32,
            classifier_teacher_iterations=19_500,
            classifier_iterations=19_500,
            classifier_lr=1e-3,
            class_step_size=1.0,
            class_batch_norm=0.1,
            classification=1.0,
            adversarial=1.0,
            cutmix=True,
        ),
    )
}  # fmt: skip


def get(name: str, /, **changes) -> Study:
    """A study by name, with other settings where ``changes`` names some; ValueError for unknown names."""
    if name not in STUDIES:
        raise ValueError(f"study: found {name!r}, expected one of {', '.join(STUDIES)}")
    found = changed(STUDIES[name], changes, f"study {name}")
    if changes.keys() & {"data", "classes", "samples", "levels", "unseen"} and found.data == "digits":
        split = found.split()
        held, side = len(split.test), split.test.shape[-1]
        together(
            found,
            [
                ("classes", max(found.classes) > 9, "some of the digits 0 to 9"),
                ("samples", found.samples > held, f"at most {held}, those that are held out"),
                ("levels", bool(side % 2**found.levels), f"such that 2 ** levels divides {side}"),
            ],
        )
    elif changes.keys() & {"data", "unseen"} and found.unseen is None:
        found.others()  # which says that it has none
    return found


# -- parts --------------------------------------------------------------------------------------------

_DATA = ("data", "classes")
_SCORED = (*_DATA, "samples")
_VAE = ("levels", "latent_channels", "batch_size", "weight_decay")
_STUDENT = (*_SCORED, "draws", *_VAE, "width", "iterations", "lr")
_CLASSIFIER = ("classifier_lr",)
_TRAINED = ("guide", "guide_iterations", "guide_batch_size", "guide_lr", "guide_ema")
_SYNTHESIS = (*_SCORED, "images", "steps", "synthesis_batch_size", "prompts", "guidance")
_FOR_VAE = (*_SYNTHESIS, "reconstruction", "kl", "batch_norm")
# What decides a part beside what it stands on, by its name or its kind.
_SETTINGS = {
    "guide-unseen": (*_DATA, "unseen", *_TRAINED),
    "guide-seen": (*_DATA, "seen", *_TRAINED),
    "vae-teacher": (*_SCORED, "draws", *_VAE, "teacher_width", "teacher_iterations", "teacher_lr"),
    "vae": _STUDENT,
    "vae-both-real": (*_STUDENT, "blind"),
    "vae-both-guided": (*_STUDENT, "blind"),
    "images-unguided": _FOR_VAE,
    "images-unguided-seen": _FOR_VAE,
    "images": (*_FOR_VAE, "step_size"),
    "images-classes": (
        *_SYNTHESIS, "class_step_size", "class_batch_norm", "classification", "adversarial", "cutmix",
    ),
    "classifier-teacher": (
        *_DATA, *_CLASSIFIER, "classifier_teacher_width", "classifier_teacher_iterations",
    ),
    "classifier": (*_DATA, *_CLASSIFIER, "classifier_width", "classifier_iterations", "temperature"),
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One part of a study: a name of :data:`PARTS`, a seed, which decides it with all it stands on."""

    study: Study
    name: str
    seed: int = 0

    def __post_init__(self):
        if self.name not in PARTS:
            raise ValueError(f"part: found {self.name!r}, expected one of {', '.join(PARTS)}")
        accept("seed", kind(Seed), self.seed)

    @property
    def kind(self) -> str:
        """``guide``, ``images``, ``vae`` or ``classifier``."""
        return self.name.split("-")[0]

    @property
    def settings(self) -> dict:
        """All that decides the outcome, what it stands on included; as JSON gives it back."""
        found = {"study": self.study.name, "part": self.name, "seed": self.seed}
        found |= {name: getattr(self.study, name) for name in self._decided_by}
        return json.loads(json.dumps(found))

    @property
    def _decided_by(self) -> tuple[str, ...]:
        mine = _SETTINGS.get(self.name) or _SETTINGS[self.kind]
        below = [name for need in self.needs() for name in need._decided_by]
        return tuple(dict.fromkeys([*mine, *below]))

    @property
    def label(self) -> str:
        """Its name, and every setting that is not the study's own; a hash of these where they are many."""
        own = Part(STUDIES[self.study.name], self.name, self.seed).settings
        others = "-".join(f"{k}={v}" for k, v in self.settings.items() if v != own[k])
        if len(others) > 150:  # a file's name ends at 255
            others = hashlib.sha256(others.encode()).hexdigest()[:12]
        return "-".join(filter(None, [self.name, others]))

    @property
    def folder(self) -> Path:
        return cache_dir() / "studies" / self.study.name / f"seed{self.seed}" / self.label

    @property
    def status(self) -> str:
        """``finished``, ``resumable`` or ``not begun``."""
        if (self.folder / "result.json").is_file():
            return "finished"
        return "resumable" if any(self._checkpoints.glob("[0-9]*")) else "not begun"

    @property
    def _checkpoints(self) -> Path:
        """Of its training; they go when the part comes into its place."""
        return self.folder / "checkpoints"

    def needs(self) -> list[Part]:
        """What it stands on."""
        return [Part(self.study, name, self.seed) for name in PARTS[self.name]]

    def result(self, progress: bool = True, wait: bool = True) -> dict:
        """The result of this part: read if it is finished, else made first, with what it stands on. Where
        another process is at it, ``wait`` for its end, or be refused with a RuntimeError. ValueError for one
        made with other settings."""
        once(self.folder, "result.json", lambda new: self._make(new, progress), wait)
        found = read_json(self.folder / "result.json", _MADE_ANEW, ("settings",))
        for key, expected in self.settings.items():
            if found["settings"].get(key) != expected:
                raise ValueError(
                    f"{self.folder}: this part was made with {key} = {found['settings'].get(key)!r}, "
                    f"expected {expected!r}; move the folder away to make it anew"
                )
        return found

    def images(self, progress: bool = True) -> Tensor:
        """The images of a synthetic set, uint8 ``[N, C, H, W]``."""
        if self.kind != "images":
            raise ValueError(f"{self.name}: this part is a model, and has no images")
        self.result(progress)
        with readable(self.folder / "images.npz", _MADE_ANEW):
            return torch.from_numpy(np.load(self.folder / "images.npz")["x"])

    def model(self, progress: bool = True) -> LVAE | Classifier | Pipeline:
        """A VAE or a classifier, in eval mode; of a guide the pipeline."""
        if self.kind == "images":
            raise ValueError(f"{self.name}: this part has images, not a model")
        result = self.result(progress)
        if self.kind == "guide":
            return Pipeline.from_pretrained(result.get("pipeline", self.folder / "model")).to(device())
        if self.kind == "vae":
            return read_model(self.folder / "model", {"LVAE": LVAE}).eval().to(device())
        classifier = self._classifier()
        with readable(self.folder / "classifier.pt", _MADE_ANEW):
            classifier.load_state_dict(torch.load(self.folder / "classifier.pt", weights_only=True))
        return classifier.eval().to(device())

    # -- how it is made -------------------------------------------------------------------------------

    @property
    def _teaches(self) -> bool:
        return self.name.endswith("-teacher")

    def _need(self, name: str) -> Part:
        """What it stands on, of a name or a kind."""
        return next(need for need in self.needs() if name in (need.name, need.kind))

    def _shown(self, progress: bool) -> Tensor | None:
        """The images that a teacher or a student is trained on."""
        if self._teaches or self.name.endswith("-real"):
            return self.study.split().train
        if self.name.endswith("-noise"):
            return None
        return self._need("images").images(progress)

    @property
    def published(self) -> Path:
        """Where the book keeps this part, if it does: teachers and guides that its chapters share."""
        return models_dir() / f"{self.study.name}-study" / f"seed{self.seed}" / self.label

    def publish(self) -> Path:
        """Make the part and keep it in the book; ValueError where it is kept already."""
        self.result()
        if self.published.exists():
            raise ValueError(f"{self.published}: found this part there already, expected no such folder")
        with whole_folder(self.published) as new:
            shutil.copytree(self.folder, new)
        return self.published

    def _make(self, folder: Path, progress: bool) -> None:
        kept = self.published / "result.json"
        restored = "`git checkout -- book/models` restores it"
        if kept.is_file() and read_json(kept, restored, ("settings",))["settings"] == self.settings:
            shutil.copytree(self.published, folder)
            return
        for need in self.needs():
            need.result(progress)
        started, resuming = time.perf_counter(), self.status == "resumable"
        folder.mkdir()
        makers = {
            "guide": self._make_guide,
            "images": self._make_images,
            "vae": self._make_vae,
            "classifier": self._make_classifier,
        }
        outcome = makers[self.kind](folder, progress)
        wall = {"wall_s": round(time.perf_counter() - started, 1)}
        wall |= {"resumed": True} if resuming else {}  # then it counts the last leg only
        made = {"settings": self.settings, **outcome, **wall, "made_with": provenance()}
        write_json(folder / "result.json", made)

    def _description(self) -> str:
        return f"{self.study.name}: {self.label}"

    def _make_guide(self, folder: Path, progress: bool) -> dict:
        s, unseen = self.study, self.name == "guide-unseen"
        if pipeline := (s.unseen if unseen else s.seen):
            return {"pipeline": pipeline}
        diffusion = presets.get(s.data).diffusion()
        images = s.others() if unseen else s.split().train
        source = NoisedImages(diffusion, images, s.guide_batch_size, seed=self.seed + 1, device=device())
        torch.manual_seed(self.seed)
        network = networks.build(s.guide).to(device())
        trained, history = train(
            network, source, diffusion, s.guide_iterations, lr=s.guide_lr, ema=s.guide_ema,
            checkpoint=self._checkpoints, checkpoint_every=500,
            progress=progress, description=self._description(),
        )  # fmt: skip
        trained.save_pretrained(folder / "model", diffusion)
        return {"parameters": trained.parameter_count, "loss": _thinned(history.loss)}

    def _make_images(self, folder: Path, progress: bool) -> dict:
        s, labels, of_classes = self.study, None, self.name == "images-classes"
        guide = self._need("guide").model(progress)
        if of_classes:
            teacher, student = (self._need(f"classifier-{name}").model() for name in ("teacher", "unguided"))
            losses = ClassifierLosses(teacher, student, s.class_batch_norm, s.classification, s.adversarial)
            labels = torch.arange(s.images) % len(s.classes)
        else:
            teacher = self._need("vae").model()
            losses = VAELosses(teacher, s.reconstruction, s.kl, s.batch_norm)
        found = synthesise(
            guide, losses, s.images, steps=s.steps, step_size=self._step_size, labels=labels,
            conditions=guide.prompts(list(s.prompts)) if guide.denoiser.condition == "text" else None,
            guidance=s.guidance, cutmix=of_classes and s.cutmix, resize=True,
            batch_size=s.synthesis_batch_size, seed=self.seed + 2, progress=progress,
        )  # fmt: skip
        np.savez(folder / "images.npz", x=found.images.numpy())
        test = s.split().test[: s.samples]
        return {
            "metrics": compare(found.images[: len(test)], test, s.features),
            "images": len(found.images),
            "t": found.t,
            "losses": {name: [round(v, 5) for v in values] for name, values in found.losses.items()},
        }

    @property
    def _step_size(self) -> float:
        if self.name == "images-classes":
            return self.study.class_step_size
        return 0.0 if self.name.startswith("images-unguided") else self.study.step_size

    def _make_vae(self, folder: Path, progress: bool) -> dict:
        s, images = self.study, self._shown(progress)
        split = s.split()
        torch.manual_seed(self.seed)
        vae = LVAE(
            in_channels=split.train.shape[1],
            sample_size=split.train.shape[-1],
            width=s.teacher_width if self._teaches else s.width,
            levels=s.levels,
            latent_channels=s.latent_channels,
        ).to(device())
        losses = train_vae(
            vae, images, s.teacher_iterations if self._teaches else s.iterations,
            teacher=None if self._teaches else self._need("vae-teacher").model(),
            batch_size=s.batch_size, lr=s.teacher_lr if self._teaches else s.lr,
            weight_decay=s.weight_decay, blind=s.blind if "both" in self.name else 0.0, seed=self.seed + 1,
            checkpoint=self._checkpoints, progress=progress, description=self._description(),
        )  # fmt: skip
        vae.save_pretrained(folder / "model")
        test = split.test[: s.samples]
        noise = vae.noise(TIMED)
        with torch.no_grad():
            misses = VAELosses(vae)(to_model(test).to(device()))["reconstruction"]
            seconds = [seconds_of(lambda: vae(noise)) for _ in range(TIMED)]
        drawn = sample_vae(vae, s.draws * len(test), seed=self.seed + 3).split(len(test))
        scores = [compare(x, test, s.features) for x in drawn]
        metrics = {name: statistics.fmean(score[name] for score in scores) for name in scores[0]}
        return {
            "metrics": metrics | {"reconstruction": float(misses.mean())},
            "parameters": vae.parameter_count,
            "MiB": sum(file.stat().st_size for file in (folder / "model").iterdir()) / 2**20,
            "milliseconds": [round(1000 * value, 3) for value in seconds[TIMED // 10 :]],
            "loss": _thinned(losses),
        }

    def _classifier(self) -> Classifier:
        s = self.study
        shape = tuple(s.split().train.shape[1:])
        width = s.classifier_teacher_width if self._teaches else s.classifier_width
        return Classifier(shape, len(s.classes), width)

    def _make_classifier(self, folder: Path, progress: bool) -> dict:
        s, images, split = self.study, self._shown(progress), self.study.split()
        torch.manual_seed(self.seed)
        classifier = self._classifier().to(device())
        losses = train_classifier(
            classifier, images, s.classifier_teacher_iterations if self._teaches else s.classifier_iterations,
            labels=split.train_labels if self._teaches else None,
            teacher=None if self._teaches else self._need("classifier-teacher").model(),
            temperature=s.temperature, lr=s.classifier_lr, seed=self.seed + 1,
            checkpoint=self._checkpoints, progress=progress, description=self._description(),
        )  # fmt: skip
        torch.save(classifier.state_dict(), folder / "classifier.pt")
        return {
            "metrics": {
                "accuracy": accuracy(classifier, split.test, split.test_labels),
                "N": len(split.test),
            },
            "parameters": classifier.parameter_count,
            "loss": _thinned(losses),
        }


def _thinned(losses: list[float]) -> list[float]:
    """Means of so many equal stretches of a training's losses."""
    stretches = np.array_split(np.asarray(losses), min(POINTS, len(losses)))
    return [round(float(stretch.mean()), 5) for stretch in stretches]


# -- the ledger ---------------------------------------------------------------------------------------


def enter(part: Part) -> Path:
    """Copy a part's result into the ledger, making it first if need be; returns the file."""
    file = _folder(part.study) / f"seed{part.seed}" / f"{part.label}.json"
    write_json(file, part.result())
    return file


def entered(study: str, name: str, **changes) -> list[dict]:
    """The ledger's results of a part, one a seed; only those with the study's settings as they are now, but
    for ``changes``."""
    found = []
    for folder in sorted(_folder(STUDIES[study]).glob("seed*")):
        part = Part(get(study, **changes), name, int(folder.name.removeprefix("seed")))
        file = folder / f"{part.label}.json"
        result = read_json(file, LEDGER) if file.is_file() else {}
        found += [result] if result.get("settings") == part.settings else []
    return found


def _folder(study: Study) -> Path:
    return results_dir() / study.name / "studies"


def by_seed(study: str, name: str, metric: str, **changes) -> dict[int, float]:
    """A score of a part, by seed, from the ledger; without the prefix that digits' scores have there."""
    prefixed = STUDIES[study].prefix + metric
    return {
        result["settings"]["seed"]: result["metrics"].get(metric, result["metrics"].get(prefixed))
        for result in entered(study, name, **changes)
    }


def over_seeds(study: str, name: str, metric: str, **changes) -> Spread | None:
    """The spread of a score of a part over the ledger's seeds; None where there are none."""
    values = by_seed(study, name, metric, **changes)
    return spread(list(values.values())) if values else None


def cell(study: str, name: str, metric: str, **changes) -> str:
    """A part's score over seeds as it stands in a table. ``parameters``, ``MiB`` and ``milliseconds`` (mean
    and deviation over all timed passes, of all seeds) are no scores but stand there too."""
    results = entered(study, name, **changes)
    if not results:
        return "not run"
    if metric == "parameters":
        return f"{results[0][metric]:,}"
    if metric == "MiB":
        return f"{results[0][metric]:.2f}"
    if metric == "milliseconds":
        return str(spread([value for result in results for value in result[metric]]))
    return str(over_seeds(study, name, metric, **changes))


SCORES = ("sqrt-FID", "FID", "EMD", "MMD", "1-NN")


def table(study: str, names: Iterable[str], columns: Iterable[str], **changes) -> Table:
    """Parts of a study from the ledger, a row each, mean and deviation over seeds."""
    names, columns = list(names), list(columns)
    rows = [[NAMES[name], *(cell(study, name, column, **changes) for column in columns)] for name in names]
    seeds = [result["settings"]["seed"] for name in names for result in entered(study, name, **changes)]
    own = STUDIES[study]
    of = ", ".join(map(str, sorted(set(seeds)))) or "none"
    head = f"Ledger, study `{study}`, seeds {of}: N = {own.samples:,}, features: {own.features}"
    return Table.of(["", *columns], rows, before=head)


# -- the slides ---------------------------------------------------------------------------------------

# Their last table, "Results of DGM distillation via our data-free pipeline", on CIFAR-10, as printed: what
# they call FID stands under what it is, the square root of a Frechet distance.
SLIDES = {
    "vae-teacher": {
        "parameters": "5.39M", "sqrt-FID": "4.63", "EMD": "7.57", "MMD": "0.25", "1-NN": "0.89",
        "milliseconds": "23.3 ± 1.12", "MiB": "20.5",
    },
    "vae-real": {
        "parameters": "0.03M", "sqrt-FID": "5.24", "EMD": "7.96", "MMD": "0.30", "1-NN": "0.91",
        "milliseconds": "5.63 ± 0.54", "MiB": "1.44",
    },
    "vae-guided": {
        "parameters": "0.03M", "sqrt-FID": "5.27", "EMD": "8.07", "MMD": "0.29", "1-NN": "0.92",
        "milliseconds": "5.6 ± 1.2", "MiB": "1.52",
    },
}  # fmt: skip
# Who plays their parts here, shown images alone, or nothing and images in turn.
ROLES = {
    "vae-teacher": ("teacher", "vae-teacher"),
    "vae-real": ("student, with data", "vae-both-real"),
    "vae-guided": ("student, data-free", "vae-both-guided"),
}


def beside() -> Table:
    """The slides' table beside the ledger's, at their own size and at the digits'; there with the students of
    images alone, and with those of noise and images in turn."""
    rows = []
    for alone, numbers in SLIDES.items():
        role, in_turn = ROLES[alone]
        for metric in ("parameters", *SCORES, "milliseconds", "MiB"):
            ours = [("cifar10", alone), ("digits", alone), ("digits", in_turn)]
            cells = [cell(study, name, metric) for study, name in ours]
            rows.append([role, metric, numbers.get(metric, "not given"), *cells])
    names = ["", "", "slides", "ours, `cifar10`", "ours, `digits`", "ours, `digits`, noise in turn"]
    return Table.of(names, rows, "llrrrr")


def _ratio(name: str, other: str, metric: str, room: float = 1.0) -> Check:
    """``name`` has at most ``room`` times the score of ``other``, where less is better."""

    def check(study: str) -> dict[int, float]:
        a, b = (by_seed(study, part, metric) for part in (name, other))
        return {seed: a[seed] / (room * b[seed]) for seed in sorted(a.keys() & b.keys())}

    return check


def _behind(name: str, other: str, points: float) -> Check:
    """``name`` is right at most so many percentage points less often than ``other``."""

    def check(study: str) -> dict[int, float]:
        a, b = (by_seed(study, part, "accuracy") for part in (name, other))
        return {s: 100 * (b[s] - a[s]) / points for s in sorted(a.keys() & b.keys())}

    return check


def _more_often(name: str, other: str) -> Check:
    """``name`` is right more often than ``other``."""

    def check(study: str) -> dict[int, float]:
        a, b = (by_seed(study, part, "accuracy") for part in (name, other))
        return {s: b[s] / a[s] for s in sorted(a.keys() & b.keys())}

    return check


TENTH = 1.1  # "about as good": at most a tenth worse
_STUDENTS = {
    "from images alone": ("vae-guided", "vae-real"),
    "from noise and images in turn": ("vae-both-guided", "vae-both-real"),
}
CLAIMS = (
    *[
        Claim("slides", f"Without data as good as with it, {how}: {metric}, within a tenth.",
              "19_unified_distillation", _ratio(*pair, metric, TENTH), tuple(STUDIES))
        for how, pair in _STUDENTS.items()
        for metric in ("sqrt-FID", "EMD", "MMD", "1-NN")
    ],
    *[
        Claim("ours", f"The same of what an encoder is for, {how}: reconstruction, within a tenth.",
              "19_unified_distillation", _ratio(*pair, "reconstruction", TENTH), tuple(STUDIES))
        for how, pair in _STUDENTS.items()
    ],
    Claim("ours", "Noise alone makes as good a generator as real images alone: sqrt-FID, within a tenth.",
          "19_unified_distillation", _ratio("vae-noise", "vae-real", "sqrt-FID", TENTH), tuple(STUDIES)),
    Claim("slides", "Guidance brings a guide's images nearer to the teacher's data: sqrt-FID.",
          "20_guided_synthesis", _ratio("images-guided", "images-unguided", "sqrt-FID"), tuple(STUDIES)),
    Claim("slides", "Guided images make a better generator than unguided ones: sqrt-FID.",
          "20_guided_synthesis", _ratio("vae-guided", "vae-unguided", "sqrt-FID"), tuple(STUDIES)),
    Claim("ours", "Guided images make a better encoder than unguided ones: reconstruction.",
          "20_guided_synthesis", _ratio("vae-guided", "vae-unguided", "reconstruction"), tuple(STUDIES)),
    Claim("DiffDFKD", "Without data the student is about as good as with it: accuracy, within 5 points.",
          "21_classifier", _behind("classifier-guided", "classifier-real", 5.0), tuple(STUDIES)),
    Claim("DiffDFKD", "Guided images make a better classifier than unguided ones.",
          "21_classifier", _more_often("classifier-guided", "classifier-unguided"), tuple(STUDIES)),
)  # fmt: skip


def verdicts(chapter: str) -> Table:
    """A chapter's claims, each with its verdict at every study, by the rule of the other chapters."""
    rows = [
        [claim.place, claim.text, *(claim.verdict(study) for study in STUDIES)]
        for claim in CLAIMS
        if claim.chapter == chapter
    ]
    return Table.of(["", "claim", *(f"`{study}`" for study in STUDIES)], rows, "ll" + "l" * len(STUDIES))
