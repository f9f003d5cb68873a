"""Where a pool's samples rest between two turns: on the device, in 16 bits, or in the host's memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dkdm_lab.system.seeds import mixed

# In a precision, on the device; or in float32 in the host's memory.
STORAGES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "host": torch.float32,
}


class Storage:
    """``size`` samples of ``shape`` at rest; what enters and what leaves is float32 on ``device``.

    kind: one of :data:`STORAGES`. With 16 bits per number the samples take half the memory, and each turn
    rounds them. On the "host" they take none of the device's memory: each batch is sent to the device a turn
    ahead, and comes back while the device works on. So the host must know which samples are next without
    asking the device, and chooses them by a generator of its own.

    x: the samples, ``[size, *shape]`` on ``place``, or None before :meth:`allocate`. chooser: the generator
    that batches are chosen by: ``generator``, or the host's own, which follows from ``seed``.
    Errors: ValueError for an unknown kind.
    """

    def __init__(
        self,
        kind: str,
        size: int,
        shape: tuple[int, ...],
        device: torch.device,
        generator: torch.Generator,
        seed: int,
    ):
        if kind not in STORAGES:
            raise ValueError(f"storage: found {kind!r}, expected one of {', '.join(STORAGES)}")
        self.kind, self.size, self.shape, self.device = kind, size, shape, device
        self.dtype = STORAGES[kind]
        self.place = torch.device("cpu") if kind == "host" else device
        self.chooser = torch.Generator().manual_seed(mixed(seed, 1)) if kind == "host" else generator
        self.x: Tensor | None = None
        self._next: tuple[Tensor, Tensor] | None = None  # the next turn's rows and samples, sent ahead
        self._state_before = self.chooser.get_state()  # the chooser's, before it chose those
        self._late: tuple[Tensor, Tensor, torch.cuda.Event] | None = None  # on its way back to the host

    def allocate(self) -> None:
        """Make room for the samples. A GPU copies faster from memory of the host that is pinned."""
        size, pinned = (self.size, *self.shape), self.place != self.device
        self.x = torch.empty(size, dtype=self.dtype, device=self.place, pin_memory=pinned)

    def draw(self, select: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """The rows of this turn and their samples. select: chooses a turn's rows, on :attr:`place`."""
        if self._next is None:
            rows = select()
            x = self.take(rows)
        else:
            rows, x = self._next
        if self.kind == "host":
            self._state_before = self.chooser.get_state()
            chosen = select()
            self._next = chosen, self.take(chosen)
        return rows, x

    def take(self, rows: Tensor) -> Tensor:
        """The samples at ``rows``, ready to compute with."""
        x = self._settled()[rows]
        if self.place != self.device:
            x = x.pin_memory()
        return x.to(self.device, torch.float32, non_blocking=True)

    def put(self, rows: Tensor, x: Tensor) -> None:
        """Samples to rest at ``rows``; those among them that were sent ahead for the next turn are renewed.

        From a GPU to the host they arrive later, but before the next samples are taken.
        """
        settled = self._settled()
        if self.place == self.device:
            settled[rows] = x.to(self.dtype)
        else:
            on_their_way = torch.empty(x.shape, dtype=self.dtype, pin_memory=True)
            on_their_way.copy_(x, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            self._late = rows, on_their_way, arrived
        if self._next is not None:
            next_rows, next_x = self._next
            theirs, ours = (next_rows[:, None] == rows).nonzero(as_tuple=True)
            next_x[theirs.to(self.device)] = x[ours.to(self.device)]

    def _settled(self) -> Tensor:
        """The samples, once those that were on their way to the host have arrived."""
        if self.x is None:
            raise RuntimeError("storage: found no samples, expected allocate() before they are asked for")
        if self._late is not None:
            rows, x, arrived = self._late
            arrived.synchronize()
            self.x[rows] = x
            self._late = None
        return self.x

    def state(self) -> tuple[Tensor | None, Tensor]:
        """A copy of the samples, and the chooser's state before it chose what was sent ahead."""
        samples = None if self.x is None else self._settled().clone()
        return samples, self.chooser.get_state() if self._next is None else self._state_before

    def load(self, x: Tensor | None) -> None:
        """Take over a copy of the samples; the chooser is its owner's to restore."""
        self.x = self._next = self._late = None
        if x is not None:
            self.allocate()
            self._settled().copy_(x)
