"""Scores: FID, sFID, IS, KID and precision/recall through torch-fidelity, distances of two samples of
features (EMD, MMD, 1-NN), and distances for the toy.

Natural images are judged by Inception's features, digits by those of a small classifier trained on
them. A score in the classifier's features is called "digits-FID" and so on, never plain FID.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.utils import create_feature_extractor

from dkdm_lab import budget
from dkdm_lab.data import cache_dir, content_hash, load_images
from dkdm_lab.files import whole

INCEPTION_WEIGHTS = Path(URL_INCEPTION_V3).name  # weights-inception-2015-12-05-6726825d.pth
METRICS = ("FID", "sFID", "IS", "KID", "precision", "recall")
FEATURES = ("inception", "digits")
FEWEST = 5  # images that can be scored
KEPT = 50_000  # features kept of a set for KID, precision and recall; FID's statistics take every image


def score(
    images: Tensor,
    reference: Tensor | str,
    features: str = "inception",
    metrics: Iterable[str] | None = None,
    kid_subset: int = 1000,
    first: int | None = None,
) -> dict:
    """Compare generated with reference images.

    images, reference: uint8 ``[N, C, H, W]``; or, for the reference, the name of a data set and its split,
    as ``"digits"`` or ``"cifar10-train"``. features: ``"inception"`` or ``"digits"``. metrics: some of
    :data:`METRICS`; by default all that the features can give: sFID needs Inception, IS a classifier head.

    Returns ``{metric: value, "N": images, "N_reference": reference images}``, names prefixed ``digits-``
    for those features; KID is the mean over 100 subsets of ``kid_subset`` images, or of all there are;
    precision and recall have 3 neighbours, as ADM's. first: the FID of the first so many images too, as
    ``FID@<first>``.
    Each image passes through the network once, for all metrics. The reference's statistics are cached
    under the hash of its content and of the network's weights.

    Errors: ValueError for what are not images of one kind, for unknown metrics, for sFID without Inception
    and for IS from a head of zeros; FileNotFoundError where Inception's weights cannot be had.
    """
    reference = load_images(*reference.split("-")) if isinstance(reference, str) else reference
    for label, value in (("images", images), ("reference", reference)):
        if value.dtype != torch.uint8 or value.ndim != 4:
            raise ValueError(
                f"{label}: found {value.dtype} {tuple(value.shape)}, expected uint8 [N, C, H, W]"
            )
        if len(value) < FEWEST:
            raise ValueError(
                f"{label}: found {len(value)}, expected at least {FEWEST}: three neighbours and more"
            )
    if images.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"images: found {tuple(images.shape[1:])}, but the reference has {tuple(reference.shape[1:])}"
        )
    if features not in FEATURES:
        raise ValueError(f"features: found {features!r}, expected one of {FEATURES}")
    possible = [m for m in METRICS if m != "sFID"] if features == "digits" else list(METRICS)
    if features == "inception" and not _inception_has_head():
        if "IS" in (metrics or ()):
            raise ValueError(
                f"{inception_weights()}: its classifier head is all zeros, "
                "so an Inception Score means nothing"
            )
        possible.remove("IS")
    metrics = possible if metrics is None else metrics
    if unknown := [m for m in metrics if m not in possible]:
        raise ValueError(f"metrics: found {unknown}, expected some of {possible} for {features} features")

    expected = _reference_statistics(reference, features)  # first: these are kept
    found = _Statistics.of(images, features, spatial="sFID" in metrics, logits="IS" in metrics)
    values: dict[str, float] = {}
    if "FID" in metrics:
        values["FID"] = _frechet(found.pooled, expected.pooled)
    if "sFID" in metrics:
        values["sFID"] = _frechet(found.spatial, expected.spatial)
    if "IS" in metrics:
        values["IS"] = isc_features_to_metric(found.logits)["inception_score_mean"]
    if "KID" in metrics:
        size = min(kid_subset, len(found.features), len(expected.features))
        kid = kid_features_to_metric(found.features, expected.features, kid_subset_size=size, verbose=False)
        values["KID"] = kid["kernel_inception_distance_mean"]
    if "precision" in metrics or "recall" in metrics:
        values |= prc_features_to_metric(found.features, expected.features, save_cpu_ram=True, verbose=False)
    names = list(metrics)
    if first is not None:
        part = _Moments(found.features.shape[1], found.features.device)
        part.add(found.features[:first])
        names.append(f"FID@{first}")
        values[names[-1]] = _frechet(part.result(), expected.pooled)
    prefix = "digits-" if features == "digits" else ""
    counts = {"N": len(images), "N_reference": len(reference)}
    return {prefix + name: values[name] for name in names} | counts


def require(features: str, n: int) -> None:
    """Refuse what :func:`score` would refuse, before ``n`` images are made for it: ValueError for too few of
    them, FileNotFoundError or ValueError where the network behind the features cannot be had."""
    if n < FEWEST:
        raise ValueError(f"images: found {n}, expected at least {FEWEST}: three neighbours and more")
    if features == "inception":
        _inception_state()


# -- two samples --------------------------------------------------------------------------------------


def compare(images: Tensor, reference: Tensor, features: str = "inception") -> dict:
    """Generated beside real images as two samples of features, by the scores of Chen et al. (CVPR 2023).

    images, reference: uint8 ``[N, C, H, W]``; they take 1,024 of each. features: as in :func:`score`.
    Returns ``FID``, ``sqrt-FID`` (its root, which those authors call FID), ``EMD``,
    ``MMD``, ``1-NN``, ``N`` and ``N_reference``; names prefixed ``digits-`` for those features. Time and
    memory of EMD grow with the square of N and more: it is for thousands, not for FID's 50,000.
    Errors: ValueError for what are not images of one kind, and for fewer than 2.
    """
    for label, value in (("images", images), ("reference", reference)):
        if value.dtype != torch.uint8 or value.ndim != 4 or value.shape[1:] != reference.shape[1:]:
            raise ValueError(
                f"{label}: found {value.dtype} {tuple(value.shape)}, expected uint8 [N, C, H, W] of one kind"
            )
        _at_least_two(label, value)
    found = [_Statistics.of(x, features, spatial=False, logits=False) for x in (images, reference)]
    x, y = (one.features.double().numpy() for one in found)
    fid = _frechet(found[0].pooled, found[1].pooled)
    # Of two nearly equal sets rounding may leave a little less than nothing.
    values = {"FID": fid, "sqrt-FID": math.sqrt(max(0.0, fid))}
    values |= {"EMD": emd(x, y), "MMD": mmd(x, y), "1-NN": nearest_neighbour(x, y)}
    prefix = "digits-" if features == "digits" else ""
    counts = {"N": len(images), "N_reference": len(reference)}
    return {prefix + name: value for name, value in values.items()} | counts


def emd(x: np.ndarray, y: np.ndarray) -> float:
    """The earth mover's distance of two samples ``[N, D]`` and ``[M, D]``: the least mean Euclidean distance
    at which one can be moved onto the other. Exact, by the network simplex."""
    import ot  # it takes half a second, for which nobody else should wait

    _pair(x, y)
    return float(ot.emd2([], [], cdist(x, y), numItermax=10_000_000))


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The maximum mean discrepancy of a sample ``[N, D]`` from the real one, ``y`` ``[M, D]``.

    The kernel is ``exp(-d^2 / (2 s))``, where s is the mean squared distance of the real sample's pairs, each
    point with itself among them; the estimate is the biased one, and its root is taken.
    ValueError where the real sample is a single point, repeated.
    """
    _pair(x, y)
    scale = float(np.mean(cdist(y, y, "sqeuclidean")))
    if scale == 0:
        raise ValueError("reference: found one point, repeated, expected at least two different ones")
    gamma = 1 / (2 * scale)
    squared = rbf_kernel(x, x, gamma).mean() + rbf_kernel(y, y, gamma).mean()
    squared -= 2 * rbf_kernel(x, y, gamma).mean()
    return math.sqrt(max(0.0, float(squared)))


def nearest_neighbour(x: np.ndarray, y: np.ndarray) -> float:
    """1-NN: how often a point's nearest neighbour, among all others, is of its own sample. 0.5 for equal
    samples of one distribution, 1 for two that do not touch; near 0 where one copies the other."""
    _pair(x, y)
    own = np.repeat([0, 1], [len(x), len(y)])
    _, nearest = NearestNeighbors(n_neighbors=1).fit(np.concatenate([x, y])).kneighbors()
    return float(np.mean(own == own[nearest[:, 0]]))


def _pair(x: np.ndarray, y: np.ndarray) -> None:
    for label, value in (("images", x), ("reference", y)):
        if value.ndim != 2 or value.shape[1] != y.shape[1]:
            raise ValueError(f"{label}: found features {value.shape}, expected [N, {y.shape[-1]}]")
        _at_least_two(label, value)


def _at_least_two(label: str, sample) -> None:
    if len(sample) < 2:
        raise ValueError(f"{label}: found {len(sample)}, expected at least 2")


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
    with contextlib.suppress(Exception):  # none there, or one that cannot be read: made anew
        return _Statistics(**torch.load(file, weights_only=True))
    found = _Statistics.of(reference, features, spatial=features == "inception", logits=False)
    with whole(file) as scratch:
        torch.save({use: getattr(found, use) for use in ("pooled", "spatial", "features")}, scratch)
    budget.kept()
    return found


def _frechet(a: dict, b: dict) -> float:
    a, b = ({name: value.numpy() for name, value in moments.items()} for moments in (a, b))
    return fid_statistics_to_metric(a, b, verbose=False)["frechet_inception_distance"]


# -- Inception ----------------------------------------------------------------------------------------


class InceptionSpatial(FeatureExtractorInceptionV3):
    """FID's Inception that also gives sFID's features: ``spatial``, ``[B, 2023]``.

    They are the first 7 channels of the 17x17 maps that the 1x1 branch of ``mixed_6`` gives, flattened
    height, width, channel, as in ADM's evaluation. Registered with torch-fidelity as
    ``inception-v3-spatial``; one forward pass serves every layer asked for.
    """

    def __init__(self, name, features_list, **options):
        super().__init__(name, features_list, **options)
        self._maps: Tensor | None = None
        self.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module, inputs, output):
        self._maps = output

    @staticmethod
    def get_provided_features_list():
        return *FeatureExtractorInceptionV3.get_provided_features_list(), "spatial"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        wanted = self.features_list
        # The parent stops at the last layer it is asked for, and must get past mixed_6.
        self.features_list = [layer for layer in wanted if layer != "spatial"] or ["2048"]
        try:
            found = dict(zip(self.features_list, super().forward(images), strict=True))
        finally:
            self.features_list = wanted
        if "spatial" in wanted:
            found["spatial"] = self._maps[:, :7].permute(0, 2, 3, 1).flatten(1).to(torch.float32)
        return tuple(found[layer] for layer in wanted)


register_feature_extractor("inception-v3-spatial", InceptionSpatial)


def inception_weights() -> Path:
    """The file of Inception's weights in data_cache, downloaded there if it is missing."""
    file = cache_dir() / INCEPTION_WEIGHTS
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            load_state_dict_from_url(URL_INCEPTION_V3, model_dir=str(file.parent), progress=False)
        except OSError as error:  # what urllib raises is one
            raise FileNotFoundError(
                f"{file}: found no Inception weights, and could not download them ({error}); "
                f"fetch {URL_INCEPTION_V3} elsewhere and put it there"
            ) from error
    return file


def _inception_has_head() -> bool:
    return bool(_inception_state()["fc.weight"].any())


def _inception_hash() -> str:
    """Which Inception a score was measured with; its classifier head makes no difference to features."""
    state = _inception_state()
    body = [state[key].float().flatten() for key in sorted(state) if not key.startswith("fc.")]
    return content_hash(torch.cat(body))


def _inception_state() -> dict:
    file = inception_weights()
    return _read_inception(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_inception(file: Path, _changed: int) -> dict:
    # Always before torch-fidelity reads the file, which would run what a pickle says.
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        state["fc.weight"], state["Mixed_6d.branch1x1.conv.weight"]
    except Exception as error:  # a torn download, another file
        raise ValueError(f"{file}: these are not Inception's weights ({error}); delete it") from error
    return state


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


# -- the toy's distance -------------------------------------------------------------------------------


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance between two sets of points, ``[N, D]`` and ``[M, D]``: 2 E|x-y| - E|x-x'| - E|y-y'|.

    Each expectation is over pairs of different points, so that two sets from one distribution give zero
    on average, and slightly negative values are ordinary.
    """
    within = [torch.cdist(a, a).sum() / (len(a) * (len(a) - 1)) for a in (x, y)]
    return float(2 * torch.cdist(x, y).mean() - within[0] - within[1])
