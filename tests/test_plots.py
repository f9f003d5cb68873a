"""Figures: a logarithmic axis shows what is above 0 only."""

import pytest

from dkdm_lab import plots


@pytest.mark.parametrize("lowest, scale", [(0.01, "log"), (0.0, "linear"), (-0.002, "linear")])
def test_a_curve_below_zero_is_not_hidden_by_a_logarithmic_axis(lowest, scale):
    lines = {"shuffled": ([1, 2], [2.0, 0.5]), "dynamic": ([1, 2], [1.0, lowest])}
    (axis,) = plots.curves(lines, "iteration", "energy distance", log_y=True).axes
    assert axis.get_yscale() == scale
    low, high = axis.get_ylim()
    assert all(low <= value <= high for _, y in lines.values() for value in y)


@pytest.mark.parametrize("deviation, scale", [(0.1, "log"), (0.3, "linear")])
def test_no_whisker_is_cut_off_at_zero(deviation, scale):
    rows = {"data-free": (3.0, 0.5), "dynamic": (0.2, deviation)}
    (axis,) = plots.spreads(rows, "energy distance").axes
    assert axis.get_xscale() == scale
    assert axis.get_xlim()[0] <= 0.2 - deviation
