"""What every test stands on: a cache of its own, fixed random numbers, the CPU; the exact toy, a browser."""

import shutil

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from dkdm_lab.data import GaussianMixture
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.metrics import INCEPTION_WEIGHTS, InceptionSpatial, digits_classifier


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty data_cache for each test, so that none reads what the user or another test left.

    Set test by test, not for the session: the chapters may run in the same one, with the real cache.
    """
    folder = tmp_path / "data_cache"
    folder.mkdir()
    monkeypatch.setenv("DKDM_DATA_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def same_numbers_everywhere(monkeypatch):
    """Every test starts from seed 0 and stays on one thread of the CPU, where runs repeat to the last bit.

    Networks so small gain nothing from threads, and on a busy machine these wait for each other.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def trained_classifier(tmp_path_factory):
    """The file of the digits classifier, trained once for all tests: it takes seconds."""
    folder = tmp_path_factory.mktemp("classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DKDM_DATA_CACHE", str(folder))
        digits_classifier()
    return folder / "digits-classifier.pt"


@pytest.fixture
def yardstick(cache, trained_classifier):
    """The digits classifier, laid into this test's cache."""
    shutil.copy(trained_classifier, cache)


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory):
    """Inception's file with weights of chance and no head: right in form, so that each step can be
    followed, without a download."""
    file = tmp_path_factory.mktemp("inception") / INCEPTION_WEIGHTS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: None
        )
        torch.manual_seed(0)
        network = InceptionSpatial("x", ["2048"])
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):  # so that activations neither vanish nor grow on their way
            torch.nn.init.kaiming_normal_(module.weight)
    state = network.state_dict()
    state["fc.weight"].zero_()
    torch.save(state, file)
    return file


@pytest.fixture
def inception(cache, random_weights):
    """The random Inception, laid into this test's cache; returns its file."""
    shutil.copy(random_weights, cache)
    return cache / INCEPTION_WEIGHTS


@pytest.fixture
def diffusion():
    """The toy preset's process: cosine, T = 100, no clipping."""
    return GaussianDiffusion.cosine(100, clip=False)


@pytest.fixture
def ring():
    return GaussianMixture.ring()


@pytest.fixture
def exact_teacher(ring, diffusion):
    """A teacher without error, as 2-D points have one."""
    return ring.denoiser(diffusion)


@pytest.fixture(scope="session")
def browser():
    """A Chromium that is already on the machine; without one, what needs it is skipped."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()
