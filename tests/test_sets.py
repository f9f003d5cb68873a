"""What a data set says of itself, for every preset."""

import pytest
import torch

from dkdm_lab.data.sets import judged
from dkdm_lab.experiments.presets import PRESETS


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_and_its_data_agree(preset):
    data = judged(preset.data)
    assert data.metric == preset.metric
    assert (data.features or "inception") == preset.features


def test_the_toys_points_are_drawn_the_same_each_time():
    toy = judged("toy")
    assert not toy.of_images and toy.training_set().shape == (100_000, 2)
    assert torch.equal(toy.reference(30), toy.reference(30))


def test_the_digits_reference_is_their_beginning():
    digits = judged("digits")
    assert len(digits.training_set()) == len(digits.reference(samples=7)) == 1797
    assert torch.equal(digits.reference(samples=7, images=20), digits.training_set()[:20])


def test_a_set_that_is_not_known_by_name_holds_photographs():
    found = judged("holiday")
    assert (found.features, found.metric, found.prefix) == ("inception", "FID", "")
    assert found.teacher_metrics == ("FID", "sFID") and judged("digits").teacher_metrics == ("FID",)
