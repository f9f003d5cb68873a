"""Several processes at one training: which of them this is, and what they agree on.

`accelerate launch` and `torchrun` start them. Each is a *rank*, with its own shard of the pool and its own
noise; rank 0 is the *main* one, which alone writes, scores and reports. Without a launcher there is no other.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from dkdm_lab.system.budget import OutOfTime
from dkdm_lab.system.seeds import mixed

_by_itself = False


def rank() -> int:
    """Which of the processes this is, from 0."""
    return 0 if _by_itself else _state().process_index


def world_size() -> int:
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


# What gloo, NCCL and their sockets say of a peer that is gone.
_GONE = re.compile(
    "connection (closed|reset|refused)|broken pipe|socket|timed? ?out|remote process exited|gloo|nccl", re.I
)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Say plainly that another rank is gone, where what carries the messages says it in words of its own:
    RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or str(error).startswith("rank ") or not _GONE.search(str(error)):
            raise
        raise RuntimeError(
            f"rank {rank()} of {world_size()}: another process of this training is gone: it was killed or "
            "failed, and if it said why, it did so above; what was saved before stays, the same command goes "
            f"on from there ({str(error).splitlines()[0]})"
        ) from error


def held_by_main(context: contextlib.AbstractContextManager) -> contextlib.AbstractContextManager:
    """A context that only the main rank enters, as its hold on a folder."""
    return context if rank() == 0 else contextlib.nullcontext()


def done_by_main(work: Callable[[], None]) -> None:
    """Let the main rank do ``work`` by itself while the others wait; where its time is over, all leave."""
    late = None
    if rank() == 0:
        try:
            with by_itself():
                work()
        except OutOfTime as error:
            late = str(error)
    if late := broadcast(late):
        raise OutOfTime(late)


@together()
def barrier() -> None:
    """Until every rank has come here."""
    if world_size() > 1:
        _state().wait_for_everyone()


@together()
def gather(value) -> list:
    """The value of each rank, in their order; of small things only."""
    return [value] if world_size() == 1 else gather_object([value])


@together()
def broadcast(value):
    """The main rank's value."""
    return value if world_size() == 1 else broadcast_object_list([value])[0]


@together()
def reduce(x: torch.Tensor, how: str) -> torch.Tensor:
    """``x`` over all ranks, by "SUM", "MIN" or "MAX"."""
    if world_size() == 1:
        return x
    x = x.clone()
    torch.distributed.all_reduce(x, getattr(torch.distributed.ReduceOp, how))
    return x


def local_batch_size(batch_size: int) -> int:
    """How many of a batch's samples are this rank's; ValueError where they cannot be shared evenly."""
    if batch_size % world_size():
        raise ValueError(
            f"batch_size: found {batch_size}, expected a multiple of the {world_size()} processes"
        )
    return batch_size // world_size()


def rank_seed(seed: int) -> int:
    """A seed for this rank's own random numbers; the main one's is ``seed`` itself."""
    return seed if rank() == 0 else mixed(seed, rank())
