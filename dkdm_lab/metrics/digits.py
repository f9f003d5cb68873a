"""A small classifier of digits, whose features judge them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from dkdm_lab.data.images import content_hash, load_images
from dkdm_lab.system.files import readable, whole
from dkdm_lab.system.paths import cache_dir

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
    advice = "it judges digits; delete it, and it is trained again in seconds"
    with readable(path, advice):
        model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def digits_classifier_hash() -> str:
    """Which yardstick a digits score was measured with: a hash of the classifier's weights."""
    weights = torch.cat([p.detach().flatten() for p in digits_classifier().parameters()])
    return content_hash(weights)


def class_accuracy(images: Tensor, labels: Tensor) -> float:
    """The share of uint8 digits ``[N, 1, 8, 8]`` that the classifier takes for their ``labels`` ``[N]``."""
    with torch.no_grad():
        _, logits = digits_classifier()(images)
    return float((logits.argmax(1) == labels).float().mean())


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
    with whole(path) as scratch:
        torch.save(model.state_dict(), scratch)


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
