"""Frames with a slider: one self-contained piece of HTML."""

import re

import matplotlib.pyplot as plt
import pytest

from dkdm_lab.notebook.explore import frames


def figures(n):
    return [plt.figure(figsize=(1, 1)) for _ in range(n)]


def test_every_frame_is_inside_and_one_is_shown():
    html = frames(figures(3), ["a", "b", "c"], "step", start=1).data
    assert html.count("data:image/png;base64,") == 3
    assert [
        re.search(r'style="([^"]*)"', image).group(1).endswith("none") for image in html.split("<img")[1:]
    ] == [
        True,
        False,
        True,
    ]
    assert "http" not in html


def test_figures_are_closed():
    before = len(plt.get_fignums())
    frames(figures(2), ["a", "b"], "step")
    assert len(plt.get_fignums()) == before


def test_labels_must_match():
    with pytest.raises(ValueError, match="found 2 figures and 1 labels"):
        frames(figures(2), ["a"], "step")
