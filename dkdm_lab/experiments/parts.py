"""Parts of a study: teachers, guides, sets of images and students, which are made from each other.

A part lies in ``data_cache/studies/<study>/seed<n>/<part>/``, made whole or not at all by whoever asks first.
How it is made stands in :mod:`~dkdm_lab.experiments.part_making`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dkdm_lab.beyond.classifier import Classifier
from dkdm_lab.beyond.vae import LVAE
from dkdm_lab.experiments import part_making
from dkdm_lab.experiments.artifact import MADE_ANEW, Artifact, set_options
from dkdm_lab.experiments.study import STUDIES, Study
from dkdm_lab.networks.folders import read_model
from dkdm_lab.system.files import explained, readable, whole_folder
from dkdm_lab.system.paths import cache_dir, models_dir, results_dir
from dkdm_lab.system.provenance import device
from dkdm_lab.system.settings import Seed, accept, kind
from dkdm_lab.teachers.pipelines import Pipeline

# The parts that each part is made from.
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

# -- which settings decide a part ----------------------------------------------------------------------

_DATA = ("data", "classes")
_SCORED = (*_DATA, "samples")
_VAE = ("levels", "latent_channels", "batch_size", "weight_decay")
_STUDENT = (*_SCORED, "draws", *_VAE, "width", "iterations", "lr")
_CLASSIFIER = ("classifier_lr",)
_TRAINED = ("guide", "guide_iterations", "guide_batch_size", "guide_lr", "guide_ema")
_SYNTHESIS = (*_SCORED, "images", "steps", "synthesis_batch_size", "prompts", "guidance")
_FOR_VAE = (*_SYNTHESIS, "reconstruction", "kl", "batch_norm")
# The settings that decide a part, beside those of the parts it is made from; by its name or its kind.
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
class Part(Artifact):
    """One part of a study: a name of :data:`PARTS`, and a seed, which decides it with all it stands on."""

    study: Study
    name: str
    seed: int = 0

    noun = "part"

    def __post_init__(self):
        if self.name not in PARTS:
            raise ValueError(f"part: found {self.name!r}, expected one of {', '.join(PARTS)}")
        accept("seed", kind(Seed), self.seed)

    # -- what it is -----------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """``guide``, ``images``, ``vae`` or ``classifier``."""
        return self.name.split("-")[0]

    @property
    def teaches(self) -> bool:
        """Whether it is a teacher, which learns from real images and labels."""
        return self.name.endswith("-teacher")

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
    def title(self) -> str:
        return f"{self.study.name}/seed{self.seed}/{self.label}"

    @property
    def folder(self) -> Path:
        return cache_dir() / "studies" / self.study.name / f"seed{self.seed}" / self.label

    @property
    def ledger_file(self) -> Path:
        return ledger_folder(self.study) / f"seed{self.seed}" / f"{self.label}.json"

    @property
    def pipeline(self) -> str | None:
        """The folder or Hub id of a guide that is not trained here."""
        return {"guide-unseen": self.study.unseen, "guide-seen": self.study.seen}.get(self.name)

    @property
    def outputs(self) -> tuple[str, ...]:
        if self.pipeline:
            return ()
        return ({"images": "images.npz", "classifier": "classifier.pt"}.get(self.kind, "model"),)

    def needs(self) -> list[Part]:
        """The parts that it is made from."""
        return [Part(self.study, name, self.seed) for name in PARTS[self.name]]

    def need(self, name: str) -> Part:
        """The part of a name or a kind that it is made from."""
        return next(need for need in self.needs() if name in (need.name, need.kind))

    def command(self) -> str:
        """The options of `dkdm study` that make it."""
        others = set_options(STUDIES[self.study.name], self.study)
        return " ".join([self.study.name, f"--parts {self.name}", f"--seeds {self.seed}", *others])

    # -- what came out --------------------------------------------------------------------------------

    def images(self, progress: bool = True) -> Tensor:
        """The images of a synthetic set, uint8 ``[N, C, H, W]``."""
        if self.kind != "images":
            raise ValueError(f"{self.name}: this part is a model, and has no images")
        self.result(progress)
        with readable(self.folder / "images.npz", MADE_ANEW):
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
        classifier = part_making.untrained_classifier(self)
        with readable(self.folder / "classifier.pt", MADE_ANEW):
            classifier.load_state_dict(torch.load(self.folder / "classifier.pt", weights_only=True))
        return classifier.eval().to(device())

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

    def _make(self, progress: bool) -> None:
        with explained(self.folder), whole_folder(self.folder) as new:
            part_making.make(self, new, progress)


def ledger_folder(study: Study) -> Path:
    """Where the ledger keeps a study's results."""
    return results_dir() / study.name / "studies"
