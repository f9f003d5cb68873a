"""Runs in latent space and with classes, at tiny size: what is encoded and decoded, who has which label."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel, VQModel
from PIL import Image
from torch.testing import assert_close

from dkdm_lab import networks
from dkdm_lab.beyond import autoencoder
from dkdm_lab.beyond.autoencoder import train_autoencoder
from dkdm_lab.data import load_images, load_labels, to_model, to_uint8
from dkdm_lab.experiments import presets, runs
from dkdm_lab.experiments.runs import Run
from dkdm_lab.metrics import class_accuracy, score
from dkdm_lab.pools import Pool
from dkdm_lab.system.paths import cache_dir
from dkdm_lab.teachers.pipelines import decode, encode

pytestmark = pytest.mark.usefixtures("yardstick")

TINY = {
    "batch_size": 8, "iterations": 4, "curve": 1, "steps": 5, "samples": 20, "rho": 0.02,
    "synthetic_images": 12, "synthetic_steps": 5,
}  # fmt: skip
STUDENTS = ("data-based", "data-free", "data-limited", "iterative", "shuffled", "dynamic")


@pytest.fixture(scope="module")
def trained():
    """The digits' autoencoder after a moment of training."""
    return train_autoencoder("digits-vq", load_images("digits"), iterations=40, progress=False)


def latent(method="dynamic", seed=0, **changes):
    return Run(presets.get("digits-latent", **{**TINY, "teacher_iterations": 4, **changes}), method, seed)


@pytest.fixture
def quick(trained, monkeypatch):
    """Autoencoders that are there at once; returns for which seeds they were asked."""
    asked = []

    def train(name, images, seed, progress, checkpoint):
        asked.append((name, len(images), seed))
        return trained

    monkeypatch.setattr(runs, "train_autoencoder", train)
    return asked


# -- the autoencoder ----------------------------------------------------------------------------------


def test_an_autoencoder_learns_the_digits(trained):
    """After 40 of 600 iterations the squared error is 0.4 of the variance; without training above it."""
    images = to_model(load_images("digits"))
    with torch.no_grad():
        error = (trained(images).sample - images).square().mean()
    assert float(error) < 0.6 * float(images.var())


def test_its_latents_have_unit_variance(trained):
    assert_close(float(encode(trained, load_images("digits")).std()), 1.0, atol=1e-3, rtol=0)


def test_training_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    train_autoencoder("digits-vq", load_images("digits", n=200), iterations=2, progress=False)
    assert torch.equal(state, torch.get_rng_state())


def test_an_unknown_autoencoder_is_refused():
    with pytest.raises(ValueError, match="autoencoder: found 'vq-f8', expected one of digits-vq"):
        train_autoencoder("vq-f8", load_images("digits"))


def test_it_is_trained_once_for_all_runs_of_a_seed(quick):
    for method in ("teacher", "data-based", "dynamic"):
        latent(method).result(progress=False)
    latent("teacher", seed=1).result(progress=False)
    assert quick == [("digits-vq", 1797, 0), ("digits-vq", 1797, 1)]
    assert (latent().folder.parent / "digits-vq-seed0" / "config.json").is_file()


# -- latents ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", STUDENTS)
def test_every_method_runs_in_latent_space(quick, method):
    run = latent(method)
    result = run.result(progress=False)
    assert run.model().shape == (3, 4, 4)
    assert result["metrics"].keys() == {"digits-FID", "digits-precision", "digits-recall", "N", "N_reference"}
    assert result["settings"]["autoencoder"] == "digits-vq"
    assert result["loss"]["vlb"] == [0.0] * len(result["loss"]["vlb"])  # L_simple alone


def test_a_pool_never_leaves_the_latents(quick, monkeypatch):
    """Only scores decode, and encode the real images on which student and teacher are compared."""
    run = latent("dynamic")
    run.teacher_run().result(progress=False)
    calls = []
    for name in ("encode", "decode"):
        original = getattr(VQModel, name)
        monkeypatch.setattr(
            VQModel, name, lambda self, x, name=name, of=original: calls.append(name) or of(self, x)
        )
    source = run.source(progress=False)
    assert isinstance(source, Pool) and source.shape == (3, 4, 4)
    next(source)
    assert calls == []
    run.result(progress=False)
    assert set(calls) == {"decode", "encode"}
    size = len(load_images("digits"))
    assert calls.count("encode") == -(-size // 32)  # once, for the error against the teacher


def test_real_training_sees_the_latents_of_the_real_images(quick):
    run = latent("data-based")
    expected = encode(run.vae(), load_images("digits"))
    assert_close(run.source().data, expected)
    assert next(run.source()).observed is False  # no 8-bit values, no likelihood of them


def test_the_synthetic_set_is_kept_as_latents(quick):
    run = latent("synthetic")
    x = run.images(progress=False)
    assert (x.shape, x.dtype) == ((12, 3, 4, 4), torch.float32)
    expected = score(
        to_uint8(decode(run.vae(), x)), load_images("digits"), "digits", ("FID", "precision", "recall")
    )
    assert run.result()["metrics"] == pytest.approx(expected)
    assert torch.equal(latent("data-free").source(progress=False).data, x)


def test_images_are_decoded_to_be_compared_with_the_teachers(quick):
    found = latent("dynamic").against_teacher(progress=False)
    assert found["N"] == 20 and found["N_reference"] == 12


# -- a pretrained pipeline ----------------------------------------------------------------------------


@pytest.fixture
def faces(monkeypatch, inception):
    """A latent pipeline as the paper's, with T and schedule of Table 7, but tiny; and a folder of images."""
    torch.manual_seed(0)
    folder = cache_dir() / "pipeline"
    sizes = {"sample_size": 4, "in_channels": 3, "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "add_attention": False}
    UNet2DModel(**sizes, **blocks, out_channels=3, block_out_channels=(16,)).save_pretrained(folder / "unet")
    VQModel(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
    ).save_pretrained(folder / "vqvae")
    DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False
    ).save_pretrained(folder / "scheduler")
    images = cache_dir() / "faces" / "train"
    images.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(images / f"{number}.png")
    monkeypatch.setitem(
        networks.NETWORKS,
        "tiny",
        lambda: UNet2DModel(**sizes, **blocks, out_channels=3, block_out_channels=(8,)),
    )
    return {"data": "faces", "pipeline": str(folder), "student": "tiny"}


def celebahq(method, changes):
    changes = {**TINY, "samples": 8, "rho": 0.002, "mixed_precision": "no", **changes}
    return Run(presets.get("celebahq256", **changes), method)


@pytest.mark.parametrize("method", ["teacher", "data-based", "dynamic"])
def test_the_papers_latent_preset_runs_at_tiny_size(faces, method):
    run = celebahq(method, faces)
    result = run.result(progress=False)
    assert result["metrics"].keys() >= {"FID", "sFID", "precision", "recall", "N"}
    assert np.isfinite(result["metrics"]["FID"])
    assert run.model().shape == (3, 4, 4)
    if method == "teacher":  # it is read, not trained
        assert not (run.folder / "model").exists()


def test_a_pipeline_of_another_schedule_is_refused(faces):
    file = cache_dir() / "pipeline" / "scheduler" / "scheduler_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"beta_end": 0.012}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"pipeline: found GaussianDiffusion\(scaled_linear, T=1000"):
        celebahq("dynamic", faces).result(progress=False)


def test_a_student_of_another_latent_size_is_refused(faces):
    with pytest.raises(ValueError, match=r"shapes: the source yields \(3, 4, 4\), but the student takes"):
        celebahq("dynamic", faces | {"student": "digits-student"}).result(progress=False)


# -- classes ------------------------------------------------------------------------------------------


def with_classes(method, **changes):
    return Run(presets.get("digits-classes", **{**TINY, "teacher_iterations": 4, **changes}), method)


@pytest.mark.parametrize("method", ["teacher", "data-based", "data-free", "dynamic"])
def test_every_method_runs_with_classes(method):
    metrics = with_classes(method).result(progress=False)["metrics"]
    plain = {"digits-FID", "digits-precision", "digits-recall", "class-accuracy"}
    assert metrics.keys() == plain | {f"guided-{name}" for name in plain} | {"N", "N_reference"}


def test_real_training_gets_the_real_labels():
    source = with_classes("teacher").source()
    assert torch.equal(source.labels, load_labels("digits"))
    assert (len(source.conditions), int(source.conditions.null)) == (10, 10)


def test_a_synthetic_image_keeps_the_label_it_was_drawn_for(monkeypatch):
    run = with_classes("synthetic")
    asked = []
    original = runs.Denoiser.forward
    monkeypatch.setattr(
        runs.Denoiser, "forward", lambda self, x, t, c=None: asked.append(c) or original(self, x, t, c)
    )
    run.images(progress=False)
    assert asked[-1].tolist() == [*range(10), 0, 1]
    assert with_classes("data-free").source(progress=False).labels.tolist() == [*range(10), 0, 1]


def test_guidance_while_the_pool_moves_is_a_setting_of_pools_only():
    assert with_classes("dynamic", guidance=2.0).name.endswith("guidance=2.0")
    assert with_classes("dynamic", guidance=2.0).source(progress=False).guided.guidance == 2.0
    assert "guidance=2.0" not in with_classes("data-free", guidance=2.0).name
    assert "guidance" not in Run(presets.get("digits"), "dynamic").settings


def test_the_classifier_counts_who_shows_what_was_asked():
    images, labels = load_images("digits"), load_labels("digits")
    assert class_accuracy(images, labels) > 0.99
    assert class_accuracy(images, (labels + 1) % 10) < 0.01


def test_data_limited_training_has_no_classes_here():
    with pytest.raises(ValueError, match="data-limited: not for the class-conditional preset"):
        with_classes("data-limited").result(progress=False)


def test_labels_of_other_sets_are_refused():
    with pytest.raises(ValueError, match="labels: found 'celeba64', expected digits, cifar10 or fashion"):
        load_labels("celeba64")


def test_the_books_autoencoders_are_small():
    for make in autoencoder.AUTOENCODERS.values():
        assert sum(p.numel() for p in make().parameters()) < 200_000
