"""Seeds: one of several, noise that belongs to a sample's number, and generators that go on."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def numbered_noise(
    seed: int, level: int, numbers: range, shape: tuple[int, ...], device: str | torch.device = "cpu"
) -> Tensor:
    """The noise of samples at a level by their numbers, standard normal ``[len(numbers), *shape]``: a
    sample's is the same whatever others are drawn with it. Drawn in blocks, each from a seed of its own."""
    first, last = numbers.start // _BLOCK, (numbers.stop - 1) // _BLOCK
    blocks = []
    for block in range(first, last + 1):
        generator = torch.Generator(device).manual_seed(mixed(seed, level, block))
        blocks.append(torch.randn(_BLOCK, *shape, generator=generator, device=device))
    return torch.cat(blocks)[numbers.start - first * _BLOCK : numbers.stop - first * _BLOCK]


_BLOCK = 64  # samples whose noise is drawn together: a smaller batch wastes some, a larger one seldom any


def mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def restore(generator: torch.Generator, state: Tensor) -> None:
    """Go on where a generator's state was taken. A GPU draws other numbers than a CPU: where the state is of
    the other kind, the generator is seeded anew from it."""
    if len(state) == len(generator.get_state()):
        generator.set_state(state.cpu())
    else:
        digest = hashlib.sha256(state.cpu().numpy().tobytes()).digest()
        generator.manual_seed(int.from_bytes(digest[:7], "big"))


def branch(generator: torch.Generator, rank: int) -> None:
    """Seed a generator anew from what it would have drawn next and a rank."""
    drawn = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    generator.manual_seed(mixed(drawn, rank))
