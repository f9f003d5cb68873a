"""Distances between two samples, in any space."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor


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


# -- the toy's distance -------------------------------------------------------------------------------


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance between two sets of points, ``[N, D]`` and ``[M, D]``: 2 E|x-y| - E|x-x'| - E|y-y'|.

    Each expectation is over pairs of different points, so that two sets from one distribution give zero
    on average, and slightly negative values are ordinary.
    """
    within = [torch.cdist(a, a).sum() / (len(a) * (len(a) - 1)) for a in (x, y)]
    return float(2 * torch.cdist(x, y).mean() - within[0] - within[1])
