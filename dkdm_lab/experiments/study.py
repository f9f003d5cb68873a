"""A study: everything but the seed that decides how VAEs and classifiers are distilled, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from dkdm_lab.beyond.classifier import TEMPERATURE
from dkdm_lab.data.images import load_images, load_labels
from dkdm_lab.data.sets import judged
from dkdm_lab.experiments import presets
from dkdm_lab.experiments.preset import Network
from dkdm_lab.system.settings import (
    MOST,
    Average,
    Count,
    Guidance,
    Named,
    Range,
    Share,
    Weight,
    changed,
    check,
    together,
)


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
