"""What FID and its kin need of a set of images: moments and kept features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.utils import create_feature_extractor

from dkdm_lab.data.images import content_hash
from dkdm_lab.metrics.digits import digits_classifier_hash
from dkdm_lab.metrics.inception import _inception_hash, inception_weights
from dkdm_lab.system import budget
from dkdm_lab.system.files import readable, whole
from dkdm_lab.system.paths import cache_dir

KEPT = 50_000  # features kept of a set for KID, precision and recall; FID's statistics take every image


# -- features and their statistics --------------------------------------------------------------------


class _Moments:
    """Mean and covariance of vectors that come in batches, in float64."""

    def __init__(self, width: int, device: torch.device):
        self.n = 0
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.shift: Tensor | None = None  # near the mean, so that the products lose no digits

    def add(self, x: Tensor) -> None:
        x = x.double()
        if self.shift is None:
            self.shift = x.mean(0)
        x = x - self.shift
        self.n += len(x)
        self.sum += x.sum(0)
        self.products += x.T @ x

    def result(self) -> dict:
        """``{"mu": [D], "sigma": [D, D]}``, sigma with n - 1."""
        mean = self.sum / self.n
        sigma = (self.products - self.n * torch.outer(mean, mean)) / (self.n - 1)
        return {"mu": (self.shift + mean).cpu(), "sigma": sigma.cpu()}


@dataclass(frozen=True)
class _Statistics:
    """All that the metrics need of one set of images, from one pass of the network over it."""

    pooled: dict  # mu and sigma of the pooled features
    spatial: dict | None  # the same of sFID's
    features: Tensor  # pooled, of KEPT images at most
    logits: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor, features: str, spatial: bool, logits: bool) -> _Statistics:
        wanted = {"pooled": True, "spatial": spatial, "logits": logits}
        layers = {use: layer for use, layer in _LAYERS[features].items() if wanted[use]}
        extractor = _extractor(features, list(layers.values()))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        kept = torch.zeros(len(images), dtype=torch.bool)
        kept[torch.linspace(0, len(images) - 1, min(KEPT, len(images))).long()] = True
        moments: dict[str, _Moments] = {}
        vectors, heads = [], []
        with torch.no_grad():
            for start in budget.each(range(0, len(images), 256)):
                batch = images[start : start + 256].to(device)
                if features == "inception" and batch.shape[1] == 1:
                    batch = batch.expand(-1, 3, -1, -1)
                out = dict(zip(layers, extractor(batch), strict=True))
                for use in ("pooled", "spatial"):
                    if use in out:
                        moments.setdefault(use, _Moments(out[use].shape[1], device)).add(out[use])
                vectors.append(out["pooled"].cpu()[kept[start : start + 256]])
                if "logits" in out:
                    heads.append(out["logits"].cpu())
        results = {use: m.result() for use, m in moments.items()}
        return cls(
            results["pooled"], results.get("spatial"), torch.cat(vectors), torch.cat(heads) if heads else None
        )


_LAYERS = {
    "inception": {"pooled": "2048", "spatial": "spatial", "logits": "logits_unbiased"},
    "digits": {"pooled": "64", "logits": "logits"},
}


def _extractor(features: str, layers: list[str]) -> FeatureExtractorBase:
    options = {"feature_extractor_weights_path": str(inception_weights())} if features == "inception" else {}
    name = {"inception": "inception-v3-spatial", "digits": "digits-classifier"}[features]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-fidelity's own, about its file loading
        extractor = create_feature_extractor(
            name, layers, cuda=torch.cuda.is_available(), verbose=False, **options
        )
    if features == "inception":  # 1.6 times as fast so on the CPU it was measured on
        extractor.to(memory_format=torch.channels_last)
    return extractor


def statistics_file(reference: Tensor, features: str) -> Path:
    """Where the statistics of reference images are kept in data_cache."""
    yardstick = digits_classifier_hash() if features == "digits" else _inception_hash()
    return cache_dir() / "statistics" / f"{content_hash(reference)}-{len(reference)}-{yardstick}.pt"


def _reference_statistics(reference: Tensor, features: str) -> _Statistics:
    """The reference's statistics: read where they were computed before, by content, never by name."""
    file = statistics_file(reference, features)
    try:
        with readable(file, "they are computed again"):
            return _Statistics(**torch.load(file, weights_only=True))
    except FileNotFoundError:
        pass
    except ValueError as damaged:
        warnings.warn(f"the reference's statistics: {damaged}", stacklevel=2)
    found = _Statistics.of(reference, features, spatial=features == "inception", logits=False)
    _keep(found, reference, features)
    return found


def _keep(found: _Statistics, images: Tensor, features: str) -> None:
    """Write down what images have as a reference."""
    with whole(statistics_file(images, features)) as scratch:
        torch.save({use: getattr(found, use) for use in ("pooled", "spatial", "features")}, scratch)
    budget.kept()


def _frechet(a: dict, b: dict) -> float:
    a, b = ({name: value.numpy() for name, value in moments.items()} for moments in (a, b))
    return fid_statistics_to_metric(a, b, verbose=False)["frechet_inception_distance"]
