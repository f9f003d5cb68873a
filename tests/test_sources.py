"""The one type in which the methods differ: every source is a ``Source``, and a stranger is refused."""

import inspect
from typing import Any

import pytest
import torch

from dkdm_lab import networks
from dkdm_lab.data import GaussianMixture
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.pools import DynamicPool, IterativePool, ShuffledPool
from dkdm_lab.sources import Batch, NoisedImages, Source
from dkdm_lab.training import train

PROCESS = GaussianDiffusion.cosine(20, clip=False)


def every_source() -> list[Source]:
    """One of each; the type checker of `make lint` compares them with the protocol here."""
    ring = GaussianMixture.ring()
    teacher = ring.denoiser(PROCESS)
    return [
        NoisedImages(PROCESS, ring.sample(100), 8),
        IterativePool(PROCESS, teacher, 8),
        ShuffledPool(PROCESS, teacher, 8),
        DynamicPool(PROCESS, teacher, 8, rho=0.2),
    ]


MEMBERS = sorted(name for name in vars(Source) if not name.startswith("_"))
by_source = pytest.mark.parametrize("source", every_source(), ids=lambda source: type(source).__name__)


@by_source
def test_every_source_has_what_the_protocol_asks_for(source: Source) -> None:
    assert MEMBERS == [
        "batch_size",
        "device",
        "evaluations",
        "load_shards",
        "load_state_dict",
        "shape",
        "state_dict",
    ]
    assert (source.shape, source.device, source.batch_size) == ((2,), torch.device("cpu"), 8)
    for name in ("load_shards", "load_state_dict", "state_dict"):
        asked = inspect.signature(getattr(Source, name)).parameters
        assert list(inspect.signature(getattr(type(source), name)).parameters) == list(asked)
    assert iter(source) is source
    batch = next(source)
    assert isinstance(batch, Batch) and batch.x_t.shape == (8, 2)


@by_source
def test_evaluations_are_those_of_a_teacher(source: Source) -> None:
    before = source.evaluations
    next(source)
    spent = source.evaluations - before
    assert spent == 0 if isinstance(source, NoisedImages) else spent >= 8


@by_source
def test_a_state_goes_on_and_is_dealt_out(source: Source) -> None:
    next(source)
    state = source.state_dict()
    expected = next(source).x_t
    source.load_state_dict(state)
    assert torch.equal(next(source).x_t, expected)
    following = next(source).x_t
    source.load_shards([state], 0, 1)
    next(source)  # a pool's samples are still those of the state; its noise is another from here on
    assert not torch.equal(next(source).x_t, following)
    source.load_state_dict(state)


class Stranger:
    """An iterator of batches and nothing more."""

    shape, device, batch_size = (2,), torch.device("cpu"), 8

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Batch:
        raise AssertionError("asked for a batch before it was refused")


@pytest.mark.parametrize(
    "source, message",
    [
        (
            Stranger(),
            "a Stranger without evaluations, load_shards, load_state_dict, state_dict; expected a S",
        ),
        ([], "a list without __next__, batch_size, device, evaluations, load_shards"),
        (None, "a NoneType without __iter__, __next__, "),
    ],
)
def test_a_stranger_is_refused_in_one_sentence(source: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"source: found {message}") as refused:
        train(networks.build("toy-student"), source, PROCESS, 1)
    assert "\n" not in str(refused.value)


def test_nothing_is_probed_by_getattr() -> None:
    assert "getattr(source" not in inspect.getsource(inspect.getmodule(train))  # type: ignore[arg-type]
