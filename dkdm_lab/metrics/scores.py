"""Scores: FID, sFID, IS, KID and precision/recall through torch-fidelity, distances of two samples of
features (EMD, MMD, 1-NN), and distances for the toy.

Natural images are judged by Inception's features, digits by those of a small classifier trained on
them. A score in the classifier's features is called "digits-FID" and so on, never plain FID.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from dkdm_lab.data.images import load_images
from dkdm_lab.metrics.inception import _inception_has_head, _inception_state, inception_weights
from dkdm_lab.metrics.statistics import _frechet, _keep, _Moments, _reference_statistics, _Statistics
from dkdm_lab.metrics.two_samples import _at_least_two, emd, mmd, nearest_neighbour

METRICS = ("FID", "sFID", "IS", "KID", "precision", "recall")
FEATURES = ("inception", "digits")
FEWEST = 5  # images that can be scored


def score(
    images: Tensor,
    reference: Tensor | str,
    features: str = "inception",
    metrics: Iterable[str] | None = None,
    kid_subset: int = 1000,
    first: int | None = None,
    keep: bool = False,
) -> dict:
    """Compare generated with reference images.

    images, reference: uint8 ``[N, C, H, W]``; or, for the reference, the name of a data set and its split,
    as ``"digits"`` or ``"cifar10-train"``. features: ``"inception"`` or ``"digits"``. metrics: some of
    :data:`METRICS`; by default all that the features can give: sFID needs Inception, IS a classifier head.

    Returns ``{metric: value, "N": images, "N_reference": reference images}``, names prefixed ``digits-``
    for those features; KID is the mean over 100 subsets of ``kid_subset`` images, or of all there are;
    precision and recall have 3 neighbours, as ADM's. first: the FID of the first so many images too, as
    ``FID@<first>``. keep: whether the images will be a reference later, so that they are looked at once.
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
    spatial = "sFID" in metrics or (keep and features == "inception")
    found = _Statistics.of(images, features, spatial=spatial, logits="IS" in metrics)
    if keep:
        _keep(found, images, features)
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
