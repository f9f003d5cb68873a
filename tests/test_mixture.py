"""The toy's exact teacher: its eps is the true score and its variance the true one."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.testing import assert_close

from dkdm_lab.data import GaussianMixture
from dkdm_lab.metrics import energy_distance


def density(mixture, diffusion, level):
    """p_t as torch.distributions has it; the data's own at level -1."""
    alpha_bar = diffusion.log_alpha_bar(torch.tensor(level)).exp()
    means = mixture.means.double() * alpha_bar.sqrt()
    std = (alpha_bar * mixture.std**2 + 1 - alpha_bar).sqrt().expand_as(means)
    return MixtureSameFamily(Categorical(torch.ones(len(means))), Independent(Normal(means, std), 1))


def reverse_step(mixture, diffusion, x_t, level):
    """p(x_{t-1} | x_t) as the exact teacher gives it: mean and variance."""
    t = torch.full((len(x_t),), level)
    p = diffusion.p(x_t, t, *mixture.denoiser(diffusion)(x_t, t))
    return p.mean, p.log_variance.exp()


@pytest.mark.parametrize("level", [0, 1, 10, 50, 90, 99])
def test_eps_is_the_score_of_the_exact_density(ring, diffusion, exact_teacher, level):
    x_t = diffusion.q_sample(
        ring.sample(100).double(), torch.full((100,), level), torch.randn(100, 2).double()
    ).requires_grad_()
    (score,) = torch.autograd.grad(density(ring, diffusion, level).log_prob(x_t).sum(), x_t)
    eps, _ = exact_teacher(x_t, torch.full((100,), level))
    assert_close(eps, -((1 - diffusion.alpha_bar[level]) ** 0.5) * score)


@pytest.mark.parametrize("level", [0, 1, 5, 20, 50, 80, 98, 99])
def test_the_reverse_step_has_the_true_mean_and_variance(diffusion, level):
    """Bayes on a fine grid, without x_0: p(x_{t-1} | x_t) is p_{t-1}(x_{t-1}) q(x_t | x_{t-1})."""
    mixture = GaussianMixture(torch.tensor([[-1.0], [0.1], [0.8]]), 0.1)
    grid = torch.linspace(-8, 8, 200_001, dtype=torch.float64)[:, None]
    ratio = 1 - torch.tensor(diffusion.betas[level])
    x_t = torch.tensor([[-1.2], [-0.95], [-0.4], [0.1], [0.5], [1.0]], dtype=torch.float64)
    prior = density(mixture, diffusion, level - 1).log_prob(grid)
    likelihood = Normal(ratio.sqrt() * grid, (1 - ratio).sqrt()).log_prob(x_t.T)
    weight = torch.softmax(prior[:, None] + likelihood, dim=0)
    mean = (weight * grid).sum(0)
    variance = (weight * (grid - mean) ** 2).sum(0)
    c = diffusion.transition(torch.tensor(level))
    in_range = variance.clamp(c.log_beta_tilde.exp(), c.log_beta.exp())  # of Eq. 12
    assert int((variance == in_range).sum()) >= (4 if level else 0)
    found_mean, found_variance = reverse_step(mixture, diffusion, x_t, level)
    assert_close(found_mean[:, 0], mean, rtol=1e-6, atol=1e-8)
    assert_close(found_variance[:, 0], in_range, rtol=1e-6, atol=1e-10)


def test_v_stays_in_the_range_of_equation_12(diffusion, exact_teacher):
    """Between and far from the modes the variance has no bound, and a jump of many steps would magnify v."""
    t = torch.arange(100).repeat(50)
    _, v = exact_teacher(3 * torch.randn(len(t), 2), t)
    assert float(v.abs().max()) == 1


def test_each_coordinate_has_its_own_variance(ring, diffusion):
    """The same on a plane, where the two variances differ a little."""
    level = 50
    line = torch.linspace(-3, 3, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    x_t = torch.tensor([[0.6, 0.25], [0.1, -0.6], [0.0, 0.0]], dtype=torch.float64)
    ratio = 1 - torch.tensor(diffusion.betas[level])
    prior = density(ring, diffusion, level - 1).log_prob(grid)
    for x, found_mean, found_variance in zip(x_t, *reverse_step(ring, diffusion, x_t, level), strict=True):
        likelihood = Normal(ratio.sqrt() * grid, (1 - ratio).sqrt()).log_prob(x).sum(1)
        weight = torch.softmax(prior + likelihood, dim=0)[:, None]
        mean = (weight * grid).sum(0)
        assert_close(found_mean, mean, rtol=1e-5, atol=1e-8)
        variance = (weight * (grid - mean) ** 2).sum(0)
        assert_close(found_variance, variance, rtol=1e-6, atol=0)


@pytest.mark.parametrize("level", [1, 50, 99])
def test_one_gaussian_has_a_closed_form(diffusion, level):
    """x_{t-1} and x_t are then jointly normal, and one conditions on the other by the textbook."""
    mean, std = torch.tensor([[0.3, -0.6]], dtype=torch.float64), 0.4
    at_t, at_s = diffusion.alpha_bar[level], diffusion.alpha_bar[level - 1]
    variance_t, variance_s = (a * std**2 + 1 - a for a in (at_t, at_s))
    covariance = (at_t / at_s) ** 0.5 * variance_s
    x_t = torch.randn(5, 2, dtype=torch.float64)
    expected = at_s**0.5 * mean + covariance / variance_t * (x_t - at_t**0.5 * mean)
    found_mean, found_variance = reverse_step(GaussianMixture(mean, std), diffusion, x_t, level)
    assert_close(found_mean, expected)
    assert_close(found_variance, torch.full_like(x_t, variance_s - covariance**2 / variance_t))


def test_each_sample_of_a_batch_has_its_own_level(exact_teacher):
    x, t = torch.randn(10, 2), torch.arange(0, 100, 10)
    for k in range(10):
        alone = exact_teacher(x[k : k + 1], t[k : k + 1])
        assert_close(tuple(out[k : k + 1] for out in exact_teacher(x, t)), alone)


def test_the_teacher_answers_in_the_type_it_was_asked(exact_teacher):
    eps, v = exact_teacher(torch.randn(3, 2), torch.tensor([0, 50, 99]))
    assert eps.dtype == v.dtype == torch.float32


def test_samples_of_the_ring_lie_on_the_ring(ring):
    x = ring.sample(8000)
    distance = torch.cdist(x, ring.means).min(dim=1).values
    assert abs(float(distance.square().mean()) - 2 * ring.std**2) < 1e-3
    counts = torch.cdist(x, ring.means).argmin(dim=1).bincount(minlength=8)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 25  # 7 degrees of freedom: 7 +- 3.7


def test_samples_of_the_ring_repeat_with_the_seed(ring):
    assert torch.equal(ring.sample(5, seed=1), ring.sample(5, seed=1))
    assert not torch.equal(ring.sample(5, seed=1), ring.sample(5, seed=2))


def test_sampling_with_the_exact_teacher_gives_the_data_back(ring, diffusion, exact_teacher):
    x = diffusion.sample(exact_teacher, 2000, batch_size=2000)
    # Between two exact sets of 2,000 it is 0 +- 0.0009 (30 pairs, at most 0.0023); with 10 steps, 0.01.
    assert energy_distance(x, ring.sample(2000, seed=1)) < 0.005
