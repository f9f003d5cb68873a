"""Scores: FID, IS, KID and precision/recall through torch-fidelity, and distances for the toy.

Natural images are judged by Inception's features, digits by those of a small classifier trained on
them. A score in the classifier's features is called "digits-FID" and so on, never plain FID.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from dkdm_lab.data import cache_dir, content_hash, load_images

INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
METRICS = ("FID", "IS", "KID", "precision", "recall")


def score(images: Tensor, reference: Tensor | str, features: str = "inception", metrics=METRICS) -> dict:
    """Compare generated with reference images.

    images, reference: uint8 ``[N, C, H, W]``; or, for the reference, ``"digits"`` or
    ``"cifar10-train"``. features: ``"inception"`` or ``"digits"``. metrics: some of :data:`METRICS`.

    Returns ``{metric: value, "N": len(images)}``, names prefixed ``digits-`` for those features; KID is
    the mean of its subsets. The reference's statistics are cached under its content's hash and size.
    """
    name = reference if isinstance(reference, str) else "images"
    reference = load_images(*reference.split("-")) if isinstance(reference, str) else reference
    for label, value in (("images", images), ("reference", reference)):
        if value.dtype != torch.uint8 or value.ndim != 4:
            raise ValueError(
                f"{label}: found {value.dtype} {tuple(value.shape)}, expected uint8 [N, C, H, W]"
            )
    if images.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"images: found {tuple(images.shape[1:])}, but the reference has {tuple(reference.shape[1:])}"
        )
    unknown = set(metrics) - set(METRICS)
    if unknown:
        raise ValueError(f"metrics: found {sorted(unknown)}, expected some of {METRICS}")
    if features == "digits":
        extractor = {
            "feature_extractor": "digits-classifier",
            **{f"feature_layer_{metric}": "64" for metric in ("fid", "kid", "prc")},
            "feature_layer_isc": "logits",
        }
        yardstick = digits_classifier_hash()
    elif features == "inception":
        weights = cache_dir() / INCEPTION_WEIGHTS
        found = weights.is_file()
        if "IS" in metrics and found and not torch.load(weights, weights_only=True)["fc.weight"].any():
            raise ValueError(
                f"{weights}: its classifier head is all zeros, so an Inception Score means nothing"
            )
        extractor = {
            "feature_extractor": "inception-v3-compat",
            **{f"feature_layer_{metric}": "2048" for metric in ("fid", "kid", "prc")},
            "feature_layer_isc": "logits_unbiased",
            "feature_extractor_weights_path": str(weights) if found else None,
        }
        yardstick = "2015-12-05"
    else:
        raise ValueError(f"features: found {features!r}, expected 'inception' or 'digits'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-fidelity's own, about its file loading
        raw = calculate_metrics(
            input1=_Images(images, grey_as_rgb=features == "inception"),
            input2=_Images(reference, grey_as_rgb=features == "inception"),
            input2_cache_name=f"{name}-{content_hash(reference)}-{len(reference)}-{yardstick}",
            cache_root=str(cache_dir() / "statistics"),
            fid="FID" in metrics,
            isc="IS" in metrics,
            kid="KID" in metrics,
            prc="precision" in metrics or "recall" in metrics,
            kid_subset_size=min(1000, len(images), len(reference)),
            cuda=torch.cuda.is_available(),
            save_cpu_ram=True,  # no worker processes: the images are in memory already
            batch_size=256,
            verbose=False,
            **extractor,
        )
    keys = {
        "FID": "frechet_inception_distance",
        "IS": "inception_score_mean",
        "KID": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    prefix = "digits-" if features == "digits" else ""
    return {prefix + metric: raw[keys[metric]] for metric in metrics} | {"N": len(images)}


class _Images(Dataset):
    """uint8 images for torch-fidelity, one a time; grey ones get three channels for Inception."""

    def __init__(self, images: Tensor, grey_as_rgb: bool):
        grey = grey_as_rgb and images.shape[1] == 1
        self.images = images.expand(-1, 3, -1, -1) if grey else images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


# -- the yardstick for digits -------------------------------------------------------------------------


class DigitsClassifier(nn.Module):
    """A small CNN for 8x8 digits; its 64 hidden features stand where Inception's 2048 stand for photos."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 ``[B, 1, 8, 8]`` to features ``[B, 64]`` and logits ``[B, 10]``."""
        features = self.body(images.float() / 127.5 - 1)
        return features, self.head(features)


def digits_classifier() -> DigitsClassifier:
    """The classifier, trained once (seed 0, a few seconds on a CPU) and kept in data_cache."""
    path = _classifier_path()
    model = DigitsClassifier()
    if not path.is_file():
        _train_classifier(path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def digits_classifier_hash() -> str:
    """Which yardstick a digits score was measured with: a hash of the classifier's weights."""
    weights = torch.cat([p.detach().flatten() for p in digits_classifier().parameters()])
    return content_hash(weights)


def _classifier_path() -> Path:
    return cache_dir() / "digits-classifier.pt"


def _train_classifier(path: Path, epochs: int = 30) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_images("digits"), torch.from_numpy(load_digits().target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitsClassifier()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
        for _ in range(epochs):
            for index in torch.randperm(len(images)).split(64):
                loss = nn.functional.cross_entropy(model(images[index])[1], labels[index])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    torch.save(model.state_dict(), scratch)
    os.replace(scratch, path)


class _DigitsFeatures(FeatureExtractorBase):
    """The classifier as torch-fidelity sees it."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.classifier = digits_classifier()

    @staticmethod
    def get_provided_features_list():
        return "64", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "64"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = dict(zip(self.get_provided_features_list(), self.classifier(images), strict=True))
        return tuple(outputs[feature] for feature in self.features_list)


register_feature_extractor("digits-classifier", _DigitsFeatures)


# -- the toy's distance -------------------------------------------------------------------------------


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance between two sets of points, ``[N, D]`` and ``[M, D]``: 2 E|x-y| - E|x-x'| - E|y-y'|.

    Each expectation is over pairs of different points, so that two sets from one distribution give zero
    on average, and slightly negative values are ordinary.
    """
    within = [torch.cdist(a, a).sum() / (len(a) * (len(a) - 1)) for a in (x, y)]
    return float(2 * torch.cdist(x, y).mean() - within[0] - within[1])
