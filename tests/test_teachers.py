"""Teachers of every kind that diffusers' schedulers describe: the pool walks as the scheduler would, and the
loss is zero where the student is the teacher."""

import copy

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch.testing import assert_close

from dkdm_lab.networks import Denoiser
from dkdm_lab.pools import IterativePool, ShuffledPool
from dkdm_lab.training import train

T = 20
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")
# Of processes with betas; flows have schedulers of their own, see test_families.
PREDICTIONS = ("epsilon", "v_prediction", "sample")
VARIANCES = (
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
)


def pipeline(learned, **config):
    """A tiny pipeline as plain diffusers makes it. A ``learned`` variance is positive."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=2 if learned else 1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        add_attention=False,
    )
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    if config["variance_type"] == "learned":
        unet.conv_out.weight.data[1] *= 0.01
        unet.conv_out.bias.data[1] = 0.05
    scheduler = DDPMScheduler(num_train_timesteps=T, beta_start=0.005, beta_end=0.3, **config)
    return DDPMPipeline(unet, scheduler)


def combinations():
    clips = ({"clip_sample": False}, {"clip_sample": True}, {"clip_sample": True, "clip_sample_range": 2.0})
    cases = [
        {"prediction_type": prediction, "variance_type": variance, "beta_schedule": schedule}
        for prediction in PREDICTIONS
        for variance in VARIANCES
        for schedule in SCHEDULES
    ]
    # With eps alone nothing can be said about x_0 where there is no signal; diffusers divides by zero there.
    cases += [
        {"prediction_type": prediction, "variance_type": variance, "rescale_betas_zero_snr": True}
        for prediction in PREDICTIONS[1:]
        for variance in VARIANCES
    ]
    return [case | clips[number % 3] for number, case in enumerate(cases)]


def name(case):
    return "-".join(str(value) for value in case.values())


@pytest.fixture(params=combinations(), ids=name)
def case(request):
    return request.param


@pytest.fixture
def teacher(case, tmp_path):
    pipeline(case["variance_type"].startswith("learned"), **case).save_pretrained(tmp_path / "teacher")
    return Denoiser.from_pretrained(tmp_path / "teacher")


def test_the_pool_walks_as_diffusers_scheduler(teacher, case, monkeypatch):
    # diffusers' own "fixed_large_log" takes the square root of a logarithm; it is meant as "fixed_large".
    variance = "fixed_large" if case["variance_type"] == "fixed_large_log" else case["variance_type"]
    scheduler = DDPMScheduler.from_config(
        DDPMPipeline(
            teacher.network,
            DDPMScheduler(num_train_timesteps=T, beta_start=0.005, beta_end=0.3, **case),
        ).scheduler.config,
        variance_type=variance,
    )
    pool = IterativePool(teacher.diffusion, teacher, 3, seed=5)
    draws = torch.Generator().manual_seed(5)
    x = torch.randn(3, 1, 4, 4, generator=draws)
    for t in range(T - 1, -1, -1):
        batch = next(pool)
        assert_close(batch.x_t, x, atol=2e-5, rtol=2e-5)  # measured: at most 5e-6, float32 tables
        noise = torch.randn(x.shape, generator=draws)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise)  # noqa: B023
        with torch.no_grad():
            output = teacher.network(x, torch.full((3,), t)).sample
        x = scheduler.step(output, t, x).prev_sample
        torch.randn(x.shape, generator=draws)  # what the pool keeps ready for samples that are finished


def test_a_student_equal_to_its_teacher_has_no_loss(teacher):
    pool = ShuffledPool(teacher.diffusion, teacher, 4)
    _, history = train(
        copy.deepcopy(teacher), pool, teacher.diffusion, 5, lr=0.0, log_every=1, progress=False
    )
    assert history.simple == [0.0] * 5
    if (
        teacher.diffusion.clip
    ):  # as in ADM's loss, x_0 is clamped in the teacher's mean and not in the student's
        assert all(value >= 0 for value in history.vlb)
    else:
        assert history.vlb == [0.0] * 5


# What a student is asked to predict, and of which variance, decides its loss; the schedule only its numbers.
@pytest.mark.parametrize(
    "case", [c for c in combinations() if c.get("beta_schedule") in (None, "squaredcos_cap_v2")], ids=name
)
def test_a_student_learns(teacher):
    """Twenty steps from another beginning bring it nearer to its teacher's answers."""
    student = copy.deepcopy(teacher)
    torch.manual_seed(1)
    torch.nn.init.normal_(student.network.conv_out.weight, std=0.1)
    pool = ShuffledPool(teacher.diffusion, teacher, 16)
    _, history = train(student, pool, teacher.diffusion, 20, lr=3e-3, ema=0.0, log_every=5, progress=False)
    assert history.loss[-1] < history.loss[0]
