"""A study: everything but the seed that decides how VAEs and classifiers are distilled, as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dkdm_lab.beyond.classifier import TEMPERATURE
from dkdm_lab.data.images import load_images, load_labels
from dkdm_lab.data.sets import judged
from dkdm_lab.experiments import presets


class Split(NamedTuple):
    """Real images, uint8 ``[N, C, H, W]``, and their classes from 0, ``[N]`` int64: to learn from, and held
    out."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Study:
    """Everything that decides a study but the seed."""

    name: str
    data: str  # what `data.load_images` takes, and a preset, whose process and features are used
    classes: tuple[int, ...]  # the teachers' own; of a set without a split every third image is held out
    samples: int  # of the held-out images and of generated ones, in every score
    draws: int  # sets of generated images, whose scores are averaged

    unseen: str | None  # a guide's folder or Hub id; None for one to be trained here, on all other classes
    seen: str | None  # None for one to be trained here, on the teachers' images
    guide: str  # the network of a guide that is trained here, by name
    guide_iterations: int
    guide_batch_size: int
    guide_lr: float
    guide_ema: float
    prompts: tuple[str, ...]  # of a text-to-image guide, one per class
    guidance: float  # classifier-free, of such a guide

    teacher_width: int
    width: int  # the students'
    levels: int
    latent_channels: int
    teacher_iterations: int
    teacher_lr: float
    iterations: int
    lr: float
    weight_decay: float
    batch_size: int
    blind: float  # the share of iterations without images, of students that learn both ways

    images: int  # of a synthetic set
    steps: int
    synthesis_batch_size: int
    step_size: float
    reconstruction: float  # weights of the losses that guide for a VAE
    kl: float
    batch_norm: float

    classifier_teacher_width: int
    classifier_width: int
    classifier_teacher_iterations: int
    classifier_iterations: int
    classifier_lr: float
    class_step_size: float
    class_batch_norm: float  # weights of the losses that guide for a classifier
    classification: float
    adversarial: float
    cutmix: bool
    temperature: float = TEMPERATURE

    @property
    def features(self) -> str:
        """What judges the images, as ``evaluation.compare`` takes it."""
        return presets.get(self.data).features

    @property
    def prefix(self) -> str:
        """What the names of scores begin with."""
        return judged(self.data).prefix

    def split(self) -> Split:
        """The teachers' data."""
        classes = torch.tensor(self.classes)
        if not judged(self.data).has_test_split:
            images, labels, mine = self._only_split()
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
        if judged(self.data).has_test_split:
            raise ValueError(f"unseen: found None, expected a pipeline, which draws no {self.data}")
        images, _, mine = self._only_split()
        return images[~mine]

    def _only_split(self) -> tuple[Tensor, Tensor, Tensor]:
        """All images and labels of a set without a test split, and which of them the teachers know."""
        labels = load_labels(self.data)
        return load_images(self.data), labels, torch.isin(labels, torch.tensor(self.classes))


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


def get(name: str, **changes) -> Study:
    """A study by name, with other settings where ``changes`` names some; ValueError for unknown names."""
    if name not in STUDIES:
        raise ValueError(f"study: found {name!r}, expected one of {', '.join(STUDIES)}")
    known = {field.name for field in dataclasses.fields(Study)} - {"name"}
    if unknown := sorted(set(changes) - known):
        raise ValueError(f"study {name}: found no setting {unknown[0]!r}, expected one of {sorted(known)}")
    return dataclasses.replace(STUDIES[name], **changes)
