"""The one type in which the methods differ: every source is a ``Source``, and a stranger is refused."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from dkdm_lab import networks
from dkdm_lab.data import GaussianMixture
from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.pools import DynamicPool, IterativePool, ShuffledPool
from dkdm_lab.sources import Batch, Conditions, NoisedImages, Replay, Source
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
        Replay(DynamicPool(PROCESS, teacher, 16, rho=0.2), 8, 2),
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
    for _ in range(4):  # a replayed answer serves as many batches
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


# -- replay -------------------------------------------------------------------------------------------


def rows_of(*batches: Batch) -> list[tuple[float, ...]]:
    """Everything that batches hold, a tuple per sample, in one order whatever the batches' is."""
    parts = [
        torch.cat([b.x_t, b.t[:, None], b.eps, *([] if b.target is None else b.target)], dim=1).double()
        for b in batches
    ]
    return sorted(map(tuple, torch.cat(parts).tolist()))


def pool(batch_size: int) -> DynamicPool:
    return DynamicPool(PROCESS, GaussianMixture.ring().denoiser(PROCESS), batch_size, rho=0.4, seed=3)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("turns", [1, 4])
def test_replay_shows_every_answer_so_often_and_no_other(times: int, turns: int) -> None:
    """Each pass through an answer shows all of it once, so no batch holds a sample twice."""
    source, alone = Replay(pool(8 * turns), 8, times), pool(8 * turns)
    for _ in range(3):
        answer = rows_of(next(alone))
        for _ in range(times):
            shown = [next(source) for _ in range(turns)]
            assert all(batch.x_t.shape == (8, 2) for batch in shown)
            assert rows_of(*shown) == answer
        assert source.evaluations == alone.evaluations


def test_replay_mixes_the_turns() -> None:
    source = Replay(pool(32), 8, 2)
    first, second = ([next(source).x_t for _ in range(4)] for _ in range(2))
    assert not any(torch.equal(a, b) for a in first for b in second)


@pytest.mark.parametrize("shown", range(9))
def test_replay_goes_on_in_the_middle_of_an_answer(shown: int, tmp_path: Path) -> None:
    source, other = Replay(pool(32), 8, 2), Replay(pool(32), 8, 2, seed=5)
    for _ in range(shown):
        next(source)
    torch.save(source.state_dict(), tmp_path / "replay.pt")
    expected = [next(source) for _ in range(12)]
    other.load_state_dict(torch.load(tmp_path / "replay.pt", weights_only=True))
    for batch in expected:
        found = next(other)
        assert torch.equal(found.x_t, batch.x_t) and rows_of(found) == rows_of(batch)


def test_replay_keeps_each_samples_condition() -> None:
    labels = torch.arange(40) % 10
    x = labels[:, None].float().expand(-1, 2)  # a sample's values are its label
    images = NoisedImages(PROCESS, x, 20, conditions=Conditions.classes(10), labels=labels)
    for batch in (next(Replay(images, 5, 2)) for _ in range(3)):
        assert batch.condition is not None and batch.target is not None
        alpha_bar = PROCESS.log_alpha_bar(batch.t).exp().float()[:, None]
        x0 = (batch.x_t - (1 - alpha_bar).sqrt() * batch.eps) / alpha_bar.sqrt()
        assert torch.equal(x0[:, 0].round().long(), batch.condition)


@pytest.mark.parametrize(
    "batch_size, times, message",
    [
        (8, 0, "replay: found 0, expected at least 1, which shows every answer once"),
        (8, -2, "replay: found -2, expected at least 1"),
        (5, 1, "batch_size: found 5, expected a divisor of the source's 16"),
        (32, 1, "batch_size: found 32, expected a divisor"),
        (0, 1, "batch_size: found 0, expected a divisor"),
    ],
)
def test_a_replay_that_cannot_be_is_refused(batch_size: int, times: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replay(pool(16), batch_size, times)


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
