"""The ladder VAE: its size, its merge, KLs and losses in float64 against formulas written out here."""

import math

import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.testing import assert_close

from dkdm_lab.beyond import vae as module
from dkdm_lab.beyond.vae import LVAE, distillation_loss, merge, negative_elbo, sample_vae, train_vae
from dkdm_lab.data import load_images
from dkdm_lab.diffusion import Gaussian
from dkdm_lab.networks import read_model

TINY = {"in_channels": 1, "sample_size": 8, "width": 4, "levels": 3, "latent_channels": 2}


def tiny(seed=0, **changes):
    """A VAE in float64 whose batch norms have statistics of their own, in eval mode."""
    torch.manual_seed(seed)
    vae = LVAE(**TINY | changes).double()
    for layer in vae.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return vae.eval()


def batch(vae, n=5):
    return torch.rand(n, *vae.shape, dtype=torch.float64), vae.noise(n)


# -- the network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, parameters", [(128, 5_386_496), (32, 366_656), (8, 30_416)])
def test_it_has_the_papers_parameters_to_the_last(width, parameters):
    with torch.device("meta"):
        assert LVAE(width=width).parameter_count == parameters


def test_latents_halve_from_level_to_level():
    with torch.device("meta"):
        assert LVAE(width=8).latent_shapes == [(16, side, side) for side in (1, 2, 4, 8, 16)]
    assert tiny().latent_shapes == [(2, 1, 1), (2, 2, 2), (2, 4, 4)]


def test_batch_norm_is_all_that_normalises():
    norms = [type(m) for m in tiny().modules() if "Norm" in type(m).__name__]
    assert set(norms) == {nn.BatchNorm2d}
    assert len(norms) == 2 * 2 * 3 * 2  # two a block, two blocks a level, three levels, up and down


def test_each_pixel_can_be_reached_from_each_latent():
    """No level is left out of the image, and the output's second half is read by nothing."""
    vae = tiny()
    noise = [level.requires_grad_() for level in vae.noise(3)]
    mean = vae(noise).mean
    assert mean.shape == (3, 1, 8, 8)
    for gradient in torch.autograd.grad(mean.sum(), noise):
        assert bool((gradient != 0).all())


def test_it_is_written_and_read_as_diffusers_models_are(tmp_path):
    vae = tiny().float()
    assert isinstance(vae, ModelMixin)
    vae.save_pretrained(tmp_path)
    again = read_model(tmp_path, {"LVAE": LVAE}).eval()
    noise = vae.noise(2)
    assert torch.equal(again(noise).mean, vae(noise).mean)


# -- the ladder ---------------------------------------------------------------------------------------


def test_the_merge_is_the_product_of_two_gaussians():
    a, b = (Gaussian(*torch.randn(2, 200, dtype=torch.float64)) for _ in range(2))
    found = merge(a, b)
    variances = [g.log_variance.exp() for g in (a, b)]
    assert_close(found.log_variance.exp(), 1 / (1 / variances[0] + 1 / variances[1]))
    expected = (a.mean * variances[1] + b.mean * variances[0]) / (variances[0] + variances[1])
    assert_close(found.mean, expected)
    # Densities: the product of the two, up to a constant that does not depend on z.
    z = torch.randn(50, 1, dtype=torch.float64)

    def log_density(g):
        return -0.5 * ((z - g.mean) ** 2 / g.log_variance.exp() + g.log_variance)

    rest = log_density(a) + log_density(b) - log_density(found)
    assert float(rest.std(0).max()) < 1e-12 * float(rest.abs().max())


def walk(vae, noise, x=None):
    """The ladder level by level, by numbers of its layers; standard deviations instead of log-variances."""

    def split(out):
        mean, raw = out[:, : out.shape[1] // 2], out[:, out.shape[1] // 2 :]
        return mean, torch.log1p(raw.exp()) / math.log(2) + 1e-6

    seen, h = [], x
    for up, head in zip(vae.encoder, vae.seen, strict=True):
        h = None if x is None else up(h)
        seen.insert(0, None if x is None else split(head(h)))
    priors, posteriors = [(torch.zeros_like(noise[0]), torch.ones_like(noise[0]))], []
    for level, n in enumerate(noise):
        mean, std = priors[level]
        if x is not None:
            u_mean, u_std = seen[level]
            if level:
                precision = 1 / u_std**2 + 1 / std**2
                mean, std = (u_mean / u_std**2 + mean / std**2) / precision, precision**-0.5
            else:
                mean, std = u_mean, u_std
            posteriors.append((mean, std))
        out = vae.decoder[level](mean + std * n)
        if level + 1 < len(noise):
            priors.append(split(out))
    return out[:, : vae.shape[0]], priors, posteriors


@pytest.mark.parametrize("with_image", [False, True])
def test_a_pass_goes_down_the_ladder(with_image):
    vae = tiny()
    x, noise = batch(vae)
    x = x if with_image else None
    with torch.no_grad():
        found, (mean, priors, posteriors) = vae(noise, x), walk(vae, noise, x)
    assert_close(found.mean, mean)
    for gaussians, expected in ((found.priors, priors), (found.posteriors, posteriors)):
        assert len(gaussians) == len(expected)
        for gaussian, (mu, std) in zip(gaussians, expected, strict=True):
            assert_close(gaussian.mean, mu)
            assert_close(torch.exp(0.5 * gaussian.log_variance), std)


# -- losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels, beta", [(3, 1.0), (3, 0.3), (1, 1.0)])
def test_the_elbo_is_that_of_torch_distributions(levels, beta):
    vae = tiny(levels=levels)
    x, noise = batch(vae)
    with torch.no_grad():
        found, (mean, priors, posteriors) = negative_elbo(vae, x, noise, beta), walk(vae, noise, x)
    normal = torch.distributions.Normal
    kls = [
        torch.distributions.kl_divergence(normal(*q), normal(*p)).sum(dim=(1, 2, 3))
        for q, p in zip(posteriors, priors, strict=True)
    ]
    likelihood = normal(mean, math.sqrt(0.05)).log_prob(x).sum(dim=(1, 2, 3))
    assert_close(found.reconstruction, -likelihood)
    assert_close(found.kl, torch.stack(kls))
    assert_close(found.total, -likelihood + beta * sum(kls))


@pytest.mark.parametrize("with_image", [False, True])
def test_the_distillation_loss_is_that_of_its_formula(with_image):
    teacher, student = tiny(0), tiny(1, width=3)
    x, noise = batch(teacher)
    x = x if with_image else None
    with torch.no_grad():
        found = distillation_loss(teacher, student, noise, x)
        theirs, ours = walk(teacher, noise, x), walk(student, noise, x)
    expected = ((theirs[0] - ours[0]) ** 2).sum(dim=(1, 2, 3)) / (2 * 0.05)
    for kind in (1, 2):  # priors, posteriors
        for (mu_t, std_t), (mu_s, std_s) in zip(theirs[kind], ours[kind], strict=True):
            expected += 0.1 * ((mu_t - mu_s) ** 2 + (std_t - std_s) ** 2).mean(dim=(1, 2, 3))
    assert_close(found, expected)


def test_a_copy_of_the_teacher_has_no_loss():
    teacher = tiny()
    x, noise = batch(teacher)
    assert not distillation_loss(teacher, tiny(), noise, x).any()
    assert distillation_loss(teacher, tiny(1), noise, x).all()


def test_only_the_student_is_taught():
    teacher, student = tiny(0), tiny(1)
    x, noise = batch(teacher)
    distillation_loss(teacher, student, noise, x).mean().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_without_images_the_encoder_is_not_taught():
    """Chen et al.'s student is a generator."""
    teacher, student = tiny(0), tiny(1)
    distillation_loss(teacher, student, teacher.noise(4)).mean().backward()
    taught = {name.split(".")[0] for name, p in student.named_parameters() if p.grad is not None}
    assert taught == {"decoder"}


# -- training -----------------------------------------------------------------------------------------


def test_a_vae_learns_the_digits():
    """The negative ELBO, in nats: 4 seeds end at -7.1 to 1.5; the mean image with no latent has 9.8."""
    images = load_images("digits")
    vae = LVAE(**TINY | {"width": 8, "latent_channels": 4})
    train_vae(vae, images, 120, batch_size=32, lr=1e-2, progress=False)
    assert not vae.training
    x = images / 255
    with torch.no_grad():
        assert float(negative_elbo(vae, x, vae.noise(len(x))).total.mean()) < 5


@pytest.mark.parametrize("with_images", [False, True])
def test_a_student_comes_near_its_teacher(with_images):
    """What is left of the loss after 40 iterations, over 4 seeds: 0.11 to 0.24 from noise, 0.09 to 0.31 on
    images."""
    images = load_images("digits") if with_images else None
    teacher, student = tiny(0).float(), tiny(7, width=8).float()
    noise, x = teacher.noise(64), None if images is None else images[:64] / 255
    with torch.no_grad():
        before = distillation_loss(teacher, student, noise, x).mean()
        with torch.enable_grad():
            train_vae(student, images, 40, teacher=teacher, batch_size=32, lr=5e-3, progress=False)
        after = distillation_loss(teacher, student, noise, x).mean()
    assert float(after) < 0.6 * float(before)


def test_the_teacher_stays_what_it_is():
    teacher, student = tiny(0).float(), tiny(1).float()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.train()  # as theirs was: its batch norm would follow each batch
    train_vae(student, load_images("digits"), 2, teacher=teacher, batch_size=8, progress=False)
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_beta_is_warmed_up(monkeypatch):
    asked, real = [], module.negative_elbo

    def note(*arguments, beta):
        asked.append(beta)
        return real(*arguments, beta=beta)

    monkeypatch.setattr(module, "negative_elbo", note)
    train_vae(LVAE(**TINY), load_images("digits"), 8, batch_size=4, progress=False)
    assert asked == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "blind, sees", [(0.0, [1, 1, 1, 1, 1, 1]), (0.5, [0, 1, 0, 1, 0, 1]), (0.75, [0, 0, 0, 1, 0, 0])]
)
def test_a_blind_share_sees_no_images(blind, sees, monkeypatch):
    asked, real = [], module.distillation_loss

    def note(teacher, student, noise, x=None):
        asked.append(int(x is not None))
        return real(teacher, student, noise, x)

    monkeypatch.setattr(module, "distillation_loss", note)
    teacher, student = tiny(0).float(), tiny(1).float()
    options = {"teacher": teacher, "batch_size": 4, "blind": blind, "progress": False}
    train_vae(student, load_images("digits"), 6, **options)
    assert asked == sees


def test_training_repeats_to_the_last_bit():
    def trained():
        vae = tiny().float()
        losses = train_vae(vae, load_images("digits"), 3, batch_size=8, seed=4, progress=False)
        return losses, sample_vae(vae, 3, seed=1)

    (losses, images), (losses_again, images_again) = trained(), trained()
    assert losses == losses_again and torch.equal(images, images_again)


def test_samples_are_images():
    vae = tiny().float()
    images = sample_vae(vae, 5, batch_size=2)
    assert images.shape == (5, 1, 8, 8) and images.dtype == torch.uint8
    expected = vae(vae.noise(2, torch.Generator().manual_seed(0))).mean.clamp(0, 1)
    assert_close(images[:2] / 255, expected, atol=1 / 255, rtol=0)


# -- what is refused ----------------------------------------------------------------------------------


def other_image(teacher, student):
    return teacher(teacher.noise(2), torch.rand(2, 3, 8, 8, dtype=torch.float64))


def other_noise(teacher, student):
    return teacher(student.noise(2)[1:])


def in_training(teacher, student):
    return distillation_loss(teacher.train(), student, teacher.noise(2))


def other_latents(teacher, student):
    return distillation_loss(teacher, tiny(levels=2), teacher.noise(2))


def nothing_to_learn_from(teacher, student):
    return train_vae(student, None, 2)


def always_blind(teacher, student):
    return train_vae(student, load_images("digits"), 2, teacher=teacher, blind=1.0, progress=False)


def a_blind_teacher(teacher, student):
    return train_vae(teacher, load_images("digits"), 2, blind=0.5, progress=False)


def too_few(teacher, student):
    return train_vae(student, torch.zeros(3, 1, 8, 8, dtype=torch.uint8), 2, batch_size=4, progress=False)


def no_such_size(teacher, student):
    return LVAE(sample_size=12, levels=3)


@pytest.mark.parametrize(
    "call, message",
    [
        (other_image, r"x: found images of \(3, 8, 8\), expected \(1, 8, 8\)"),
        (other_noise, r"noise: found levels of \[\(2, 2, 2\), \(2, 4, 4\)\], expected \[\(2, 1, 1\)"),
        (in_training, "teacher: found it in training mode, expected eval mode"),
        (other_latents, r"student: found latents \[\(2, 2, 2\), \(2, 4, 4\)\], expected"),
        (nothing_to_learn_from, "images: found None, expected some where there is no teacher"),
        (always_blind, r"blind: found 1\.0, expected a share in \[0, 1\), for students only"),
        (a_blind_teacher, r"blind: found 0\.5, and no teacher, expected a share"),
        (too_few, "data: found 3 samples, expected at least one batch of 4"),
        (no_such_size, "sample_size: found 12, expected a multiple of 8 for 3 levels"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny(), tiny(1))


def test_a_loss_that_is_not_finite_ends_the_training():
    vae = tiny().float()
    with torch.no_grad():
        vae.decoder[0][2].weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="loss: found nan at iteration 2"):
        train_vae(vae, load_images("digits"), 2, batch_size=4, progress=False)
