"""Scores: against formulas written out here, and what is refused."""

import itertools

import numpy as np
import pytest
import torch

from dkdm_lab import evaluation
from dkdm_lab.data import load_images
from dkdm_lab.evaluation import INCEPTION_WEIGHTS, METRICS, digits_classifier, energy_distance, score


@pytest.fixture
def digits():
    return load_images("digits")


def digits_fid(images, reference):
    return score(images, reference, "digits", metrics=("FID",))["digits-FID"]


# -- scores through torch-fidelity --------------------------------------------------------------------


def features(images):
    with torch.no_grad():
        return digits_classifier()(images)[0].double().numpy()


def frechet(images, reference):
    """The Frechet distance of two sets of the classifier's features, by its formula.

    tr sqrt(A B) as the sum of roots of the eigenvalues of sqrt(A) B sqrt(A), which is symmetric.
    """
    a, b = features(images), features(reference)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    common = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * common


@pytest.mark.usefixtures("yardstick")
def test_a_set_is_at_no_distance_from_itself(digits):
    assert abs(digits_fid(digits, "digits")) < 1e-6  # measured: 1e-10


@pytest.mark.usefixtures("yardstick")
@pytest.mark.parametrize("change", ["half", "noise", "one digit left out"])
def test_digits_fid_is_the_frechet_distance_of_the_features(digits, change):
    if change == "half":
        images = digits[::2]
    elif change == "noise":
        images = (digits.float() + 30 * torch.randn(digits.shape)).clamp(0, 255).to(torch.uint8)
    else:
        from sklearn.datasets import load_digits

        images = digits[torch.from_numpy(load_digits().target) != 3]
    assert digits_fid(images, digits) == pytest.approx(frechet(images, digits), rel=1e-3)


@pytest.mark.usefixtures("yardstick")
def test_worse_images_score_worse(digits):
    def noisy(std):
        return (digits.float() + std * torch.randn(digits.shape)).clamp(0, 255).to(torch.uint8)

    assert digits_fid(noisy(5), "digits") < digits_fid(noisy(30), "digits") < digits_fid(noisy(90), "digits")


@pytest.mark.usefixtures("yardstick")
def test_all_scores_carry_the_yardsticks_name_and_n(digits):
    found = score(digits[:300], "digits", "digits")
    assert found.keys() == {*(f"digits-{metric}" for metric in METRICS), "N"}
    assert found["N"] == 300
    assert found["digits-precision"] == 1.0  # they are all among the reference
    assert 0.5 < found["digits-recall"] < 1.0
    assert 1 < found["digits-IS"] < 10


@pytest.mark.usefixtures("yardstick")
def test_kid_is_the_unbiased_distance_of_the_polynomial_kernel(digits):
    images, reference = digits[:300], digits[300:600]  # equally many, so that each of KID's subsets is all
    a, b = features(images), features(reference)

    def kernel(x, y):
        return (x @ y.T / 64 + 1) ** 3

    within = [(kernel(x, x).sum() - np.trace(kernel(x, x))) / (300 * 299) for x in (a, b)]
    expected = within[0] + within[1] - 2 * kernel(a, b).mean()
    found = score(images, reference, "digits", metrics=("KID",))["digits-KID"]
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.usefixtures("yardstick")
def test_another_reference_is_never_taken_from_the_cache(digits):
    """torch-fidelity caches by name; ours holds the content, so that equal names do no harm."""
    first, second = digits[:600], digits[600:1200]
    images = digits[1200:]
    for reference in (first, second, first):
        assert digits_fid(images, reference) == pytest.approx(frechet(images, reference), rel=1e-3)
    assert frechet(images, first) != pytest.approx(frechet(images, second), rel=1e-2)


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(20, 1, 8, 8), r"images: found torch.float32 \(20, 1, 8, 8\), expected uint8"),
        (torch.zeros(20, 8, 8).byte(), r"images: found torch.uint8 \(20, 8, 8\), expected uint8"),
        (torch.zeros(20, 3, 8, 8).byte(), r"found \(3, 8, 8\), but the reference has \(1, 8, 8\)"),
    ],
)
def test_what_are_not_the_references_kind_of_images_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        score(images, "digits", "digits")


def test_unknown_metrics_are_refused(digits):
    with pytest.raises(ValueError, match=r"metrics: found \['LPIPS'\], expected some of"):
        score(digits, digits, "digits", metrics=("FID", "LPIPS"))


def test_unknown_features_are_refused(digits):
    with pytest.raises(ValueError, match="features: found 'vgg', expected 'inception' or 'digits'"):
        score(digits, digits, "vgg")


def test_an_inception_without_its_head_gives_no_inception_score(cache, digits):
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, cache / INCEPTION_WEIGHTS)
    with pytest.raises(ValueError, match=rf"{INCEPTION_WEIGHTS}: its classifier head is all zeros"):
        score(digits, digits, metrics=("FID", "IS"))


# -- the yardstick for digits -------------------------------------------------------------------------


@pytest.mark.usefixtures("yardstick")
def test_the_classifier_knows_the_digits(digits):
    from sklearn.datasets import load_digits

    features, logits = digits_classifier()(digits)
    assert features.shape == (1797, 64)
    assert float((logits.argmax(1) == torch.from_numpy(load_digits().target)).float().mean()) > 0.99


def test_the_classifier_is_trained_once(yardstick, monkeypatch):
    monkeypatch.setattr(evaluation, "_train_classifier", None)  # calling it would fail
    assert digits_classifier().training is False


def test_the_classifier_is_always_the_same(cache, monkeypatch):
    """Whatever random numbers were drawn before; a score names it by its hash."""
    hashes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        evaluation._train_classifier(cache / "digits-classifier.pt", epochs=1)
        hashes.append(evaluation.digits_classifier_hash())
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 12


# -- the toy's distance -------------------------------------------------------------------------------


def test_energy_distance_is_its_formula():
    x, y = torch.randn(7, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64) + 1

    across = np.mean([float((p - q).norm()) for p in x for q in y])
    within = [np.mean([float((p - q).norm()) for p, q in itertools.permutations(z, 2)]) for z in (x, y)]
    assert energy_distance(x, y) == pytest.approx(2 * across - sum(within))


def test_energy_distance_of_one_distribution_is_zero_on_average():
    values = torch.tensor([energy_distance(torch.randn(200, 2), torch.randn(200, 2)) for _ in range(200)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / 200**0.5


def test_energy_distance_grows_with_the_shift():
    x, y = torch.randn(2, 500, 2)
    assert energy_distance(x, y) < energy_distance(x, y + 0.5) < energy_distance(x, y + 1)
