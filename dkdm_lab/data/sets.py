"""What a data set is to those who learn from it and are judged by it: its samples, and what judges them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dkdm_lab.data.images import load_images
from dkdm_lab.data.toy import GaussianMixture


@dataclass(frozen=True)
class Judged:
    """A data set with its judge. Other modules ask it instead of comparing names."""

    name: str
    # Whose features judge its images; None for points in the plane, whose distance needs no network.
    features: str | None = "inception"
    metrics: tuple[str, ...] | None = None  # of an evaluation; None for all that the features can give
    has_test_split: bool = True

    @property
    def of_images(self) -> bool:
        """Whether its samples are images."""
        return self.features is not None

    @property
    def prefix(self) -> str:
        """What the names of scores in its features begin with; Inception's have no prefix."""
        return "" if self.features in (None, "inception") else f"{self.features}-"

    @property
    def metric(self) -> str:
        """The name of the score that decides, as results hold it."""
        return f"{self.prefix}FID" if self.of_images else "energy-distance"

    @property
    def teacher_metrics(self) -> tuple[str, ...]:
        """The metrics of a comparison with the teacher's own distribution: sFID needs Inception."""
        return ("FID", "sFID") if self.features == "inception" else ("FID",)

    def training_set(self) -> Tensor:
        """All that there is to learn from: uint8 ``[N, C, H, W]``, or 100,000 points ``[N, 2]``."""
        if not self.of_images:
            return GaussianMixture.ring().sample(100_000, seed=0)
        return load_images(self.name)

    def reference(self, samples: int, images: int | None = None) -> Tensor:
        """What ``samples`` samples are compared with: the first so many ``images`` (None for all), or as many
        fresh points."""
        if not self.of_images:
            return GaussianMixture.ring().sample(samples, seed=4)
        return load_images(self.name, n=images)


_KNOWN = {
    "toy": Judged("toy", features=None),
    "digits": Judged("digits", "digits", ("FID", "precision", "recall"), has_test_split=False),
}


def judged(name: str) -> Judged:
    """A data set by its name; any that is not known by name holds photographs, which Inception judges."""
    return _KNOWN.get(name) or Judged(name)
