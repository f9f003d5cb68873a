"""Conditions: who gets which, what is dropped, how guidance moves a pool; nothing is guided twice."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.networks import Guided
from dkdm_lab.pools import WARMUPS, DynamicPool, IterativePool, ShuffledPool
from dkdm_lab.sources import NULL, Conditions, NoisedImages

K = 4
NOBODY = 9  # the label that stands for none


class Teacher(torch.nn.Module):
    """Its answer tells the condition: eps = x / 2 + label, v = label / 10."""

    shape, condition = (2,), "class"

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x_t, t, condition):
        self.asked.append(condition)
        label = condition.float()[:, None].expand_as(x_t)
        return x_t / 2 + label, label / 10


@pytest.fixture
def teacher():
    return Teacher()


@pytest.fixture
def conditions():
    return Conditions.classes(K, NOBODY)


def turns(pool, n):
    return list(itertools.islice(pool, n))


def test_a_sample_keeps_its_condition_until_it_is_fresh_again(diffusion, teacher):
    pool = ShuffledPool(diffusion, teacher, 64, conditions=Conditions.classes(K))
    pool.fill()
    for _ in range(150):
        before, level = pool.c.clone(), pool.t.clone()
        next(pool)
        assert torch.equal(pool.c[level > 0], before[level > 0])
    assert set(pool.c.tolist()) == set(range(K))


@pytest.mark.parametrize("warmup", WARMUPS)
def test_conditions_are_drawn_evenly(diffusion, teacher, warmup):
    """Chi-square of 4,000 draws over 4 labels: 3 on average; 100 where one label is missed.

    Of the harvest each chain serves ten samples, so that the draws are 400."""
    pool = DynamicPool(diffusion, teacher, 100, rho=0.4, warmup=warmup, conditions=Conditions.classes(K))
    pool.fill()
    counts = pool.c.bincount(minlength=K).float()
    expected = pool.size / K
    assert float(((counts - expected) ** 2 / expected).sum()) < (160 if warmup == "harvest" else 16)


def test_the_harvest_gives_each_sample_its_chains_condition(diffusion, conditions):
    """A teacher whose x_0 is the label brings its chains there, so the samples tell their label."""

    class Tells(Teacher):
        def forward(self, x_t, t, condition):
            log_alpha_bar = diffusion.log_alpha_bar(t).float()[:, None]
            x0 = condition.float()[:, None] * torch.ones_like(x_t)
            signal, noise = (0.5 * log_alpha_bar).exp(), (-torch.expm1(log_alpha_bar)).sqrt()
            return (x_t - signal * x0) / noise, torch.zeros_like(x_t)

    pool = DynamicPool(diffusion, Tells(), 100, rho=0.4, warmup="harvest", conditions=conditions)
    pool.fill()
    low = pool.t < 5  # nearly clean: x is the label within 0.15
    assert low.sum() > 100
    assert_close(pool.x[low].mean(1).round().long(), pool.c[low])


def test_a_batch_has_the_teachers_answer_to_its_own_condition(diffusion, teacher, conditions):
    pool = ShuffledPool(diffusion, teacher, 64, conditions=conditions)
    for batch in turns(pool, 50):
        assert set(batch.condition.tolist()) <= {*range(K), NOBODY}
        eps, v = teacher(batch.x_t, batch.t, batch.condition)
        assert torch.equal(batch.eps, eps)
        expected = diffusion.p(batch.x_t, batch.t, eps, v, clip=diffusion.clip)
        assert all(map(torch.equal, batch.target, expected))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_share_that_is_dropped(diffusion, teacher, guidance):
    """10,000 samples at 0.25: a standard deviation of 0.004."""
    pool = ShuffledPool(
        diffusion, teacher, 100, conditions=Conditions.classes(K, NOBODY, dropout=0.25), guidance=guidance
    )
    shown = torch.cat([batch.condition for batch in turns(pool, 100)])
    assert abs(float((shown == NOBODY).float().mean()) - 0.25) < 0.016


def test_nothing_is_dropped_without_a_null_condition(diffusion, teacher):
    pool = IterativePool(diffusion, teacher, 64, conditions=Conditions.classes(K))
    shown = torch.cat([batch.condition for batch in turns(pool, 50)])
    assert set(shown.tolist()) == set(range(K))
    assert pool.evaluations == 64 * 50


@pytest.mark.parametrize("guidance", [1.0, 3.0, 0.0])
def test_the_pool_moves_by_the_guided_answer(diffusion, teacher, conditions, guidance):
    """Also where the student is shown another condition."""
    pool = IterativePool(diffusion, teacher, 16, conditions=conditions, guidance=guidance, seed=7)
    guided = Guided(teacher, guidance, conditions.null)
    for _ in range(20):
        pool.fill()
        x, t, c = pool.x.clone(), pool.t.clone(), conditions[pool.c]
        state = pool.state_dict()["generator"]
        next(pool)
        draws = torch.Generator()
        draws.set_state(state)
        torch.rand(16, generator=draws)  # who is dropped
        noise = torch.randn(16, 2, generator=draws)
        p = diffusion.p(x, t, *guided(x, t, c), clip=diffusion.clip)
        assert_close(pool.x, diffusion.step(p, t - 1, noise))


def test_evaluations_are_counted(diffusion, teacher, conditions):
    pool = IterativePool(diffusion, teacher, 16, conditions=conditions, guidance=2.0)
    turns(pool, 5)
    assert pool.evaluations == 2 * 16 * 5
    assert pool.evaluations == sum(map(len, teacher.asked))
    plain = IterativePool(diffusion, teacher, 16, conditions=conditions)
    before = sum(map(len, teacher.asked))
    dropped = sum(int((batch.condition == NOBODY).sum()) for batch in turns(plain, 5))
    assert plain.evaluations == 16 * 5 + dropped
    assert plain.evaluations == sum(map(len, teacher.asked)) - before


@pytest.mark.parametrize("warmup", WARMUPS)
def test_a_pool_with_conditions_goes_on_exactly(diffusion, teacher, conditions, warmup):
    def make(seed):
        return DynamicPool(
            diffusion, teacher, 8, rho=0.05, warmup=warmup, conditions=conditions, guidance=2.0, seed=seed
        )

    first, second = make(0), make(1)
    turns(first, 30)
    second.load_state_dict(first.state_dict())
    for a, b in zip(turns(first, 30), turns(second, 30), strict=True):
        assert torch.equal(a.x_t, b.x_t)
        assert torch.equal(a.condition, b.condition)


def test_text_embeddings_are_conditions_too():
    values, null = torch.randn(3, 5, 8), torch.zeros(5, 8)
    conditions = Conditions(values, null)
    assert torch.equal(conditions[torch.tensor([2, NULL, 0])], torch.stack([values[2], null, values[0]]))
    assert len(conditions) == 3


def test_images_come_with_their_labels(diffusion):
    data, labels = torch.arange(40.0)[:, None].repeat(1, 2), torch.arange(40) % K
    source = NoisedImages(diffusion, data, 20, conditions=Conditions.classes(K, NOBODY, 0.25), labels=labels)
    dropped = 0
    for batch in turns(source, 200):
        x0 = diffusion.predict_x0(batch.x_t, batch.t, batch.eps).mean(1).round().long()
        sure = batch.t < 50  # above, float32 leaves too little of x_0
        keep = sure & (batch.condition != NOBODY)
        assert torch.equal(batch.condition[keep], x0[keep] % K)
        dropped += int((batch.condition == NOBODY).sum())
    assert abs(dropped / 4000 - 0.25) < 0.03


def test_samples_get_the_condition_asked_for(diffusion, teacher):
    asked = torch.tensor([0, 1, 2, 3, 3])
    diffusion.sample(teacher, 5, 10, condition=asked, batch_size=2)
    assert torch.equal(torch.cat([teacher.asked[0], teacher.asked[10], teacher.asked[20]]), asked)


def test_guidance_leads_away_from_the_null_answer(teacher):
    x, t = torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64)
    eps, v = Guided(teacher, 3.0, torch.tensor(NOBODY))(x, t, torch.tensor([1, 2]))
    assert_close(eps[:, 0], torch.tensor([9 + 3.0 * (1 - 9), 9 + 3.0 * (2 - 9)]))
    assert_close(v[:, 0], torch.tensor([0.1, 0.2]))


class Unconditional(torch.nn.Module):
    shape = (2,)

    def forward(self, x_t, t):
        return x_t, None


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d, t: ShuffledPool(d, t, 4), "conditions: found None, but the teacher takes class"),
        (
            lambda d, t: ShuffledPool(d, Unconditional(), 4, conditions=Conditions.classes(2)),
            "conditions: found 2 of them, but the teacher takes none",
        ),
        (
            lambda d, t: ShuffledPool(d, t, 4, conditions=Conditions.classes(2), guidance=3.0),
            "guidance: found 3.0, expected 1 where there is no null condition",
        ),
        (lambda d, t: Conditions(torch.zeros(0, 4)), "conditions: found none, expected at least one"),
        (
            lambda d, t: Conditions(torch.zeros(2, 4), torch.zeros(5)),
            r"null condition: found shape \(5,\), expected \(4,\)",
        ),
        (lambda d, t: Conditions.classes(2, 2, dropout=1.0), r"dropout: found 1.0, expected a share"),
        (
            lambda d, t: NoisedImages(d, torch.zeros(4, 2), 2, conditions=Conditions.classes(2)),
            "labels: found None, expected one for each of 4 samples",
        ),
        (
            lambda d, t: d.sample(t, 3, 5, condition=torch.zeros(2, dtype=torch.int64)),
            "condition: found 2, expected one for each of 3 samples",
        ),
    ],
)
def test_bad_conditions_are_refused(diffusion, teacher, make, message):
    with pytest.raises(ValueError, match=message):
        make(diffusion, teacher)


def test_a_state_without_conditions_is_refused(diffusion, teacher, conditions):
    plain = ShuffledPool(diffusion, Unconditional(), 4)
    plain.fill()
    pool = ShuffledPool(diffusion, teacher, 4, conditions=conditions)
    with pytest.raises(ValueError, match="pool state: found no conditions, expected some"):
        pool.load_state_dict(plain.state_dict())


def test_a_zero_snr_teacher_can_be_guided(teacher):
    """Guidance mixes answers in float64 as they come."""
    betas = torch.linspace(0.1, 0.9, 10).double().numpy()
    betas[-1] = 1.0
    process = GaussianDiffusion(betas, clip=False)
    assert process.sample(teacher, 2, 5, condition=torch.tensor([1, 2])).dtype == torch.float32
