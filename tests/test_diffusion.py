"""Schedules, both processes and samplers: against the authors' numbers, diffusers, and algebra."""

from pathlib import Path

import diffusers.schedulers.scheduling_ddpm as ddpm
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dkdm_lab import diffusion as diffusion_module
from dkdm_lab.data import GaussianMixture, LowRankGaussian
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.losses import dkdm_loss
from dkdm_lab.moves.variance import AnalyticVariance
from dkdm_lab.networks import ddpm_scheduler
from dkdm_lab.networks.schedulers import flow_scale
from dkdm_lab.sources import Batch
from dkdm_lab.system.progress import progress_bar
from dkdm_lab.system.seeds import numbered_noise

SCHEDULES = ("cosine", "linear")
RESPACINGS = (10, 50, 100, 250)

# -- the authors' own numbers -------------------------------------------------------------------------

GOLDEN = {
    schedule: dict(np.load(Path(__file__).parent / "golden" / f"diffusion_{schedule}.npz"))
    for schedule in SCHEDULES
}
GIVEN = {"t", "x0", "noise", "model_output", "student_output", "step_noise"}  # inputs, the rest are outputs


@pytest.fixture(scope="module", params=SCHEDULES)
def golden(request):
    """The authors' arrays for one schedule."""
    return {key: torch.from_numpy(value) for key, value in GOLDEN[request.param].items()} | {
        "diffusion": getattr(GaussianDiffusion, request.param)(1000)
    }


@pytest.fixture(scope="module")
def ours(golden):
    """What the module computes for the same inputs, under the authors' names."""
    diffusion, t, x0, x_t = (golden[key] for key in ("diffusion", "t", "x0", "x_t"))
    eps, v = golden["model_output"].chunk(2, dim=1)
    student_eps, student_v = golden["student_output"].chunk(2, dim=1)

    tables = diffusion.transition(torch.arange(1000))
    posterior = diffusion.q_posterior(x0, x_t, t)
    clipped, unclipped = (diffusion.p(x_t, t, eps, v, clip=clip) for clip in (True, False))
    on_data = dkdm_loss(diffusion, Batch(x_t, t, golden["noise"], posterior, observed=True), eps, v)
    on_teacher = dkdm_loss(diffusion, Batch(x_t, t, eps, clipped), student_eps, student_v)

    def everywhere(level):
        return torch.full_like(t, level)

    levels = diffusion.timesteps(50)
    respaced = diffusion.p(x_t, everywhere(levels[37]), eps, v, everywhere(levels[36]), clip=True)
    ddim = diffusion.timesteps(200, "ddim")
    values = {
        "betas": torch.from_numpy(diffusion.betas),
        "alphas_cumprod": torch.from_numpy(diffusion.alpha_bar),
        "posterior_variance": tables.beta_tilde,
        "posterior_log_variance_clipped": tables.log_beta_tilde,
        "posterior_mean_coef1": tables.coef_x0,
        "posterior_mean_coef2": tables.coef_xt,
        "x_t": diffusion.q_sample(x0, t, golden["noise"]),
        "q_posterior_mean": posterior.mean,
        "q_posterior_log_variance": posterior.log_variance,
        "p_mean_clip": clipped.mean,
        "p_log_variance_clip": clipped.log_variance,
        "p_x0_clip": diffusion.predict_x0(x_t, t, eps, clip=True),
        "p_mean_noclip": unclipped.mean,
        "p_log_variance_noclip": unclipped.log_variance,
        "p_x0_noclip": diffusion.predict_x0(x_t, t, eps),
        "hybrid_mse": on_data.simple,
        "hybrid_vb": on_data.vlb,
        "dkdm_mse": on_teacher.simple,
        "dkdm_vb": on_teacher.vlb,
        "x_prev": diffusion.step(clipped, t - 1, golden["step_noise"]),
        "respaced50_index37_mean": respaced.mean,
        "respaced50_index37_log_variance": respaced.log_variance,
        "ddim200_timesteps": torch.tensor(ddim),
        "ddim200_index113_sample": diffusion.ddim(x_t, everywhere(ddim[113]), eps, everywhere(ddim[112])),
    }
    for steps in RESPACINGS:
        levels = torch.tensor(diffusion.timesteps(steps))
        below = torch.cat([torch.tensor([-1]), levels[:-1]])
        values[f"respaced_timesteps_{steps}"] = levels
        values[f"respaced_betas_{steps}"] = diffusion.transition(levels, below).beta
    return values


@pytest.mark.parametrize("key", sorted(GOLDEN["cosine"].keys() - GIVEN))
def test_the_authors_numbers_are_matched(key, golden, ours):
    found, expected = ours[key], golden[key]
    assert found.shape == expected.shape
    if expected.dtype == torch.int64:
        assert torch.equal(found, expected)
    elif expected.dtype == torch.float64:  # a table
        assert_close(found, expected, rtol=1e-10, atol=0)
    else:
        # 1e-5 absolute for every value up to 20. Float32 cannot hold that for the largest (hybrid_vb reaches
        # 1.7e3, steps of 1.2e-4): four roundings there. Measured: at most 1.2e-7 of difference in any array.
        allowed = (4 * torch.finfo(torch.float32).eps * expected.abs()).clamp(min=1e-5)
        assert found.dtype == torch.float32
        assert bool(((found - expected).abs() <= allowed).all()), (found - expected).abs().max()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_array_of_the_authors_is_forgotten(schedule, ours):
    assert ours.keys() | GIVEN == GOLDEN[schedule].keys()


# -- diffusers ----------------------------------------------------------------------------------------


@pytest.fixture(params=SCHEDULES)
def both(request):
    """Our process and diffusers' scheduler for it: learned_range, linspace, clipped."""
    diffusion = getattr(GaussianDiffusion, request.param)(1000)
    scheduler = ddpm_scheduler(diffusion, learned_variance=True)
    return diffusion, ddpm.DDPMScheduler.from_config(scheduler.config)


@pytest.fixture(params=["float32 tables", "float64 tables"])
def tolerance(request, both):
    """diffusers' tables are float32: 1e-4 (measured 8.2e-5). With our betas put in they are float64, and
    what is left is the arithmetic's float32: 1e-6 (measured 6e-7)."""
    diffusion, scheduler = both
    if request.param == "float32 tables":
        return {"atol": 1e-4, "rtol": 0}
    scheduler.alphas_cumprod = torch.from_numpy(diffusion.alpha_bar)
    return {"atol": 1e-6, "rtol": 0}


def outputs(diffusion, level, n=4):
    """A sample of the forward process and a network's outputs for it: x_t, eps, v in [-1, 1]."""
    noise, error = torch.randn(2, n, 3, 4, 4)
    x_t = diffusion.q_sample(torch.rand(n, 3, 4, 4) * 2 - 1, torch.full((n,), level), noise)
    return x_t, noise + 0.3 * error, torch.rand(n, 3, 4, 4) * 2 - 1


def step_of(scheduler, t, x_t, eps, v, **options):
    return scheduler.step(torch.cat([eps, v], dim=1), t, x_t, **options).prev_sample.float()


def test_the_scheduler_compared_with_is_the_one_meant(both):
    diffusion, scheduler = both
    expected = {
        "variance_type": "learned_range",
        "beta_schedule": {"cosine": "squaredcos_cap_v2", "linear": "linear"}[diffusion.schedule],
        "timestep_spacing": "linspace",
        "prediction_type": "epsilon",
        "clip_sample": True,
    }
    assert {key: scheduler.config[key] for key in expected} == expected


@pytest.mark.parametrize("steps", [None, 50])
def test_the_reverse_step_is_diffusers_at_every_level(both, steps, tolerance, monkeypatch):
    diffusion, scheduler = both
    if steps is not None:
        scheduler.set_timesteps(steps)
    levels = diffusion.timesteps(steps)
    for level, below in zip(levels, [-1, *levels[:-1]], strict=True):
        x_t, eps, v = outputs(diffusion, level)
        t, s = torch.full((len(x_t),), level), torch.full((len(x_t),), below)
        p = diffusion.p(x_t, t, eps, v, s, clip=True)
        monkeypatch.setattr(ddpm, "randn_tensor", lambda *_, like=x_t, **__: torch.zeros_like(like))
        mean = step_of(scheduler, level, x_t, eps, v)
        assert_close(p.mean, mean, **tolerance)
        monkeypatch.setattr(ddpm, "randn_tensor", lambda *_, like=x_t, **__: torch.ones_like(like))
        deviation = step_of(scheduler, level, x_t, eps, v) - mean
        assert_close(diffusion.step(p, s, torch.ones_like(x_t)) - p.mean, deviation, **tolerance)


@pytest.mark.parametrize("level", [0, 1, 500, 998, 999])
def test_a_step_with_noise_is_diffusers(both, level, tolerance):
    diffusion, scheduler = both
    x_t, eps, v = outputs(diffusion, level)
    expected = step_of(scheduler, level, x_t, eps, v, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1))
    t = torch.full((len(x_t),), level)
    assert_close(diffusion.step(diffusion.p(x_t, t, eps, v, clip=True), t - 1, noise), expected, **tolerance)


@pytest.mark.parametrize("steps", RESPACINGS)
def test_respaced_timesteps_are_diffusers(both, steps):
    diffusion, scheduler = both
    scheduler.set_timesteps(steps)
    assert diffusion.timesteps(steps)[::-1] == scheduler.timesteps.tolist()


# -- the forward process ------------------------------------------------------------------------------


def test_noising_on_from_a_level_composes_with_noising_up_to_it(diffusion):
    t = torch.arange(100).repeat_interleave(100)
    s = torch.arange(100).repeat(100)
    t, s = t[s <= t], s[s <= t]
    one, zero = torch.ones(len(t), 1, dtype=torch.float64), torch.zeros(len(t), 1, dtype=torch.float64)
    scale_t, std_t = diffusion.q_sample(one, t, zero), diffusion.q_sample(zero, t, one)
    scale_s, std_s = diffusion.q_sample(one, s, zero), diffusion.q_sample(zero, s, one)
    scale_on, std_on = diffusion.q_sample(one, t, zero, s), diffusion.q_sample(zero, t, one, s)
    assert_close(scale_on * scale_s, scale_t, rtol=1e-12, atol=0)
    assert_close((scale_on * std_s) ** 2 + std_on**2, std_t**2, rtol=1e-12, atol=0)


def test_noising_to_the_clean_image_changes_nothing(diffusion):
    x = torch.randn(3, 2)
    assert torch.equal(diffusion.q_sample(x, torch.full((3,), -1), torch.randn(3, 2)), x)


def test_the_noise_given_back_gives_the_image_back():
    diffusion = GaussianDiffusion.cosine(1000)
    t = torch.arange(0, 990, 10)
    x0, noise = torch.randn(2, len(t), 3, 4, 4, dtype=torch.float64)
    assert_close(diffusion.predict_x0(diffusion.q_sample(x0, t, noise), t, noise), x0)


@pytest.mark.parametrize("steps", [100, 10])
def test_forward_then_posterior_is_forward_to_the_level_below(diffusion, steps):
    """Averaging q(x_s | x_t, x_0) over q(x_t | x_0) is q(x_s | x_0), in mean and in variance."""
    t = torch.tensor(diffusion.timesteps(steps))
    s = torch.cat([torch.tensor([-1]), t[:-1]])
    alpha_bar_t, alpha_bar_s = (diffusion.log_alpha_bar(level).exp() for level in (t, s))
    c = diffusion.transition(t, s)
    assert_close(c.coef_x0 + c.coef_xt * alpha_bar_t.sqrt(), alpha_bar_s.sqrt(), rtol=1e-12, atol=0)
    variance = c.coef_xt**2 * (1 - alpha_bar_t) + c.beta_tilde
    assert_close(variance, 1 - alpha_bar_s, rtol=1e-10, atol=1e-15)


def test_the_clean_image_is_the_posterior_at_the_first_level(diffusion):
    x0, x_t = torch.randn(2, 3, 2)
    assert_close(diffusion.q_posterior(x0, x_t, torch.zeros(3, dtype=torch.int64)).mean, x0)


# -- the reverse process ------------------------------------------------------------------------------


def test_the_true_noise_gives_the_posterior(diffusion):
    t = torch.arange(90)
    x0, noise = torch.randn(2, 90, 2, dtype=torch.float64)
    x_t = diffusion.q_sample(x0, t, noise)
    p, q = diffusion.p(x_t, t, noise, v=None), diffusion.q_posterior(x0, x_t, t)
    assert_close(p.mean, q.mean)
    assert_close(p.log_variance, q.log_variance)


@pytest.mark.parametrize("v, bound", [(-1.0, "log_beta_tilde"), (1.0, "log_beta")])
def test_v_runs_between_the_bounds_of_the_variance(diffusion, v, bound):
    t = torch.arange(100)
    x = torch.randn(100, 2, dtype=torch.float64)
    p = diffusion.p(x, t, x, torch.full_like(x, v))
    assert_close(p.log_variance, getattr(diffusion.transition(t), bound)[:, None].expand_as(x))


def test_a_learned_variance_says_how_unsure_x0_is(diffusion):
    """One step's variance is beta_tilde + coef_x0^2 Var[x_0 | x_t], from 0 to 1 - alpha_bar_t."""
    t = torch.arange(1, diffusion.T)
    v, x_t = 2 * torch.rand(len(t), 5) - 1, torch.randn(len(t), 5)
    unsure = diffusion.x0_variance(t, v)
    noise = torch.as_tensor(1 - diffusion.alpha_bar[1:, None])
    assert bool((unsure > 0).all()) and bool((unsure < noise).all())
    eps = torch.zeros_like(x_t)
    same = diffusion.p(x_t, t, eps, None, variance=unsure)
    assert_close(same.log_variance, diffusion.p(x_t, t, eps, v).log_variance, rtol=1e-5, atol=1e-5)
    ends = [diffusion.x0_variance(t, torch.full_like(v, end)) for end in (-1.5, 1.5)]
    assert_close(ends, [torch.zeros_like(v), noise.expand_as(v).float()])


def test_a_different_t_for_every_sample_is_each_sample_alone():
    diffusion = GaussianDiffusion.cosine(1000)
    x_t, eps, v, noise = torch.randn(4, 50, 3, 4, 4)
    t = torch.randperm(1000)[:50]
    t[0] = 0
    together = diffusion.step(diffusion.p(x_t, t, eps, v), t - 1, noise)
    for i in range(50):
        one = slice(i, i + 1)
        alone = diffusion.step(diffusion.p(x_t[one], t[one], eps[one], v[one]), t[one] - 1, noise[one])
        assert_close(together[one], alone, atol=1e-6, rtol=1e-6)


def test_the_last_step_adds_no_noise(diffusion):
    x, s = torch.randn(2, 2), torch.tensor([-1, 0])
    p = diffusion.p(x, s + 1, x, torch.zeros_like(x))
    stepped = diffusion.step(p, s, torch.ones_like(x))
    assert torch.equal(stepped[0], p.mean[0])
    assert bool((stepped[1] > p.mean[1]).all())


@pytest.mark.parametrize("clip", [True, False])
def test_ddim_keeps_a_sample_on_its_own_path(clip):
    """With the noise that a sample was made with, DDIM goes to where that same noise leads from x_0."""
    diffusion = GaussianDiffusion.cosine(1000, clip=clip)
    t = torch.arange(10, 990, 10)
    s = t - 7
    x0 = torch.rand(len(t), 2, dtype=torch.float64) * 2 - 1
    noise = torch.randn_like(x0)
    found = diffusion.ddim(diffusion.q_sample(x0, t, noise), t, noise, s)
    assert_close(found, diffusion.q_sample(x0, s, noise))


def test_ddim_ends_at_the_predicted_image(diffusion):
    x, t = torch.randn(3, 2), torch.tensor([5, 10, 15])
    assert_close(diffusion.ddim(x, t, x, torch.full((3,), -1)), diffusion.predict_x0(x, t, x))


# -- sampling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_the_same_seed_gives_the_same_samples(diffusion, exact_teacher, method):
    first, again, other = (
        diffusion.sample(exact_teacher, 6, 10, method=method, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("n", [1, 7, 8])
def test_as_many_samples_come_as_were_asked_for(diffusion, exact_teacher, n):
    x = diffusion.sample(exact_teacher, n, 5, batch_size=4)
    assert x.shape == (n, 2)
    assert x.dtype == torch.float32
    assert len(x.unique(dim=0)) == n  # no batch repeats another


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 100, 200])
def test_a_sample_is_the_same_in_any_batch(diffusion, exact_teacher, batch_size, method):
    """But for what networks compute otherwise in another batch: this one in the last bits."""
    options = {"method": method, "seed": 3}
    whole = diffusion.sample(exact_teacher, 150, 5, **options)
    for n in (150, 20):
        assert_close(diffusion.sample(exact_teacher, n, 5, batch_size=batch_size, **options), whole[:n])


def test_numbered_noise_is_standard_normal_and_never_the_same(diffusion):
    """Mean and deviation of 40,000 numbers, within five deviations of theirs."""
    draws = [numbered_noise(seed, level, range(5000), (4,)) for seed, level in ((0, 0), (0, 1), (1, 0))]
    for x in draws:
        assert abs(float(x.mean())) < 5 / 20_000**0.5
        assert abs(float(x.std()) - 1) < 5 / 40_000**0.5
    values = torch.cat(draws).flatten()
    assert len(values.unique()) > 0.99 * len(values)
    correlation = torch.corrcoef(torch.stack([x.flatten() for x in draws]))
    assert float(correlation.triu(1).abs().max()) < 5 / 20_000**0.5


def test_a_shape_may_be_given(diffusion):
    x = diffusion.sample(lambda x, t: (x, None), 2, 5, shape=(4, 3, 5))
    assert x.shape == (2, 4, 3, 5)


@pytest.mark.parametrize("method, steps", [("ddpm", 7), ("ddim", 10), ("ddpm", None)])
def test_the_callback_sees_every_level_down_to_the_image(diffusion, exact_teacher, method, steps):
    seen = []
    x = diffusion.sample(
        exact_teacher, 2, steps, method=method, callback=lambda s, x_s: seen.append((s, x_s.clone()))
    )
    levels = diffusion.timesteps(steps, method)
    assert [s for s, _ in seen] == [*levels[-2::-1], -1]
    assert torch.equal(seen[-1][1], x)


def test_the_denoiser_sees_every_level_from_the_noise_down(diffusion, exact_teacher):
    seen = []

    def denoiser(x, t):
        seen.append(t.tolist())
        return exact_teacher(x, t)

    diffusion.sample(denoiser, 2, 7, shape=(2,))
    assert seen == [[level, level] for level in diffusion.timesteps(7)[::-1]]
    assert seen[0] == [99, 99] and seen[-1] == [0, 0]


@pytest.mark.parametrize("clip", [True, False])
def test_samples_stay_in_the_pixel_range_only_with_clipping(clip):
    diffusion = GaussianDiffusion.cosine(20, clip=clip)
    x = diffusion.sample(lambda x, t: (torch.zeros_like(x), None), 8, shape=(4,))
    assert bool((x.abs() <= 1).all()) == clip


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [100, 1000, -2])
def test_a_level_out_of_range_is_refused(diffusion, t):
    x, level = torch.zeros(1, 2), torch.tensor([t])
    with pytest.raises(ValueError, match=rf"t: found {t}\.\.{t}, expected 0\.\.99"):
        diffusion.q_sample(x, level, x)


def test_no_step_leads_down_from_the_clean_image(diffusion):
    x, level = torch.zeros(1, 2), torch.tensor([-1])
    with pytest.raises(ValueError, match="t: found"):
        diffusion.p(x, level, x, None)


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_a_wrong_number_of_steps_is_refused(diffusion, steps):
    with pytest.raises(ValueError, match=rf"sampling steps: found {steps}, expected 1\.\.100"):
        diffusion.timesteps(steps)


def test_an_unknown_sampling_method_is_refused(diffusion):
    with pytest.raises(ValueError, match="found 'euler', expected 'ddpm' or 'ddim'"):
        diffusion.timesteps(10, "euler")


def test_ddim_steps_without_a_whole_stride_are_refused(diffusion):
    with pytest.raises(ValueError, match=r"ddim steps: found 30.*100 levels"):
        diffusion.timesteps(30, "ddim")


@pytest.mark.parametrize(
    "betas", [[0.1, 0.0], [1.0, 0.1], [0.1, 1.1], [], [-0.1], [float("nan")], [[0.1, 0.2]]]
)
def test_betas_that_are_no_variances_are_refused(betas):
    with pytest.raises(ValueError, match=r"betas: found .*expected one row of numbers in \(0, 1\)"):
        GaussianDiffusion(betas)


@pytest.fixture
def hours(monkeypatch):
    """A clock that is set by hand, and tqdm's own as well."""
    now = [0.0]
    monkeypatch.setattr("dkdm_lab.system.progress.time.monotonic", lambda: now[0])
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return now


def test_in_a_log_progress_is_a_line_now_and_then(hours, capsys):
    for step in (bar := progress_bar(range(100), desc="training", show=True)):
        hours[0] += 1.0
        bar.set_postfix(loss=step)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4  # at 30, 60 and 90 seconds, and at the end
    assert all(line.startswith("training: ") and "loss=" in line for line in lines)
    assert "100/100" in lines[-1]


def test_what_is_soon_done_leaves_nothing_in_a_log(hours, capsys):
    for _ in progress_bar(range(100), show=True):
        hours[0] += 0.29
    with progress_bar(desc="warm-up", show=False):
        hours[0] += 1000
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar(hours, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for _ in progress_bar(range(3), show=True):
        pass
    assert "\r" in capsys.readouterr().err


# -- a device without float64 -------------------------------------------------------------------------


class NoFloat64(TorchDispatchMode):
    """Refuses what Apple's MPS refuses, of "meta", a device on which nothing is computed but types are."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **options or {})
        for x in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(x, torch.Tensor) and x.device.type == "meta" and x.dtype == torch.float64:
                raise TypeError(f"{function}: this device has no float64")
        return found


@pytest.fixture
def without_float64(monkeypatch):
    monkeypatch.setattr(diffusion_module, "WITHOUT_FLOAT64", ("mps", "meta"))
    with NoFloat64(), pytest.raises(TypeError, match="has no float64"):
        torch.zeros(1, dtype=torch.float64, device="meta")
    return torch.device("meta")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_every_formula_does_without_float64_where_there_is_none(prediction, without_float64):
    process, place = GaussianDiffusion.cosine(100), {"device": without_float64}
    with NoFloat64():
        x, t = torch.zeros(4, 3, 8, 8, **place), torch.zeros(4, dtype=torch.int64, **place)
        eps = x if prediction == "epsilon" else process.predict_eps(prediction, x, t, x)
        for variance in (None, "large", torch.zeros(4, **place), x):
            p = process.p(x, t, eps, x, t - 1, clip=True, variance=variance)
            assert process.step(p, t - 1, x).dtype == torch.float32
        process.x0_variance(t, process.share_of(x, t))
        batch = Batch(process.q_sample(x, t, x), t, eps, process.q_posterior(x, x, t), observed=True)
        dkdm_loss(process, batch, x, x, prediction=prediction)
        assert process.ddim(x, t, eps, t).dtype == flow_scale(process, t).dtype == torch.float32
        AnalyticVariance(process, without_float64).see(x, t, x)


@pytest.mark.parametrize("learned", [True, False])
def test_exact_teachers_do_without_float64_where_there_is_none(learned, without_float64):
    process, place = GaussianDiffusion.cosine(100, clip=False), {"device": without_float64}
    line = LowRankGaussian(torch.ones(2), 0.1, torch.ones(1, 2))
    for data in (GaussianMixture.ring(), line):
        with NoFloat64():
            teacher = data.denoiser(process, learned).to(without_float64)
            eps, _ = teacher(torch.zeros(4, 2, **place), torch.zeros(4, dtype=torch.int64, **place))
            assert eps.device == without_float64 and eps.dtype == torch.float32


def test_in_float32_a_prediction_says_the_same_where_there_is_signal(monkeypatch):
    """On the CPU made to have no other: to 1e-4 of x_0 wherever alpha_bar is above 0.001."""
    torch.manual_seed(0)
    wide, x0, noise = GaussianDiffusion.cosine(100), torch.rand(90, 5) * 2 - 1, torch.randn(90, 5)
    t = torch.arange(90)
    assert wide.alpha_bar[89] > 0.001
    monkeypatch.setattr(diffusion_module, "WITHOUT_FLOAT64", ("cpu",))
    narrow = GaussianDiffusion.cosine(100)
    root, rest = (
        (narrow.log_alpha_bar(t).exp() ** 0.5)[:, None],
        (-torch.expm1(narrow.log_alpha_bar(t))) ** 0.5,
    )
    x_t, rest = narrow.q_sample(x0, t, noise), rest[:, None]
    outputs = {"sample": x0, "v_prediction": root * noise - rest * x0, "flow_prediction": noise - x0}
    for prediction, output in outputs.items():
        eps = narrow.predict_eps(prediction, x_t, t, output)
        assert eps.dtype == torch.float32
        assert_close(narrow.predict_x0(x_t, t, eps), x0, rtol=0, atol=1e-4)
