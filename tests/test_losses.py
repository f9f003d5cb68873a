"""L_simple, L_vlb and their sum: against torch.distributions, and where their gradients go."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from dkdm_lab.diffusion import Gaussian, GaussianDiffusion
from dkdm_lab.losses import decoder_nll, dkdm_loss, simple_loss, vlb_loss
from dkdm_lab.sources import Batch


@pytest.fixture
def diffusion():
    return GaussianDiffusion.cosine(1000)


def data_batch(diffusion, n=6, observed=False):
    """A batch of Algorithm 2 in float64, with t = 0 in it."""
    x0, noise = (
        torch.rand(n, 3, 4, 4, dtype=torch.float64) * 2 - 1,
        torch.randn(n, 3, 4, 4, dtype=torch.float64),
    )
    t = torch.randint(1, diffusion.T, (n,))
    t[0] = 0
    x_t = diffusion.q_sample(x0, t, noise)
    return Batch(x_t, t, noise, diffusion.q_posterior(x0, x_t, t), observed)


def network_outputs(batch):
    """eps and v as a network might give them, recording gradients."""
    eps, v = batch.eps + 0.1 * torch.randn_like(batch.eps), torch.rand_like(batch.eps) * 2 - 1
    return eps.requires_grad_(), v.requires_grad_()


def test_kl_is_that_of_torch_distributions():
    mean, log_variance, other_mean, other_log_variance = torch.randn(4, 5, 3, dtype=torch.float64)
    found = Gaussian(mean, log_variance).kl(Gaussian(other_mean, other_log_variance))
    p, q = Normal(mean, (0.5 * log_variance).exp()), Normal(other_mean, (0.5 * other_log_variance).exp())
    assert_close(found, kl_divergence(p, q))


def test_kl_of_a_gaussian_with_itself_is_zero():
    p = Gaussian(*torch.randn(2, 5, 3))
    assert torch.equal(p.kl(p), torch.zeros(5, 3))


def test_simple_is_the_mean_squared_error_of_each_sample(diffusion):
    batch = data_batch(diffusion)
    eps = torch.randn_like(batch.eps)
    expected = torch.stack([((a - b) ** 2).mean() for a, b in zip(eps, batch.eps, strict=True)])
    assert_close(simple_loss(batch, eps), expected)


def test_vlb_is_the_kl_in_bits_per_dimension(diffusion):
    batch = data_batch(diffusion)
    eps, v = network_outputs(batch)
    student = diffusion.p(batch.x_t, batch.t, eps, v)
    nats = kl_divergence(
        *(Normal(g.mean, (0.5 * g.log_variance).exp()) for g in (batch.target, student))
    )  # of the target from the student, not the other way round
    assert_close(vlb_loss(diffusion, batch, eps, v), nats.flatten(1).mean(1) / math.log(2))


@pytest.mark.parametrize("observed", [True, False])
def test_vlb_teaches_the_variance_and_never_the_mean(diffusion, observed):
    batch = data_batch(diffusion, observed=observed)
    eps, v = network_outputs(batch)
    vlb_loss(diffusion, batch, eps, v).sum().backward()
    assert eps.grad is None
    assert bool((v.grad != 0).any(dim=(1, 2, 3)).all())  # every sample, t = 0 too


def test_the_whole_loss_moves_the_mean_only_as_simple_does(diffusion):
    batch = data_batch(diffusion)
    eps, v = network_outputs(batch)
    (whole,) = torch.autograd.grad(dkdm_loss(diffusion, batch, eps, v).total.sum(), eps)
    (simple,) = torch.autograd.grad(simple_loss(batch, eps).sum(), eps)
    assert torch.equal(whole, simple)


def test_the_student_is_never_clipped(diffusion):
    """A prediction of x_0 outside [-1, 1] keeps its gradient and its error, though the process clips."""
    batch = data_batch(diffusion)
    far = batch.eps + 100.0
    unclipped = GaussianDiffusion.cosine(1000, clip=False)
    v = torch.zeros_like(far)
    assert torch.equal(vlb_loss(diffusion, batch, far, v), vlb_loss(unclipped, batch, far, v))


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.001])
def test_the_weight_multiplies_vlb(diffusion, weight):
    batch = data_batch(diffusion)
    losses = dkdm_loss(diffusion, batch, *network_outputs(batch), weight)
    assert_close(losses.total, losses.simple + weight * losses.vlb)


@pytest.mark.parametrize("missing", ["v", "target"])
def test_simple_stands_alone_where_no_variance_is_learned(diffusion, missing):
    batch = data_batch(diffusion)
    eps, v = network_outputs(batch)
    if missing == "v":
        v = None
    else:
        batch.target = None
    losses = dkdm_loss(diffusion, batch, eps, v)
    assert torch.equal(losses.total, simple_loss(batch, eps))
    assert torch.equal(losses.vlb, torch.zeros_like(losses.simple))


def test_equations_13_and_19_are_one_function_of_the_batch(diffusion):
    """A teacher that gives the true noise and the posterior's variance teaches exactly what data teach."""
    batch = data_batch(diffusion)
    eps, v = network_outputs(batch)
    teacher = Batch(batch.x_t, batch.t, batch.eps, diffusion.p(batch.x_t, batch.t, batch.eps, None))
    for ours, theirs in zip(
        dkdm_loss(diffusion, teacher, eps, v), dkdm_loss(diffusion, batch, eps, v), strict=True
    ):
        assert_close(ours, theirs)


def test_only_images_are_scored_by_their_grey_levels(diffusion):
    """At t = 0 the likelihood of 8-bit values, and only for data; everywhere else the KL."""
    images, teacher = data_batch(diffusion, observed=True), data_batch(diffusion)
    teacher.x_t, teacher.t, teacher.eps, teacher.target = images.x_t, images.t, images.eps, images.target
    eps, v = network_outputs(images)
    of_images, of_teacher = (vlb_loss(diffusion, batch, eps, v) for batch in (images, teacher))
    assert torch.equal(of_images[1:], of_teacher[1:])
    nats = decoder_nll(images.target.mean, diffusion.p(images.x_t, images.t, eps, v))[0]
    assert_close(of_images[0], nats.mean() / math.log(2))
    assert of_images[0] != of_teacher[0]


@pytest.mark.parametrize("mean", [-1.3, -1.0, 0.2, 1.0, 1.5])
@pytest.mark.parametrize("std", [0.002, 0.02, 0.5])
def test_the_grey_levels_share_all_probability(mean, std):
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    p = Gaussian(torch.full_like(levels, mean), torch.full_like(levels, 2 * math.log(std)))
    assert_close(decoder_nll(levels, p).neg().exp().sum().item(), 1.0, atol=1e-8, rtol=0)


def test_the_likelihood_is_the_gaussians_mass_within_half_a_grey_level():
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    exact = Normal(torch.tensor(0.1, dtype=torch.float64), 0.3)
    upper, lower = exact.cdf(levels + 1 / 255), exact.cdf(levels - 1 / 255)
    upper[-1], lower[0] = 1, 0  # the ends own the tails
    p = Gaussian(torch.full_like(levels, 0.1), torch.full_like(levels, 2 * math.log(0.3)))
    # A level holds up to 1e-2 of mass; ADM's tanh form of the normal CDF is off by up to 1.4e-4 here.
    assert_close(decoder_nll(levels, p).neg().exp(), upper - lower, atol=3e-4, rtol=0)
