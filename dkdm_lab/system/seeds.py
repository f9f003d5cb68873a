"""Random numbers: a seed of several, noise by a sample's number, generators that go on where they were."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def numbered_noise(
    seed: int, level: int, numbers: range, shape: tuple[int, ...], device: str | torch.device = "cpu"
) -> Tensor:
    """The noise at a level of the samples with these numbers, standard normal ``[len(numbers), *shape]``.

    A sample's noise is the same whatever others are drawn with it. It is drawn in blocks, each from a seed of
    its own.
    """
    first, last = numbers.start // _BLOCK, (numbers.stop - 1) // _BLOCK
    blocks = []
    for block in range(first, last + 1):
        generator = torch.Generator(device).manual_seed(mixed(seed, level, block))
        blocks.append(torch.randn(_BLOCK, *shape, generator=generator, device=device))
    return torch.cat(blocks)[numbers.start - first * _BLOCK : numbers.stop - first * _BLOCK]


_BLOCK = 64  # samples whose noise is drawn together; a smaller batch wastes some of it


def mixed(*numbers: int) -> int:
    """One seed that depends on all of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def restore(generator: torch.Generator, state: Tensor) -> None:
    """Let a generator go on where ``state`` was taken. A GPU draws other numbers than a CPU: where the state
    is of the other kind of device, the generator is seeded anew from it."""
    if len(state) == len(generator.get_state()):
        generator.set_state(state.cpu())
    else:
        digest = hashlib.sha256(state.cpu().numpy().tobytes()).digest()
        generator.manual_seed(int.from_bytes(digest[:7], "big"))


def branch(generator: torch.Generator, rank: int) -> None:
    """Seed a generator anew from what it would have drawn next and a rank."""
    drawn = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    generator.manual_seed(mixed(drawn, rank))


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of every generator that a network's dropout or a source may draw from, in plain values."""
    numpy = dict(np.random.get_state(legacy=False))  # noqa: NPY002
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate(), "numpy": numpy}


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Let them all go on where :func:`random_states` was taken."""
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
    random.setstate(states["python"])
    numpy = states["numpy"]
    np.random.set_state(  # noqa: NPY002
        {**numpy, "state": {**numpy["state"], "key": np.array(numpy["state"]["key"], np.uint32)}}
    )
