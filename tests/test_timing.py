"""Measurements: that they measure the loop they say, not how fast this machine is."""

import pytest

from dkdm_lab import presets, timing
from dkdm_lab.clock import PARTS

pytestmark = pytest.mark.usefixtures("yardstick")  # what is measured names the classifier's hash

TINY = {"batch_size": 16, "rho": 0.05}


@pytest.mark.parametrize("method", ["data-based", "dynamic"])
def test_a_step_is_divided_into_its_parts(method):
    preset = presets.get("digits", **TINY)
    cost = timing.training_cost(preset, method, iterations=2, repeats=1)
    assert cost.seconds > 0 and cost.peak_bytes is None  # the CPU keeps no count
    assert tuple(cost.shares) == PARTS
    assert sum(cost.shares.values()) == pytest.approx(1)
    assert all(share > 0 for part, share in cost.shares.items() if part != "teacher")
    assert (cost.shares["teacher"] > 0) == (method == "dynamic")


def test_the_teacher_weighs_what_it_does():
    """A teacher of four times the operations takes more of the step than one of a fourth."""

    def share(teacher):
        preset = presets.get("digits", **TINY, teacher=teacher)
        return timing.training_cost(preset, "dynamic", iterations=1, repeats=1).shares["teacher"]

    assert share("digits-teacher") > share("digits-53k")


def test_the_pool_is_weighed_by_its_samples():
    preset = presets.get("digits", **TINY)
    cost = timing.training_cost(preset, "dynamic", iterations=1, repeats=1)
    samples = 5 * 16
    assert cost.source_bytes == samples * (64 * 4 + 8)  # float32 pixels and an int64 level


def test_a_measurement_keeps_ratios_and_no_seconds_of_a_cpu():
    found = timing.measure(presets.get("digits", **TINY), ("digits-student", "digits-53k"))
    assert found["training"]["data-based"]["time"] == 1 and found["training"]["dynamic"]["time"] > 1
    assert found["sampling"]["digits-student"] == {"time": 1.0}
    assert "seconds" not in str(found["training"])
