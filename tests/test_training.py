"""The one loop: it learns, averages, reports, and goes on exactly where it was interrupted."""

import dataclasses
import itertools
import math
import time

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close

from dkdm_lab import networks
from dkdm_lab.data import load_images
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.pools import POOLS
from dkdm_lab.sources import NoisedImages
from dkdm_lab.training import train

SOURCES = ("data", *POOLS)


def toy_source(name, diffusion, ring, seed=0):
    """One of the four sources over points on the ring, with the exact teacher."""
    if name == "data":
        return NoisedImages(diffusion, ring.sample(1000), 64, seed=seed)
    options = {"rho": 0.4} if name == "dynamic" else {}
    return POOLS[name](diffusion, ring.denoiser(diffusion), 64, seed=seed, **options)


def toy_student(seed=0):
    torch.manual_seed(seed)
    return networks.build("toy-student")


def quietly(student, source, diffusion, iterations, **options):
    return train(student, source, diffusion, iterations, **{"lr": 1e-3, "progress": False, **options})


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()]).clone()


def iterations_in(folder):
    return [int(place.name) for place in sorted(folder.glob("[0-9]*"))]


@pytest.fixture
def data_source(diffusion, ring):
    return toy_source("data", diffusion, ring)


# -- learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data", "shuffled", "dynamic"])  # an iterative pool's follows its t
def test_the_loss_falls(name, diffusion, ring):
    source = toy_source(name, diffusion, ring)
    _, history = quietly(toy_student(), source, diffusion, 200, lr=3e-3, log_every=100)
    # The second 100 iterations over the first, measured over 4 seeds: data 0.67 to 0.80, shuffled 0.31 to
    # 0.51, dynamic 0.26 to 0.47; vlb at most 0.65.
    assert history.loss[1] < 0.9 * history.loss[0]
    assert history.vlb[1] < 0.8 * history.vlb[0]


def test_the_students_own_weights_are_the_last_raw_ones(diffusion, data_source):
    student = toy_student()
    averaged, _ = quietly(student, data_source, diffusion, 20)
    assert not torch.equal(weights(student), weights(averaged))
    assert not torch.equal(weights(student), weights(toy_student()))
    assert not averaged.training


def test_a_network_that_learns_no_variance_is_trained_on_simple_alone(diffusion, data_source):
    student = networks.Denoiser(networks.MLP(out_channels=2))
    _, history = quietly(student, data_source, diffusion, 20)
    assert history.loss == history.simple
    assert history.vlb == [0.0, 0.0]


def test_the_gradient_is_clipped_only_on_request(diffusion, ring):
    norms = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: norms.append(
            torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]).norm()
        )
    )
    try:
        for clip in (None, 0.01):
            quietly(toy_student(), toy_source("data", diffusion, ring), diffusion, 5, gradient_clip=clip)
    finally:
        hook.remove()
    free, clipped = torch.stack(norms).split(5)
    assert float(free.min()) > 0.02
    assert_close(clipped, torch.full((5,), 0.01), rtol=1e-3, atol=0)


class Two:
    """A source whose batches are two of another's."""

    def __init__(self, source):
        self.source = source

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __iter__(self):
        return self

    def __next__(self):
        one, other = next(self.source), next(self.source)
        target = [torch.cat(parts) for parts in zip(one.target, other.target, strict=True)]
        x_t, t, eps = (torch.cat([getattr(b, name) for b in (one, other)]) for name in ("x_t", "t", "eps"))
        return dataclasses.replace(one, x_t=x_t, t=t, eps=eps, target=type(one.target)(*target))


@pytest.mark.parametrize("clip", [None, 0.01])
def test_a_step_in_parts_is_that_of_the_whole_batch(clip, diffusion, ring):
    """Gradient, its clipping, and the losses that are reported."""
    found = []
    for source, accumulate in (
        (toy_source("data", diffusion, ring), 2),
        (Two(toy_source("data", diffusion, ring)), 1),
    ):
        options = {"accumulate": accumulate, "gradient_clip": clip}
        student, history = quietly(toy_student(), source, diffusion, 10, **options)
        found.append((weights(student), history.loss))
    (in_parts, losses), (whole, expected) = found
    assert_close(in_parts, whole, atol=1e-5, rtol=1e-4)
    assert losses == pytest.approx(expected, rel=1e-4)


def test_a_checkpoint_says_in_how_many_parts_a_batch_was_computed(diffusion, ring, tmp_path):
    def go_on(accumulate):
        quietly(
            toy_student(), toy_source("data", diffusion, ring), diffusion, 4,
            accumulate=accumulate, checkpoint=tmp_path, checkpoint_every=2,
        )  # fmt: skip

    go_on(2)
    go_on(2)
    with pytest.raises(ValueError, match="this training was begun with accumulate = 2, expected None"):
        go_on(1)


def test_the_end_is_estimated_once(diffusion, data_source, monkeypatch):
    """From the second interval of logs on: 10 steps of half a second."""
    now, lines, step = [0.0], [], torch.optim.AdamW.step

    def slow(*arguments, **options):
        now[0] += 20.0 if now[0] == 0 else 0.5  # the first, with its warm-up
        return step(*arguments, **options)

    monkeypatch.setattr("dkdm_lab.training.time.monotonic", lambda: now[0])
    monkeypatch.setattr("dkdm_lab.training.time.time", lambda: 0.0)
    monkeypatch.setattr("dkdm_lab.training.time.localtime", time.gmtime)
    monkeypatch.setattr(torch.optim.AdamW, "step", slow)
    quietly(toy_student(), data_source, diffusion, 260, report=lines.append)
    assert lines == ["a step takes 0.5 s; the other 240 about 2 min, until 00:02"]
    quietly(toy_student(), data_source, diffusion, 20, report=lines.append)
    assert len(lines) == 1  # nothing is left


def test_a_process_may_train_in_one_precision_and_then_in_another(diffusion, data_source):
    for precision in ("no", "bf16", "no"):
        _, history = quietly(toy_student(), data_source, diffusion, 10, mixed_precision=precision)
        assert math.isfinite(history.loss[-1])


@pytest.mark.parametrize("name", POOLS)
def test_the_teacher_computes_in_the_students_precision(name, diffusion, ring, monkeypatch):
    source, seen = toy_source(name, diffusion, ring), []
    evaluate, layer = source.teacher.forward, torch.nn.Linear(2, 2)

    def teacher(x_t, t):
        seen.append(layer(x_t).dtype)
        eps, v = evaluate(x_t, t)
        return eps.to(seen[-1]), v

    source.teacher.forward = teacher
    source.fill()
    filled = len(seen)
    batches, turn = [], type(source).__next__

    def kept(pool):
        batches.append(turn(pool))
        return batches[-1]

    monkeypatch.setattr(type(source), "__next__", kept)
    quietly(toy_student(), source, diffusion, 2, mixed_precision="bf16")
    assert seen[filled:] == [torch.bfloat16] * 2
    assert all(batch.eps.dtype == batch.x_t.dtype == torch.float32 for batch in batches)
    assert source.x.dtype == torch.float32


def test_compiled_networks_train_to_the_same_weights(monkeypatch, diffusion):
    """The switch reaches the student and what is scored, the pool's own its teacher; the compiler here is one
    that changes nothing, for the real one takes a minute."""
    compiled, compile = [], torch.compile

    def note(call, *, mode):
        compiled.append((call.__self__, mode))
        return compile(call, backend="eager")

    def trained(**options):
        student, scored = toy_student(), []
        source = POOLS["iterative"](diffusion, toy_student(1).eval(), 16)
        if options:
            source.compile_teacher(options["compile"])
        options |= {"callback": lambda _, averaged, __: scored.append(averaged), "callback_at": (3,)}
        averaged, _ = quietly(student, source, diffusion, 5, **options)
        return weights(averaged), [source.teacher.network, student.network, scored[0].network]

    plain, _ = trained()
    monkeypatch.setattr(torch, "compile", note)
    again, involved = trained(compile="reduce-overhead")
    assert compiled == [(network, "reduce-overhead") for network in involved]
    assert_close(again, plain)


# -- the average --------------------------------------------------------------------------------------


def test_the_average_is_that_of_the_formula(diffusion, data_source):
    """avg = d avg + (1 - d) raw, where step n = 1, 2, ... has d = min(ema, n / (9 + n)), and the first 0."""
    student, raw, averages = toy_student(), [], []

    def keep(_, averaged, __):
        raw.append(weights(student))
        averages.append(weights(averaged))

    quietly(student, data_source, diffusion, 30, ema=0.6, callback=keep, callback_at=tuple(range(1, 31)))
    expected = raw[0]
    for n, value in enumerate(raw[1:], start=2):
        decay = min(0.6, n / (9 + n))  # 0.6 from n = 14
        expected = decay * expected + (1 - decay) * value
        assert_close(averages[n - 1], expected, rtol=1e-4, atol=1e-6)


def test_the_average_is_what_is_returned(diffusion, data_source):
    seen = []

    def keep(_, averaged, __):
        seen.append(weights(averaged))

    averaged, _ = quietly(toy_student(), data_source, diffusion, 12, callback=keep, callback_at=(12,))
    assert torch.equal(seen[0], weights(averaged))


def test_fixed_parameters_stay_fixed():
    process = GaussianDiffusion.cosine(100)
    dit = networks.DiT(sample_size=8, in_channels=1, out_channels=2, hidden_size=32, depth=1, num_heads=2)
    student = networks.Denoiser(dit)
    before = student.network.position.clone()
    averaged, _ = quietly(student, NoisedImages(process, load_images("digits"), 16), process, 3)
    assert torch.equal(averaged.network.position, before)
    assert not torch.equal(averaged.network.final.weight, torch.zeros(8, 32))


# -- reports ------------------------------------------------------------------------------------------


def test_the_history_holds_the_mean_of_each_interval(diffusion, ring):
    histories = {
        every: quietly(toy_student(), toy_source("data", diffusion, ring), diffusion, 12, log_every=every)[1]
        for every in (1, 5)
    }
    assert histories[1].iteration == list(range(1, 13))
    assert histories[5].iteration == [5, 10, 12]
    for name in ("loss", "simple", "vlb"):
        each = torch.tensor(getattr(histories[1], name))
        means = torch.stack([part.mean() for part in each.split(5)])
        assert_close(torch.tensor(getattr(histories[5], name)), means)


def test_the_callback_comes_at_the_iterations_asked_for(diffusion, data_source):
    student, calls = toy_student(), []

    def callback(iteration, averaged, history):
        calls.append((iteration, averaged.training, history.iteration[-1]))

    quietly(student, data_source, diffusion, 20, callback=callback, callback_at=(10, 15, 20, 30), log_every=5)
    assert calls == [(10, False, 10), (15, False, 15), (20, False, 20)]


def test_the_callback_changes_nothing(diffusion, ring):
    with_and_without = []
    for at in ((), (3, 7)):
        student = toy_student()
        source = toy_source("data", diffusion, ring)
        quietly(student, source, diffusion, 10, callback=lambda *_: None, callback_at=at)
        with_and_without.append(weights(student))
    assert torch.equal(*with_and_without)


# -- interruption -------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


def interrupted_and_resumed(make_student, make_source, diffusion, file, **options):
    """30 iterations, lost at the 17th, gone on with from the checkpoint of the 10th by other objects."""
    options = {"checkpoint": file, "checkpoint_every": 10, **options}
    with pytest.raises(Interrupted):
        quietly(
            make_student(0), make_source(0), diffusion, 30, callback=interrupt, callback_at=(17,), **options
        )
    torch.manual_seed(99)
    student, source = make_student(1), make_source(1)
    averaged, history = quietly(student, source, diffusion, 30, **options)
    return student, averaged, history, source


def assert_same_run(resumed, unbroken):
    for ours, theirs in zip(resumed[:2], unbroken[:2], strict=True):
        assert torch.equal(weights(ours), weights(theirs))
    assert resumed[2] == unbroken[2]
    assert torch.equal(next(resumed[3]).x_t, next(unbroken[3]).x_t)


@pytest.mark.parametrize("name", SOURCES)
def test_a_resumed_training_is_the_unbroken_one_to_the_last_bit(name, diffusion, ring, tmp_path):
    def make_source(seed):
        return toy_source(name, diffusion, ring, seed)

    student, source = toy_student(0), make_source(0)
    unbroken = (student, *quietly(student, source, diffusion, 30, log_every=7), source)
    file = tmp_path / "checkpoints"
    resumed = interrupted_and_resumed(toy_student, make_source, diffusion, file, log_every=7)
    assert_same_run(resumed, unbroken)


def test_dropout_too_goes_on_to_the_last_bit(tmp_path):
    process = GaussianDiffusion.cosine(100)

    def make_student(seed):
        torch.manual_seed(seed)
        unet = networks.adm_unet(
            16, (1, 2), 1, (4,), 8, head_channels=8, groups=8, in_channels=1, dropout=0.3
        )
        return networks.Denoiser(unet)

    def make_source(seed):
        return NoisedImages(process, load_images("digits"), 16, seed=seed)

    student, source = make_student(0), make_source(0)
    unbroken = (student, *quietly(student, source, process, 30), source)
    resumed = interrupted_and_resumed(make_student, make_source, process, tmp_path / "checkpoints")
    assert_same_run(resumed, unbroken)


def test_a_training_at_its_end_is_not_trained_further(diffusion, ring, tmp_path):
    file = tmp_path / "checkpoints"
    options = {"checkpoint": file, "checkpoint_every": 10}
    quietly(toy_student(), toy_source("data", diffusion, ring), diffusion, 20, **options)
    first, _ = quietly(toy_student(), toy_source("data", diffusion, ring), diffusion, 10, **options)
    again, history = quietly(toy_student(3), toy_source("data", diffusion, ring, 3), diffusion, 10, **options)
    assert torch.equal(weights(first), weights(again))
    assert history.iteration == [10]


def test_checkpoints_are_written_whole(diffusion, data_source, tmp_path):
    quietly(toy_student(), data_source, diffusion, 20, checkpoint=tmp_path / "new" / "c", checkpoint_every=5)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [".c.lock", "c"]
    assert iterations_in(tmp_path / "new" / "c") == [10, 15]  # the last two before the end


# -- what is refused ----------------------------------------------------------------------------------


def test_a_student_of_another_shape_is_refused(diffusion, data_source):
    with pytest.raises(ValueError, match=r"the source yields \(2,\), but the student takes \(1, 8, 8\)"):
        train(networks.build("digits-student"), data_source, diffusion, 1)


class BrokenSource(NoisedImages):
    """Batches of which one has a target that is not a number."""

    def __init__(self, diffusion, ring, at):
        super().__init__(diffusion, ring.sample(100), 8)
        self.turns, self.at = itertools.count(1), at

    def __next__(self):
        batch = super().__next__()
        return dataclasses.replace(batch, eps=batch.eps * (math.nan if next(self.turns) == self.at else 1))


def test_a_loss_that_is_not_finite_ends_the_training(diffusion, ring):
    with pytest.raises(
        FloatingPointError, match="loss: found a value that is not finite at iteration 7; nothing was saved"
    ):
        quietly(toy_student(), BrokenSource(diffusion, ring, at=7), diffusion, 20, log_every=4)
