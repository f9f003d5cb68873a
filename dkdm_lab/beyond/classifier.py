"""Small classifiers with batch norm, and their distillation at a temperature."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dkdm_lab.beyond.descent import descend
from dkdm_lab.data.images import Shuffled, content_hash, to_model
from dkdm_lab.system import budget
from dkdm_lab.system.checkpoint import tensors_hash

TEMPERATURE = 30.0  # DiffDFKD's


class Classifier(nn.Module):
    """A small CNN with batch norm: images ``[B, C, H, W]`` in [-1, 1] to logits ``[B, classes]``.

    shape: of an image. width: of the first of its three convolutions; each of the others halves the side and
    doubles the width.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 16):
        super().__init__()
        self.shape, self.classes = tuple(shape), classes
        layers, channels = [], shape[0]
        for level in range(3):
            wider = width << level
            layers += [
                nn.Conv2d(channels, wider, 3, stride=1 if level == 0 else 2, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.ReLU(),
            ]
            channels = wider
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels, classes)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def tempered_kl(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` of logits ``[B, K]``; ``[B]``."""
    ours, theirs = (nn.functional.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)


def train_classifier(
    classifier: nn.Module,
    images: Tensor,
    iterations: int,
    *,
    labels: Tensor | None = None,
    teacher: nn.Module | None = None,
    temperature: float = TEMPERATURE,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    progress: bool = True,
    description: str = "training a classifier",
) -> list[float]:
    """Train a classifier on uint8 images ``[N, C, H, W]``; returns the losses.

    From ``labels``, ``[N]`` int64, by cross-entropy; or from a ``teacher``, which needs no labels, by
    :func:`tempered_kl`. The teacher is put into eval mode, the classifier left in it. checkpoint:
    where the training saves itself, see :func:`~dkdm_lab.beyond.descent.descend`.
    """
    if (labels is None) == (teacher is None):
        found = "neither" if labels is None else "both"
        raise ValueError(f"labels, teacher: found {found}, expected one of them")
    if teacher is not None:
        teacher.eval()
    device = next(classifier.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    batches = Shuffled(len(images), batch_size, generator)

    def loss(_: int) -> Tensor:
        index = next(batches)
        x = to_model(images[index]).to(device)
        if teacher is None:
            return nn.functional.cross_entropy(classifier(x), labels[index].to(device))
        with torch.no_grad():
            wanted = teacher(x)
        return tempered_kl(classifier(x), wanted, temperature).mean()

    settings = {
        "images": content_hash(images),
        "labels": None if labels is None else content_hash(labels),
        "teacher": None if teacher is None else tensors_hash(teacher.state_dict()),
        "temperature": None if teacher is None else temperature,
        **{"batch_size": batch_size, "lr": lr, "seed": seed},
    }
    return descend(
        classifier,
        loss,
        iterations,
        torch.optim.Adam(classifier.parameters(), lr=lr),
        settings=settings,
        generator=generator,
        batches=batches,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        description=description,
    )


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 512) -> float:
    """The share of uint8 images ``[N, C, H, W]`` that a classifier gives their labels ``[N]``."""
    device = next(classifier.parameters()).device
    parts = budget.each(images.split(batch_size))
    found = [classifier(to_model(part).to(device)).argmax(1).cpu() for part in parts]
    return float((torch.cat(found) == labels).float().mean())
