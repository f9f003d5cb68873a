"""Measurements: that they measure the loop they say, not how fast this machine is."""

import pytest

from dkdm_lab import networks
from dkdm_lab.experiments import presets, speed
from dkdm_lab.system import profile
from dkdm_lab.system.profile import SECTIONS

pytestmark = pytest.mark.usefixtures("yardstick")  # what is measured names the classifier's hash

TINY = {"batch_size": 16, "rho": 0.05}


@pytest.mark.parametrize("method", ["data-based", "dynamic"])
def test_a_step_is_divided_into_its_parts(method):
    preset = presets.get("digits", **TINY)
    cost = speed.training_cost(preset, method, iterations=2, repeats=1)
    assert cost.seconds > 0 and cost.peak_bytes is None  # the CPU keeps no count
    assert tuple(cost.shares) == SECTIONS
    assert sum(cost.shares.values()) == pytest.approx(1)
    assert all(share > 0 for part, share in cost.shares.items() if part != "teacher")
    assert (cost.shares["teacher"] > 0) == (method == "dynamic")


def test_the_teacher_weighs_what_it_does(monkeypatch):
    """By a clock that only networks move on, each evaluation by the operations it takes."""
    now, build, names = [0.0], networks.build, ("digits-teacher", "digits-53k", "digits-student")
    work = {name: networks.flops(name) for name in names}

    def ticking(name):
        network = build(name)
        network.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + work[name]))
        return network

    monkeypatch.setattr(profile, "_now", lambda: now[0])
    monkeypatch.setattr(networks, "build", ticking)
    for teacher in ("digits-teacher", "digits-53k"):
        preset = presets.get("digits", **TINY, teacher=teacher)
        shares = speed.training_cost(preset, "dynamic", iterations=1, repeats=1).shares
        assert shares["teacher"] == pytest.approx(work[teacher] / (work[teacher] + work[preset.student]))


def test_a_step_is_timed_from_batch_to_batch(monkeypatch):
    """What a training does once, before its first step or after its last, is not a step's."""
    now = [0.0]

    def train(student, source, diffusion, iterations, **_):
        now[0] += 1000.0
        for _ in range(iterations):
            with profile.section("forward"):
                next(source)
            now[0] += 2.0
        now[0] += 1000.0

    monkeypatch.setattr(speed, "_moment", lambda: now[0])
    monkeypatch.setattr(speed, "train", train)
    monkeypatch.setattr(speed, "seconds_of", lambda *_: now.__setitem__(0, now[0] + 500) or 1.0)
    preset = presets.get("digits", **TINY)
    assert speed.training_cost(preset, "data-based", iterations=3, repeats=2).seconds == 2.0
    found = speed.overhead(preset, "data-based", iterations=3, repeats=1)
    assert (found.whole, found.ratio) == (2.0, 2.0)


def test_the_pool_is_weighed_by_its_samples():
    preset = presets.get("digits", **TINY)
    cost = speed.training_cost(preset, "dynamic", iterations=1, repeats=1)
    samples = 5 * 16
    assert cost.source_bytes == samples * (64 * 4 + 8)  # float32 pixels and an int64 level


def test_a_measurement_keeps_ratios_and_no_seconds_of_a_cpu(monkeypatch):
    """Of costs that are given here: how long anything takes depends on what else the machine does."""
    preset, sizes = presets.get("digits", **TINY), ("digits-student", "digits-53k")
    seconds = {"data-based": 2.0, "dynamic": 3.0, "digits-student": 8.0, "digits-53k": 4.0}
    shares = {part: 0.25 for part in SECTIONS}
    cost = lambda _, method, seed: speed.Cost(seconds[method], shares, None, 100)  # noqa: E731
    monkeypatch.setattr(speed, "training_cost", cost)
    monkeypatch.setattr(speed, "sampling_seconds", lambda name, n, steps: seconds[name])
    found = speed.measure(preset, sizes)
    assert {method: of["time"] for method, of in found["training"].items()} == {
        "data-based": 1.0,
        "dynamic": 1.5,
    }
    assert found["training"]["dynamic"] == {"time": 1.5, "shares": shares, "source_bytes": 100}
    assert found["sampling"] == {"digits-student": {"time": 1.0}, "digits-53k": {"time": 0.5}}
    assert found["preset"] == "digits" and found["made_with"]["hardware"].startswith("CPU")


def test_sampling_is_timed():
    assert speed.sampling_seconds("digits-53k", 2, 2, repeats=1) > 0
