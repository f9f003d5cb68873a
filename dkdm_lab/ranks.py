"""Several processes at one training: which of them this is, and what they agree on.

`accelerate launch` and `torchrun` start them. Each is a *rank*, with its own shard of the pool and its own
noise; rank 0 is the *main* one, which alone writes, scores and reports. Without a launcher there is no other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from dkdm_lab.budget import OutOfTime
from dkdm_lab.diffusion import mixed

_by_itself = False


def rank() -> int:
    """Which of the processes this is, from 0."""
    return 0 if _by_itself else _state().process_index


def number() -> int:
    """How many processes there are."""
    return 1 if _by_itself else _state().num_processes


def _state() -> PartialState:
    # The others wait while the main rank scores, so nobody gives up before a day has passed.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))


@contextlib.contextmanager
def by_itself() -> Iterator[None]:
    """What one rank does without the others: nothing in here waits for them."""
    global _by_itself
    before, _by_itself = _by_itself, True
    try:
        yield
    finally:
        _by_itself = before


def mains_own(context: contextlib.AbstractContextManager) -> contextlib.AbstractContextManager:
    """A context that only the main rank enters, as its hold on a folder."""
    return context if rank() == 0 else contextlib.nullcontext()


def mains_work(work: Callable[[], None]) -> None:
    """Let the main rank do ``work`` by itself while the others wait; where its time is over, all leave."""
    late = None
    if rank() == 0:
        try:
            with by_itself():
                work()
        except OutOfTime as error:
            late = str(error)
    if late := mains(late):
        raise OutOfTime(late)


def wait() -> None:
    """Until every rank has come here."""
    if number() > 1:
        _state().wait_for_everyone()


def everyones(value) -> list:
    """The value of each rank, in their order; of small things only."""
    return [value] if number() == 1 else gather_object([value])


def mains(value):
    """The main rank's value."""
    return value if number() == 1 else broadcast_object_list([value])[0]


def reduced(x: torch.Tensor, how: str) -> torch.Tensor:
    """``x`` over all ranks, by "SUM", "MIN" or "MAX"."""
    if number() == 1:
        return x
    x = x.clone()
    torch.distributed.all_reduce(x, getattr(torch.distributed.ReduceOp, how))
    return x


def share(batch_size: int) -> int:
    """How many of a batch's samples are this rank's; ValueError where they cannot be shared evenly."""
    if batch_size % number():
        raise ValueError(f"batch_size: found {batch_size}, expected a multiple of the {number()} processes")
    return batch_size // number()


def seed(seed: int) -> int:
    """A seed for this rank's own random numbers; the main one's is ``seed`` itself."""
    return seed if rank() == 0 else mixed(seed, rank())
