"""Scores: against formulas written out here, and what is refused."""

import itertools
import shutil
import urllib.error

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import create_feature_extractor

from dkdm_lab import metrics
from dkdm_lab.data import load_images
from dkdm_lab.metrics import (
    INCEPTION_WEIGHTS,
    METRICS,
    InceptionSpatial,
    digits_classifier,
    energy_distance,
    score,
    statistics,
)
from dkdm_lab.metrics.digits import _train_classifier
from dkdm_lab.system.paths import cache_dir

REAL = cache_dir()  # the user's own, before each test gets an empty one


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
    """The Frechet distance of two sets of the classifier's features."""
    return frechet_of(features(images), features(reference))


def frechet_of(a, b):
    """The Frechet distance of two sets of vectors, by its formula.

    With centred vectors as rows, A = X^T X and B = Y^T Y, and tr sqrt(A B) is the sum of the singular values
    of Y X^T, or of their R factors, which are smaller where vectors are many.
    """
    x, y = ((v - v.mean(0)) / np.sqrt(len(v) - 1) for v in (a, b))
    x, y = (np.linalg.qr(v, mode="r") for v in (x, y))
    common = np.linalg.svd(y @ x.T, compute_uv=False).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * common


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
    assert found.keys() == {*(f"digits-{m}" for m in METRICS if m != "sFID"), "N", "N_reference"}
    assert (found["N"], found["N_reference"]) == (300, 1797)
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


@pytest.mark.usefixtures("yardstick")
def test_images_kept_for_a_reference_are_looked_at_once(digits, monkeypatch):
    first, second = digits[:300], digits[300:700]
    score(first, digits, "digits", keep=True)
    seen, of = [], statistics._Statistics.of

    def seeing(images, *rest, **named):
        seen.append(len(images))
        return of(images, *rest, **named)

    monkeypatch.setattr(statistics._Statistics, "of", seeing)
    assert digits_fid(second, first) == pytest.approx(frechet(second, first), rel=1e-6)
    assert seen == [len(second)]


def test_torn_statistics_are_made_anew(cache, digits):
    expected = digits_fid(digits[:600], digits)
    (file,) = (cache / "statistics").glob("*.pt")
    whole = file.stat().st_size
    file.write_bytes(file.read_bytes()[:100])
    assert digits_fid(digits[:600], digits) == expected
    assert file.stat().st_size == whole


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
    with pytest.raises(ValueError, match=r"metrics: found \['LPIPS'\], expected some of \['FID', 'IS'"):
        score(digits, digits, "digits", metrics=("FID", "LPIPS"))


def test_unknown_features_are_refused(digits):
    with pytest.raises(ValueError, match="features: found 'vgg', expected one of"):
        score(digits, digits, "vgg")


@pytest.mark.usefixtures("yardstick")
def test_too_few_images_are_refused(digits):
    with pytest.raises(ValueError, match="images: found 4, expected at least 5"):
        score(digits[:4], "digits", "digits")


# -- Inception ----------------------------------------------------------------------------------------


def photographs(n, seed):
    return torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(seed)).byte()


def raw_features(file, images):
    """Pooled and mixed_6 features of torch-fidelity's own network, through a hook of this test's."""
    network = FeatureExtractorInceptionV3("own", ["2048"], feature_extractor_weights_path=str(file))
    maps = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.no_grad():
        (pooled,) = network(images)
    nhwc = np.transpose(maps[0].numpy(), (0, 2, 3, 1))  # as TensorFlow has them
    assert nhwc.shape[1:] == (17, 17, 192)
    return pooled.double().numpy(), nhwc[:, :, :, :7].reshape(len(images), -1).astype(np.float64)


def check_against_raw_features(file, images, reference):
    """FID, sFID, precision and recall, each written out here from the raw features."""
    found = score(images, reference, metrics=("FID", "sFID", "precision", "recall"))
    (a, a_spatial), (b, b_spatial) = raw_features(file, images), raw_features(file, reference)
    assert a_spatial.shape[1] == 2023
    assert found["FID"] > 0.01 and found["sFID"] > 0.01  # or the next lines would say nothing
    assert found["FID"] == pytest.approx(frechet_of(a, b), rel=1e-3)
    assert found["sFID"] == pytest.approx(frechet_of(a_spatial, b_spatial), rel=1e-3)

    def inside(x, y):
        """Share of x within the third neighbour's distance of some y."""
        among = np.linalg.norm(y[:, None] - y[None], axis=-1)
        radius = np.sort(among, axis=1)[:, 3]  # the first is the point itself
        return float((np.linalg.norm(x[:, None] - y[None], axis=-1) <= radius).any(axis=1).mean())

    assert found["precision"] == pytest.approx(inside(a, b), abs=1e-6)
    assert found["recall"] == pytest.approx(inside(b, a), abs=1e-6)
    return found


def test_inceptions_scores_equal_those_from_its_raw_features(inception):
    check_against_raw_features(inception, photographs(12, 0), photographs(16, 1) // 2)


def test_one_pass_serves_every_layer(inception):
    extractor = create_feature_extractor(
        "inception-v3-spatial",
        ["spatial", "2048", "logits_unbiased"],
        cuda=False,
        feature_extractor_weights_path=str(inception),
    )
    passes = []
    extractor.Mixed_7c.register_forward_hook(lambda *_: passes.append(1))
    spatial, pooled, logits = extractor(photographs(2, 0))
    assert (spatial.shape, pooled.shape, logits.shape) == ((2, 2023), (2, 2048), (2, 1008))
    assert len(passes) == 1


def test_the_order_of_the_spatial_features_is_height_width_channel(inception):
    extractor = InceptionSpatial("x", ["spatial"], feature_extractor_weights_path=str(inception))
    (spatial,) = extractor(photographs(1, 0))
    assert torch.equal(spatial.view(17, 17, 7)[5, 9], extractor._maps[0, :7, 5, 9])


def test_grey_images_are_shown_to_inception_as_rgb(inception):
    grey, reference = photographs(6, 0)[:, :1], photographs(6, 1)[:, :1]
    as_rgb = score(grey.expand(-1, 3, -1, -1), reference.expand(-1, 3, -1, -1), metrics=("FID",))
    assert score(grey, reference, metrics=("FID",))["FID"] == pytest.approx(as_rgb["FID"], rel=1e-6)


def test_an_inception_without_its_head_gives_no_inception_score(inception):
    images = photographs(6, 0)
    with pytest.raises(ValueError, match=rf"{INCEPTION_WEIGHTS}: its classifier head is all zeros"):
        score(images, images, metrics=("FID", "IS"))
    assert "IS" not in score(images, images)  # and is left out where nobody asks for it


def test_the_inception_score_is_its_formula(inception):
    images = photographs(20, 0)
    pooled, _ = raw_features(inception, images)
    # A head that tells these images apart: chance directions across their mean, logits of deviation 2.
    mean = torch.from_numpy(pooled.mean(0))
    head = torch.randn(1008, 2048, generator=torch.Generator().manual_seed(0)).double()
    head -= torch.outer(head @ mean, mean) / mean.square().sum()
    head *= 2 / (torch.from_numpy(pooled) @ head.T).std()
    state = torch.load(inception, weights_only=True)
    state["fc.weight"] = head.float()
    torch.save(state, inception)
    logits = pooled @ head.numpy().T  # without the bias, as ADM
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    order = np.random.RandomState(2020).permutation(20)  # torch-fidelity's shuffle, then ten splits
    splits = [
        np.exp((np.exp(part) * (part - np.log(np.exp(part).mean(0, keepdims=True)))).sum(1).mean())
        for part in np.split(log_p[order], 10)
    ]
    found = score(images, images, metrics=("IS",))["IS"]
    assert found == pytest.approx(np.mean(splits), rel=1e-4)
    assert found > 1.2  # or it would say nothing


def test_missing_weights_are_explained(cache, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("dkdm_lab.metrics.inception.load_state_dict_from_url", offline)
    with pytest.raises(FileNotFoundError, match=rf"{INCEPTION_WEIGHTS}: found no Inception weights.*put it"):
        score(photographs(6, 0), photographs(6, 1))


def test_weights_of_something_else_are_refused(cache):
    (cache / INCEPTION_WEIGHTS).write_bytes(b"not weights")
    with pytest.raises(ValueError, match=rf"{INCEPTION_WEIGHTS}: these are not Inception's weights"):
        score(photographs(6, 0), photographs(6, 1))


def test_statistics_of_other_weights_are_not_taken_from_the_cache(inception):
    images, reference = photographs(6, 0), photographs(6, 1)
    first = score(images, reference, metrics=("FID",))["FID"]
    state = torch.load(inception, weights_only=True)
    state["Conv2d_1a_3x3.conv.weight"] *= 0.5
    state["Conv2d_1a_3x3.bn.weight"] *= 1.5
    torch.save(state, inception)
    assert score(images, reference, metrics=("FID",))["FID"] != pytest.approx(first, rel=1e-3)


@pytest.mark.skipif(
    not ((REAL / INCEPTION_WEIGHTS).is_file() and (REAL / "cifar10").is_dir()),
    reason="needs Inception's weights and CIFAR-10 in data_cache; neither is part of a clone",
)
def test_torch_fidelitys_own_regression(cache):
    """256 CIFAR-10 train against 256 test images: the figures that torch-fidelity publishes."""
    shutil.copy(REAL / INCEPTION_WEIGHTS, cache)
    (cache / "cifar10").symlink_to(REAL / "cifar10")

    def chosen(split):
        images = load_images("cifar10", split)
        return images[np.random.RandomState(2020).choice(len(images), 256, replace=False)]

    train, test = chosen("train"), chosen("test")
    found = score(train, test, metrics=("FID", "KID"), kid_subset=50)
    assert found["FID"] == pytest.approx(110.2808, abs=1e-4)
    assert found["KID"] == pytest.approx(-0.00068, abs=1e-5)  # float32 products: 3e-6 from machine to machine
    check_against_raw_features(cache / INCEPTION_WEIGHTS, train[:48], test[:48])


# -- the yardstick for digits -------------------------------------------------------------------------


@pytest.mark.usefixtures("yardstick")
def test_the_classifier_knows_the_digits(digits):
    from sklearn.datasets import load_digits

    features, logits = digits_classifier()(digits)
    assert features.shape == (1797, 64)
    assert float((logits.argmax(1) == torch.from_numpy(load_digits().target)).float().mean()) > 0.99


def test_the_classifier_is_trained_once(yardstick, monkeypatch):
    monkeypatch.setattr("dkdm_lab.metrics.digits._train_classifier", None)  # calling it would fail
    assert digits_classifier().training is False


def test_the_classifier_is_always_the_same(cache, monkeypatch):
    """Whatever random numbers were drawn before; a score names it by its hash."""
    hashes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        _train_classifier(cache / "digits-classifier.pt", epochs=1)
        hashes.append(metrics.digits_classifier_hash())
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
