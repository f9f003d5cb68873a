"""Figures: a logarithmic axis shows what is above 0 only."""

import io

import pytest
import torch

from dkdm_lab.system import figures


@pytest.mark.parametrize("lowest, scale", [(0.01, "log"), (0.0, "linear"), (-0.002, "linear")])
def test_a_curve_below_zero_is_not_hidden_by_a_logarithmic_axis(lowest, scale):
    lines = {"shuffled": ([1, 2], [2.0, 0.5]), "dynamic": ([1, 2], [1.0, lowest])}
    (axis,) = figures.curves(lines, "iteration", "energy distance", log_y=True).axes
    assert axis.get_yscale() == scale
    low, high = axis.get_ylim()
    assert all(low <= value <= high for _, y in lines.values() for value in y)


@pytest.mark.parametrize("deviation, scale", [(0.1, "log"), (0.3, "linear")])
def test_no_whisker_is_cut_off_at_zero(deviation, scale):
    rows = {"data-free": (3.0, 0.5), "dynamic": (0.2, deviation)}
    (axis,) = figures.spreads(rows, "energy distance").axes
    assert axis.get_xscale() == scale
    assert axis.get_xlim()[0] <= 0.2 - deviation


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_has_a_labelled_row_for_each_name(channels):
    images = torch.randint(256, (3, channels, 8, 8), dtype=torch.uint8)
    with figures.style():
        figure = figures.sample_sheet({"teacher": images, "data-limited 5%": 255 - images}, ["0", "1", "2"])
    above, below = figure.axes
    assert [axis.get_ylabel() for axis in (above, below)] == ["teacher", "data-limited 5%"]
    assert below.yaxis.label.get_color() == figures.COLOURS["data-limited"]
    assert [label.get_text() for label in above.get_xticklabels()] == ["0", "1", "2"]
    assert above.images[0].get_interpolation() == "nearest"  # pixels stay pixels
    shown = above.images[0].get_array()
    for column, middle in enumerate(above.get_xticks()):  # each label stands over its own image
        left = round(middle - 3.5)
        expected = images[column].permute(1, 2, 0).squeeze(-1).numpy()
        assert (shown[:, left : left + 8] == expected).all()
    figure.savefig(io.BytesIO(), dpi=figure.dpi)  # which lays it out
    box = above.get_window_extent()
    assert box.width / 3 / figure.dpi == pytest.approx(0.9, rel=0.05)  # an image is 0.9 inches wide
    assert all(text.get_window_extent().x0 >= 0 for text in (above.yaxis.label, below.yaxis.label))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 3, 8, 8), (3, 1, 4, 8), (3, 64)])
def test_a_sheet_of_rows_that_do_not_fit_is_refused(shape):
    rows = {"teacher": torch.zeros(3, 1, 8, 8), "student": torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"row 'student': found \["):
        figures.sample_sheet(rows)


def test_each_loss_has_a_panel_and_its_unit():
    figure = figures.losses([10, 20, 30], {"L'simple": [0.9, 0.5, 0.2], "L'vlb, bits": [0.1, 0.0, -0.1]})
    assert [axis.get_ylabel() for axis in figure.axes] == ["L'simple", "L'vlb, bits"]
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "linear"]
    assert {axis.get_xlabel() for axis in figure.axes} == {"iteration"}
