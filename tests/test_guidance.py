"""Guided synthesis: each loss against its formula, gradients on their way back, and what guidance lowers."""

import itertools

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from test_pipelines import stable_diffusion
from torch import nn
from torch.testing import assert_close

from dkdm_lab.beyond import loss_guided_synthesis
from dkdm_lab.beyond.classifier import Classifier, accuracy, tempered_kl, train_classifier
from dkdm_lab.beyond.loss_guided_synthesis import ClassifierLosses, VAELosses, batch_norm_loss, synthesise
from dkdm_lab.beyond.vae import LVAE, negative_elbo
from dkdm_lab.data import load_images, load_labels, to_model
from dkdm_lab.metrics import DigitsClassifier
from dkdm_lab.networks import Guided
from dkdm_lab.sources import Conditions
from dkdm_lab.teachers.pipelines import Pipeline

T = 20


def with_statistics(network):
    """Batch norms with statistics of their own, as training leaves them."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture
def guide(tmp_path):
    """A pixel model of 8x8 colour images with weights of chance, read from its folder."""
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    DDPMPipeline(network, DDPMScheduler(num_train_timesteps=T, clip_sample=False)).save_pretrained(tmp_path)
    return Pipeline.from_pretrained(tmp_path)


@pytest.fixture
def latent_guide(tmp_path):
    """A whole StableDiffusionPipeline, tiny: 4x8x8 latents, 3x16x16 images."""
    stable_diffusion(tmp_path / "pipeline")
    return Pipeline.from_pretrained(tmp_path / "pipeline")


@pytest.fixture
def vae():
    return with_statistics(LVAE(sample_size=8, width=4, levels=3, latent_channels=2))


@pytest.fixture
def classifier():
    return with_statistics(Classifier((3, 8, 8), classes=4, width=4))


def weighted(losses, found, at=-1):
    return sum(losses.weights[name] * values[at] for name, values in found.losses.items())


# -- the losses ---------------------------------------------------------------------------------------


def images(n=6):
    return (torch.rand(n, 3, 8, 8) * 2 - 1).requires_grad_()


def test_a_vaes_losses_are_its_reconstruction_and_its_kls(vae):
    x = images()
    found = VAELosses(vae, batch_norm=1.0)(x)
    noise = [torch.zeros_like(level) for level in vae.noise(6)]
    unit = (x + 1) / 2
    assert_close(found["reconstruction"], (vae(noise, unit).mean - unit).square().sum(dim=(1, 2, 3)))
    assert_close(found["kl"], negative_elbo(vae, unit, noise).kl.sum(0))
    assert found["batch-norm"].shape == (6,)


def test_of_one_level_the_kl_is_that_to_the_standard_normal():
    plain = with_statistics(LVAE(sample_size=8, width=4, levels=1, latent_channels=2))
    x = images()
    (q,) = plain([torch.zeros(6, 2, 4, 4)], (x + 1) / 2).posteriors
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(q.mean, (0.5 * q.log_variance).exp()), normal(0.0, 1.0))
    assert_close(VAELosses(plain)(x)["kl"], kl.sum(dim=(1, 2, 3)))


def test_l_bn_compares_the_batch_with_what_the_network_remembers(classifier):
    x = images()
    with batch_norm_loss(classifier) as found:
        classifier(x)
    expected, h = [], x
    for layer in classifier.body:
        if isinstance(layer, nn.BatchNorm2d):
            values = h.transpose(0, 1).flatten(1)  # by channel
            variance = (values - values.mean(1, keepdim=True)).square().mean(1)
            mean_part = (values.mean(1) - layer.running_mean).square().sum().sqrt()
            expected.append(mean_part + (variance - layer.running_var).square().sum().sqrt())
        h = layer(h)
    assert_close(torch.stack(found), torch.stack(expected))
    with torch.no_grad():
        classifier(x)
    assert len(found) == 3  # the hooks are gone


def test_l_bn_of_a_vae_is_its_encoders(vae):
    x, noise = (images() + 1) / 2, vae.noise(6)
    with batch_norm_loss(vae) as everywhere, batch_norm_loss(vae.encoder) as in_encoder:
        vae(noise, x)
    assert (len(everywhere), len(in_encoder)) == (24, 12)
    assert_close(VAELosses(vae, batch_norm=1.0)(2 * x - 1)["batch-norm"][0], sum(in_encoder))


def test_a_classifiers_losses_are_diffdfkds(classifier):
    # Linear, so that by chance they agree on some images.
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)) for _ in range(2))
    x, labels = images(40), torch.arange(40) % 4
    found = ClassifierLosses(teacher, student, batch_norm=0.0)(x, labels)
    theirs, ours = teacher(x), student(x)
    log_p = theirs.log_softmax(1)
    assert_close(found["classification"], -log_p[torch.arange(40), labels])
    kl = (log_p.exp() * (log_p - ours.log_softmax(1))).sum(1)
    agree = theirs.argmax(1) == ours.argmax(1)
    assert 0 < int(agree.sum()) < 40
    assert_close(found["adversarial"], torch.where(agree, -kl, 0.0))
    assert found.keys() == {"classification", "adversarial"}
    assert ClassifierLosses(classifier, student).weights == {
        "batch-norm": 0.1, "classification": 1.0, "adversarial": 1.0,
    }  # fmt: skip
    assert ClassifierLosses(classifier)(x, labels).keys() == {"batch-norm", "classification"}


# -- guidance -----------------------------------------------------------------------------------------

TERMS = ("reconstruction", "kl", "batch_norm")
# Steps at which guidance is felt and does not overshoot; L_bn is small, and asks for more.
STEP = {"reconstruction": 0.02, "kl": 0.02, "batch_norm": 0.2, "classification": 1.0, "adversarial": 5.0}


def compared(guide, losses, n=8, **options):
    """The weighted loss of the finished images, unguided and guided, from one seed."""
    step = options.pop("step_size")
    runs = [synthesise(guide, losses, n, steps=5, step_size=s, seed=3, **options) for s in (0.0, step)]
    return [weighted(losses, run) for run in runs]


@pytest.mark.parametrize("terms", [*[(term,) for term in TERMS], TERMS], ids="+".join)
def test_guidance_lowers_what_a_vae_asks(terms, guide, vae):
    losses = VAELosses(vae, **dict.fromkeys(TERMS, 0.0) | dict.fromkeys(terms, 1.0))
    unguided, guided = compared(guide, losses, step_size=min(STEP[term] for term in terms))
    assert guided < unguided


CLASSIFIER_TERMS = ("batch_norm", "classification", "adversarial")


@pytest.mark.parametrize("terms", [*[(term,) for term in CLASSIFIER_TERMS], CLASSIFIER_TERMS], ids="+".join)
def test_guidance_lowers_what_a_classifier_asks(terms, guide, classifier):
    student = with_statistics(Classifier((3, 8, 8), classes=4, width=2))
    weights = dict.fromkeys(CLASSIFIER_TERMS, 0.0) | dict.fromkeys(terms, 1.0)
    losses = ClassifierLosses(classifier, student, **weights)
    unguided, guided = compared(
        guide, losses, labels=torch.arange(8) % 4, step_size=min(STEP[term] for term in terms)
    )
    assert guided < unguided


def test_a_stable_diffusion_pipeline_guides_through_decoder_and_unet(latent_guide, monkeypatch):
    vae = with_statistics(LVAE(sample_size=16, width=4, levels=2, latent_channels=2))
    losses = VAELosses(vae)
    seen, real = [], loss_guided_synthesis._gradient

    def note(terms, weights, z):
        gradient = real(terms, weights, z)
        seen.append((tuple(z.shape), gradient))
        return gradient

    monkeypatch.setattr(loss_guided_synthesis, "_gradient", note)
    conditions = latent_guide.prompts(["a cat", "a red dog"])
    unguided, guided = compared(latent_guide, losses, n=4, conditions=conditions, step_size=0.02)
    assert guided < unguided
    assert [shape for shape, _ in seen] == [(4, 4, 8, 8)] * 5  # at every step
    assert all(bool((gradient.flatten(1).abs().sum(1) > 0).all()) for _, gradient in seen)


@pytest.mark.parametrize("part", ["unet", "decoder"])
def test_the_gradient_is_that_of_the_whole_way(part, latent_guide, monkeypatch):
    """Of z_0 to the losses alone it would be another: each of the two parts takes its share."""
    vae = with_statistics(LVAE(sample_size=16, width=4, levels=2, latent_channels=2)).double()
    conditions, losses = latent_guide.prompts(["a cat"]), VAELosses(vae)
    latent_guide.denoiser.double(), latent_guide.vae.double()
    network = Guided(latent_guide.denoiser, 3.0, conditions.null.double())
    diffusion, t = latent_guide.diffusion, torch.tensor([12, 12])
    condition = conditions[torch.zeros(2, dtype=torch.int64)].double()
    z = torch.randn(2, 4, 8, 8, dtype=torch.float64)

    def loss(z, cut=False):
        eps, _ = network(z, t, condition)
        z0 = diffusion.predict_x0(z, t, eps.detach() if cut and part == "unet" else eps, diffusion.clip)
        image = loss_guided_synthesis._decoded(latent_guide, z0.detach() if cut and part == "decoder" else z0)
        return sum(value.sum() for value in losses(image).values()) + 0 * z.sum()

    z.requires_grad_()
    (whole,), (cut,) = (torch.autograd.grad(loss(z, c), z) for c in (False, True))
    with torch.no_grad():  # along a direction, by differences
        direction = torch.randn_like(z)
        slope = (loss(z + 1e-5 * direction) - loss(z - 1e-5 * direction)) / 2e-5
    assert float((whole * direction).sum()) == pytest.approx(float(slope), rel=1e-6)
    assert float((cut * direction).sum()) != pytest.approx(float(slope), rel=1e-3)


def test_without_a_step_the_images_are_ddims(guide, vae):
    found = synthesise(guide, VAELosses(vae), 4, steps=5, step_size=0.0, seed=7)
    expected = guide.diffusion.sample(guide.denoiser, 4, 5, method="ddim", seed=7)
    assert_close(to_model(found.images), expected.clamp(-1, 1), atol=2 / 255, rtol=0)
    assert found.t == [16, 12, 8, 4, 0, -1]


def test_losses_are_means_over_all_images_whatever_the_batch(guide, vae):
    losses = VAELosses(vae)
    together = synthesise(guide, losses, 6, steps=4, step_size=0.02, seed=7)
    apart = synthesise(guide, losses, 6, steps=4, step_size=0.02, seed=7, batch_size=2)
    assert together.losses.keys() == {"reconstruction", "kl"}
    assert all(len(values) == len(together.t) == 5 for values in together.losses.values())
    for name, values in together.losses.items():
        assert_close(values, apart.losses[name], rtol=1e-4, atol=1e-4)
    assert (together.images.int() - apart.images.int()).abs().max() <= 1
    x = to_model(together.images)
    assert_close(losses(x)["kl"].mean().item(), together.losses["kl"][-1], rtol=2e-2, atol=0)


def test_a_label_is_what_its_image_is_conditioned_on_and_shows(guide, classifier):
    asked = []

    class Spy:
        shape, weights = classifier.shape, {}

        def __call__(self, x, labels):
            asked.append(labels)
            return {}

    labels = torch.tensor([3, 1, 2, 0, 3])
    synthesise(guide, Spy(), 5, steps=2, step_size=0.0, labels=labels, batch_size=3)
    assert torch.equal(asked[0], labels[:3]) and torch.equal(asked[-1], labels[3:])


@pytest.mark.parametrize("shift", [None, 0.3])
def test_latents_are_decoded_as_the_pipeline_decodes_them(shift, latent_guide):
    latent_guide.vae.register_to_config(shift_factor=shift)
    z = torch.randn(2, 4, 8, 8)
    image = loss_guided_synthesis._decoded(latent_guide, z.requires_grad_())
    assert_close(image.detach(), latent_guide.decode(z.detach()))
    assert image.requires_grad


def test_conditions_are_taken_in_turn_and_guided(latent_guide, monkeypatch):
    asked, real = [], Guided.__call__

    def note(self, x_t, t, condition):
        asked.append((self.scale, condition))
        return real(self, x_t, t, condition)

    monkeypatch.setattr(Guided, "__call__", note)
    conditions = latent_guide.prompts(["a", "b"])
    losses = VAELosses(LVAE(sample_size=16, width=4, levels=2, latent_channels=2))
    synthesise(latent_guide, losses, 3, steps=2, step_size=0.0, conditions=conditions, guidance=4.0)
    assert asked[0][0] == 4.0
    assert torch.equal(asked[0][1], conditions.values[[0, 1, 0]])
    assert isinstance(conditions, Conditions)


def test_cutmix_pastes_one_rectangle_of_another_sample():
    z = torch.arange(5.0)[:, None, None, None].expand(5, 2, 6, 6)
    shares = set()
    for seed in range(20):
        mixed = loss_guided_synthesis._cut_and_mixed(z, torch.Generator().manual_seed(seed))
        for own, sample in enumerate(mixed):
            foreign = sample[0] != own
            assert torch.equal(sample[0], sample[1])
            assert len(sample[0][foreign].unique()) <= 1
            rows, columns = foreign.any(1), foreign.any(0)
            assert torch.equal(foreign, rows[:, None] & columns)  # a rectangle
            shares.add(int(foreign.sum()))
    assert len(shares) > 5


def test_cutmix_comes_after_each_fifth_but_the_last(guide, vae, monkeypatch):
    counts = itertools.count()
    monkeypatch.setattr(loss_guided_synthesis, "_cut_and_mixed", lambda z, _: (next(counts), z)[1])
    synthesise(guide, VAELosses(vae), 2, steps=10, step_size=0.0, cutmix=True)
    assert next(counts) == loss_guided_synthesis.CUTS == 4


def test_images_can_be_brought_to_the_losses_size(guide):
    larger = with_statistics(LVAE(sample_size=16, width=4, levels=2, latent_channels=2))
    found = synthesise(guide, VAELosses(larger), 2, steps=2, step_size=0.01, resize=True)
    assert found.images.shape == (2, 3, 16, 16)


# -- what is refused ----------------------------------------------------------------------------------


def test_a_vae_of_other_images_is_refused(guide):
    larger = LVAE(sample_size=16, width=4, levels=2)
    with pytest.raises(ValueError, match=r"images of \(3, 8, 8\), but the losses take \(3, 16, 16\); resize"):
        synthesise(guide, VAELosses(larger), 2, steps=2)
    grey = LVAE(sample_size=8, in_channels=1, width=4, levels=2)
    with pytest.raises(ValueError, match=r"images of \(3, 8, 8\), but the losses take \(1, 8, 8\)$"):
        synthesise(guide, VAELosses(grey), 2, steps=2, resize=True)


def test_l_bn_needs_batch_norm():
    with pytest.raises(ValueError, match="L_bn: found no batch norm with running statistics in DigitsClass"):
        ClassifierLosses(DigitsClassifier())
    assert ClassifierLosses(DigitsClassifier(), batch_norm=0.0).weights["batch-norm"] == 0.0


def test_labels_must_fit(guide, classifier):
    losses = ClassifierLosses(classifier)
    with pytest.raises(ValueError, match="labels: found None, expected the class that each image"):
        synthesise(guide, losses, 2, steps=2)
    with pytest.raises(ValueError, match="labels: found 3, expected one for each of 2 images"):
        synthesise(guide, losses, 2, steps=2, labels=torch.zeros(3, dtype=torch.int64))


# -- the classifier -----------------------------------------------------------------------------------


def test_the_tempered_kl_is_that_of_its_formula():
    ours, theirs = torch.randn(2, 5, 4, dtype=torch.float64)
    p, q = (torch.softmax(logits / 30, 1) for logits in (theirs, ours))
    assert_close(tempered_kl(ours, theirs), 900 * (p * (p / q).log()).sum(1))


def test_a_classifier_learns_and_teaches_the_digits():
    """Of held-out digits after 60 iterations each, over 4 seeds: 0.91 to 0.94, and 0.85 to 0.90."""
    digits, labels = load_images("digits"), load_labels("digits")
    teacher, student = (Classifier((1, 8, 8), classes=10, width=8) for _ in range(2))
    train_classifier(teacher, digits[:1500], 60, labels=labels[:1500], lr=1e-2, progress=False)
    train_classifier(student, digits[:1500], 60, teacher=teacher, lr=1e-2, progress=False)
    found = [accuracy(network, digits[1500:], labels[1500:]) for network in (teacher, student)]
    assert min(found) > 0.7


def test_a_classifier_learns_from_labels_or_a_teacher():
    network = Classifier((1, 8, 8), classes=2)
    x = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="labels, teacher: found neither, expected one of them"):
        train_classifier(network, x, 1)
    with pytest.raises(ValueError, match="labels, teacher: found both, expected one of them"):
        train_classifier(network, x, 1, labels=torch.zeros(4, dtype=torch.int64), teacher=network)
