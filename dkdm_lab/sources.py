"""Sources: where training triples come from, and the type in which they pass from room to room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from dkdm_lab.data.images import to_model
from dkdm_lab.diffusion import Gaussian, GaussianDiffusion
from dkdm_lab.system.seeds import branch, mixed


@dataclass
class Batch:
    """What a source yields and the loss takes: the one type that passes between rooms.

    x_t: ``[B, *shape]`` noisy samples. t: ``[B]`` int64, 0-based. eps: the target of the noise prediction,
    shaped as ``x_t``. target: that of ``p(x_{t-1} | x_t)``, or None where only L_simple is trained.
    observed: True where ``x_0`` came from 8-bit images. Then ``target.mean`` at ``t = 0`` *is* ``x_0``, and
    L_vlb there is the likelihood of its 8-bit values rather than a KL. condition: what each sample is
    conditioned on, ``[B, ...]`` as the network takes it, or None.
    """

    x_t: Tensor
    t: Tensor
    eps: Tensor
    target: Gaussian | None
    observed: bool = False
    condition: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Batch:
        """The samples at ``rows``, indices ``[n]``, as a batch of their own."""
        target = None if self.target is None else Gaussian(*(part[rows] for part in self.target))
        condition = None if self.condition is None else self.condition[rows]
        return Batch(self.x_t[rows], self.t[rows], self.eps[rows], target, self.observed, condition)


class Source(Protocol):
    """Where batches come from: the one thing in which the paper's methods differ.

    An endless iterator of :class:`Batch`. Its state is all that decides the next batches, so that a training
    that goes on sees those that it would have seen. :class:`NoisedImages` and the pools are sources.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @property
    def device(self) -> torch.device:
        """Where its batches lie, and where the student trains."""

    @property
    def batch_size(self) -> int:
        """The number of samples in a batch."""

    @property
    def evaluations(self) -> int:
        """How many samples a teacher has evaluated so far; 0 where there is no teacher."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]:
        """All that decides the next batches; tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken. ValueError for the state of another source."""

    def load_shards(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Go on after a training by another number of ranks.

        states: those of its ranks, in their order. Each of the ``world_size`` ranks of this training takes
        its share of the samples, and draws noise that none of the others draws.
        """


_MEMBERS = ("__iter__", "__next__", *sorted(name for name in vars(Source) if not name.startswith("_")))


def check_source(source: object) -> None:
    """TypeError, in one sentence, for an object that is not a :class:`Source`."""
    missing = [name for name in _MEMBERS if not hasattr(source, name)]
    if missing:
        raise TypeError(
            f"source: found a {type(source).__name__} without {', '.join(missing)}; expected a Source, such "
            "as NoisedImages or a pool"
        )


NULL = -1  # the index of the null condition, wherever the index of a condition is expected


class Conditions:
    """What samples can be conditioned on: class labels ``[K]``, or text embeddings ``[K, L, D]``.

    Sources keep each sample's condition as its index here. null: the condition that stands for none, shaped
    as one of ``values``; without it no condition is dropped and no answer can be guided. dropout: the share
    of a batch whose condition is replaced by the null condition, as classifier-free guidance is trained.
    names: what each is called, such as the prompts behind the embeddings; None where nobody can say, and for
    labels, which are numbers. Errors: ValueError for an empty list and for parts that do not fit together.
    """

    def __init__(
        self,
        values: Tensor,
        null: Tensor | None = None,
        dropout: float = 0.1,
        names: Sequence[str] | None = None,
    ):
        if len(values) == 0:
            raise ValueError("conditions: found none, expected at least one")
        if null is not None and null.shape != values.shape[1:]:
            raise ValueError(
                f"null condition: found shape {tuple(null.shape)}, expected {tuple(values.shape[1:])}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: found {dropout}, expected a share in [0, 1)")
        if names is not None and len(names) != len(values):
            raise ValueError(f"names: found {len(names)}, expected one for each of {len(values)} conditions")
        self.values, self.null, self.names = values, null, names
        self.dropout = 0.0 if null is None else dropout
        self._table = values if null is None else torch.cat([values, null[None]])  # NULL is its last row

    @classmethod
    def classes(cls, count: int, null: int | None = None, dropout: float = 0.1) -> Conditions:
        """The labels 0 to ``count`` - 1. null: the label that stands for none."""
        return cls(torch.arange(count), None if null is None else torch.tensor(null), dropout)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The conditions at these indices, which may be :data:`NULL`, as the network takes them."""
        return self._table[index]

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """``[n]`` indices, drawn evenly from all conditions but the null one, on the generator's device."""
        return torch.randint(len(self), (n,), generator=generator, device=generator.device)

    def to(self, device: str | torch.device) -> Conditions:
        """The same conditions on another device."""
        null = None if self.null is None else self.null.to(device)
        return Conditions(self.values.to(device), null, self.dropout, self.names)


class NoisedImages:
    """The batches of Algorithm 2: real or synthetic samples, uniform t, fresh noise. A :class:`Source`.

    data: uint8 images ``[N, C, H, W]``, scaled to [-1, 1] batch by batch, or float samples ``[N, ...]``,
    used as they are. flip: mirror each image left to right half of the time, as ADM trains. Each pass over
    the data is a fresh permutation, of which the incomplete last batch is dropped. conditions, labels: for a
    conditional network, the conditions, and ``[N]`` int64, the index of each sample's own. evaluations: what
    a teacher has spent on the data, where it made them. Errors: ValueError for fewer samples than a batch
    has, and for labels that do not belong to the data.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        data: Tensor,
        batch_size: int,
        flip: bool = False,
        conditions: Conditions | None = None,
        labels: Tensor | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ):
        if len(data) < batch_size:
            raise ValueError(f"data: found {len(data)} samples, expected at least one batch of {batch_size}")
        if conditions is not None and (labels is None or len(labels) != len(data)):
            found = "None" if labels is None else len(labels)
            raise ValueError(f"labels: found {found}, expected one for each of {len(data)} samples")
        self.diffusion, self.data, self.batch_size = diffusion, data, batch_size
        self.device = torch.device(device)
        self.flip, self.labels = flip, labels
        self.conditions = None if conditions is None else conditions.to(device)
        self.evaluations = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.data.shape[1:])

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Algorithm 2, lines 2 and 3."""
        if len(self._order) < self.batch_size:
            self._order = torch.randperm(len(self.data), generator=self._generator)
        index, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        x0 = self.data[index]
        observed = x0.dtype == torch.uint8
        x0 = to_model(x0) if observed else x0
        if self.flip:
            mirrored = torch.rand(len(x0), 1, 1, 1, generator=self._generator) < 0.5
            x0 = torch.where(mirrored, x0.flip(-1), x0)
        t = torch.randint(self.diffusion.T, (len(x0),), generator=self._generator)
        noise = torch.randn(x0.shape, generator=self._generator)
        x0, t, noise = x0.to(self.device), t.to(self.device), noise.to(self.device)
        x_t = self.diffusion.q_sample(x0, t, noise)
        condition = None
        if self.conditions is not None and self.labels is not None:
            dropped = torch.rand(len(index), generator=self._generator) < self.conditions.dropout
            condition = self.conditions[torch.where(dropped, NULL, self.labels[index]).to(self.device)]
        return Batch(x_t, t, noise, self.diffusion.q_posterior(x0, x_t, t), observed, condition)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next batches."""
        return {"generator": self._generator.get_state(), "order": self._order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        self._generator.set_state(state["generator"])
        self._order = state["order"]

    def load_shards(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Go on after a training by another number of ranks: each rank has another part of the data now, and
        begins to go through it in a new order."""
        self._generator.set_state(states[rank % len(states)]["generator"])
        branch(self._generator, rank)


class Replay:
    """Shows a source's answers more than once: a way to save evaluations of the teacher. A :class:`Source`.

    source: of batches that are one or several times as large as ``batch_size``; its samples are shown in
    batches of ``batch_size``, drawn without replacement, until each was shown ``times`` times. With
    ``times = 1`` no answer is repeated, but the teacher still answers several batches at once, and the
    batches of one answer come from the same turn of a pool. Errors: ValueError for ``times`` below 1, and
    where batches do not fill the source's.
    """

    def __init__(self, source: Source, batch_size: int, times: int, seed: int = 0):
        if times < 1:
            raise ValueError(f"replay: found {times}, expected at least 1, which shows every answer once")
        if batch_size < 1 or source.batch_size % batch_size:
            raise ValueError(
                f"batch_size: found {batch_size}, expected a divisor of the source's {source.batch_size}"
            )
        self.source, self.batch_size, self.times = source, batch_size, times
        self._generator = torch.Generator().manual_seed(mixed(seed, 2))
        self._answered: Batch | None = None
        self._order = torch.empty(0, dtype=torch.int64)  # rows of the answer that are still to be shown

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """Where its batches lie."""
        return self.source.device

    @property
    def evaluations(self) -> int:
        """How many samples the teacher has evaluated so far."""
        return self.source.evaluations

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._answered is None or len(self._order) == 0:
            self._answered = next(self.source)
            n = len(self._answered.t)
            passes = [torch.randperm(n, generator=self._generator) for _ in range(self.times)]
            self._order = torch.cat(passes)
        rows, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        return self._answered[rows.to(self.device)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next batches: the source's state, and the answer that is shown."""
        answered = None if self._answered is None or len(self._order) == 0 else self._answered
        return {
            "source": self.source.state_dict(),
            "generator": self._generator.get_state(),
            "order": self._order,
            "answered": None if answered is None else _parts(answered),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        self.source.load_state_dict(state["source"])
        self._generator.set_state(state["generator"])
        self._order, parts = state["order"], state["answered"]
        self._answered = None if parts is None else _batch_of(parts, self.device)

    def load_shards(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Go on after a training by another number of ranks, with the next answer of the source."""
        self.source.load_shards([state["source"] for state in states], rank, world_size)
        self._generator.set_state(states[rank % len(states)]["generator"])
        branch(self._generator, rank)
        self._answered, self._order = None, self._order[:0]


def _parts(batch: Batch) -> dict[str, Any]:
    """A batch as tensors and plain values, as they are saved."""
    target = None if batch.target is None else batch.target._asdict()
    return {**vars(batch), "target": target}


def _batch_of(parts: dict[str, Any], device: torch.device) -> Batch:
    """The batch that :func:`_parts` took apart, on a device."""
    placed: dict[str, Any] = {
        name: part.to(device) if torch.is_tensor(part) else part for name, part in parts.items()
    }
    if placed["target"] is not None:
        placed["target"] = Gaussian(**{name: part.to(device) for name, part in placed["target"].items()})
    return Batch(**placed)
