"""EMD, MMD, 1-NN and the root of the Frechet distance: against sums and assignments written out here."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from dkdm_lab.data import load_images
from dkdm_lab.metrics import compare, digits_classifier, emd, mmd, nearest_neighbour, score


def features(n, m, width=7, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, width)), random.normal(0.4, 1.3, size=(m, width))


def distance(a, b):
    return math.sqrt(sum((u - v) ** 2 for u, v in zip(a, b, strict=True)))


def distances(x, y):
    return np.array([[distance(a, b) for b in y] for a in x])


# -- against brute force ------------------------------------------------------------------------------


def test_emd_is_the_best_of_all_assignments():
    x, y = features(6, 6)
    cost = distances(x, y)
    best = min(sum(cost[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(6)))
    assert emd(x, y) == pytest.approx(best / 6, abs=1e-6)


def test_emd_of_many_points_is_the_hungarian_methods():
    x, y = features(200, 200)
    cost = distances(x, y)
    assert emd(x, y) == pytest.approx(cost[linear_sum_assignment(cost)].mean(), abs=1e-6)


def test_emd_of_unequal_numbers_is_the_linear_programmes():
    x, y = features(5, 8)
    cost = distances(x, y)
    rows = [np.kron(np.eye(5)[i], np.ones(8)) for i in range(5)]
    columns = [np.kron(np.ones(5), np.eye(8)[j]) for j in range(8)]
    shares = [1 / 5] * 5 + [1 / 8] * 8
    found = linprog(cost.ravel(), A_eq=np.array(rows + columns), b_eq=shares, method="highs")
    assert emd(x, y) == pytest.approx(found.fun, abs=1e-6)


def test_mmd_is_the_biased_estimate_of_its_kernel():
    x, y = features(30, 40)
    scale = sum(distance(a, b) ** 2 for a in y for b in y) / len(y) ** 2

    def mean(a, b):
        kernel = [math.exp(-(distance(u, v) ** 2) / (2 * scale)) for u in a for v in b]
        return sum(kernel) / len(kernel)

    expected = math.sqrt(mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert mmd(x, y) == pytest.approx(expected, abs=1e-6)
    assert mmd(y, x) != pytest.approx(expected, abs=1e-3)  # the real sample sets the bandwidth


def test_1_nn_looks_at_every_other_point():
    x, y = features(30, 40)
    points, own = np.concatenate([x, y]), [0] * 30 + [1] * 40
    hits = 0
    for i in range(70):
        others = [j for j in range(70) if j != i]
        hits += own[min(others, key=lambda j: distance(points[i], points[j]))] == own[i]
    assert nearest_neighbour(x, y) == pytest.approx(hits / 70, abs=1e-6)


# -- what they mean -----------------------------------------------------------------------------------


def test_equal_samples_are_at_no_distance():
    x, _ = features(50, 50)
    assert emd(x, x[::-1]) == pytest.approx(0, abs=1e-9)
    assert mmd(x, x[::-1]) == pytest.approx(0, abs=1e-7)
    assert nearest_neighbour(x, x + 1e-9) == 0.0  # each point's nearest is its own copy


def test_two_samples_of_one_distribution_cannot_be_told_apart():
    """1-NN over 8 seeds: 0.475 to 0.517. A shift by 2 makes EMD 4.2 to 4.5 times and MMD 11 to 30 times as
    large."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 300, 5))
    assert 0.42 < nearest_neighbour(x, y) < 0.58
    assert nearest_neighbour(x, y + 20) == 1.0
    assert emd(x, y + 2) > 3 * emd(x, y)
    assert mmd(x, y + 2) > 6 * mmd(x, y)


def test_emd_of_a_shift_is_its_length():
    x, _ = features(40, 40)
    assert emd(x, x + 3) == pytest.approx(3 * math.sqrt(7), abs=1e-9)


# -- of images ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("yardstick")
def test_images_are_compared_by_their_features():
    digits = load_images("digits")
    images, reference = digits[:100], digits[100:250]
    found = compare(images, reference, "digits")
    with torch.no_grad():
        x, y = (digits_classifier()(part)[0].double().numpy() for part in (images, reference))
    assert found["digits-EMD"] == pytest.approx(emd(x, y), rel=1e-6)
    assert found["digits-MMD"] == pytest.approx(mmd(x, y), rel=1e-6)
    assert found["digits-1-NN"] == nearest_neighbour(x, y)
    assert (found["N"], found["N_reference"]) == (100, 150)
    fid = score(images, reference, "digits", metrics=("FID",))["digits-FID"]
    assert found["digits-FID"] == pytest.approx(fid, rel=1e-6)
    assert found["digits-sqrt-FID"] == pytest.approx(math.sqrt(fid), rel=1e-6)


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [emd, mmd, nearest_neighbour])
def test_fewer_than_two_points_are_refused(metric):
    x, y = features(5, 5)
    with pytest.raises(ValueError, match="images: found 1, expected at least 2"):
        metric(x[:1], y)
    with pytest.raises(ValueError, match="reference: found 1, expected at least 2"):
        metric(x, y[:1])
    with pytest.raises(ValueError, match=r"images: found features \(5, 6\), expected \[N, 7\]"):
        metric(x[:, :6], y)


def test_fewer_than_two_images_are_refused():
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="images: found 1, expected at least 2"):
        compare(images[:1], images, "digits")
    with pytest.raises(ValueError, match="reference: found 1, expected at least 2"):
        compare(images, images[:1], "digits")
    with pytest.raises(ValueError, match=r"images: found torch.uint8 \(4, 1, 4, 8\), expected uint8"):
        compare(images[:, :, :4], images, "digits")


def test_a_reference_without_spread_has_no_bandwidth():
    x, y = features(5, 5)
    with pytest.raises(ValueError, match="reference: found one point, repeated"):
        mmd(x, np.repeat(y[:1], 5, axis=0))
