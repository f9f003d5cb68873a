"""Sources: where training triples come from, and the type in which they pass from room to room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dkdm_lab.data.images import to_model
from dkdm_lab.diffusion import Gaussian, GaussianDiffusion
from dkdm_lab.system.seeds import branch


@dataclass
class Batch:
    """What a source yields and the loss takes: the one type that passes between rooms.

    x_t: ``[B, *shape]`` noisy samples. t: ``[B]`` int64, 0-based. eps: target of the noise prediction,
    as ``x_t``. target: target of ``p(x_{t-1} | x_t)``, or None where only L_simple is trained.
    observed: True when ``x_0`` came from 8-bit images, so that ``target.mean`` at ``t = 0`` *is* ``x_0``
    and L_vlb there is the likelihood of its 8-bit values rather than a KL. condition: what each sample is
    conditioned on, ``[B, ...]`` as the network takes it, or None.
    """

    x_t: Tensor
    t: Tensor
    eps: Tensor
    target: Gaussian | None
    observed: bool = False
    condition: Tensor | None = None


NULL = -1  # where the index of a condition is expected: the null condition


class Conditions:
    """What samples are conditioned on: a list of class labels ``[K]`` or of text embeddings ``[K, L, D]``.

    Sources keep a sample's condition as its index here. null: the condition that stands for none, shaped as
    one of ``values``; without it nothing is dropped and nothing can be guided. dropout: the share of a batch
    whose condition is replaced by the null one, as classifier-free guidance is trained. names: what each is
    called, as the prompts behind embeddings; None where nobody can say, and for labels, which are numbers.
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
        """The labels 0 to ``count`` - 1; null: the label that stands for none."""
        return cls(torch.arange(count), None if null is None else torch.tensor(null), dropout)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The conditions of these indices, :data:`NULL` among them, as the network takes them."""
        return self._table[index]

    def to(self, device: str | torch.device) -> Conditions:
        """The same on another device."""
        null = None if self.null is None else self.null.to(device)
        return Conditions(self.values.to(device), null, self.dropout, self.names)


class NoisedImages:
    """Algorithm 2's batches: real (or synthetic) samples, uniform t, fresh noise. An endless iterator.

    data: uint8 images ``[N, C, H, W]``, scaled to [-1, 1] batch by batch, or float samples ``[N, ...]``
    used as they are. flip: mirror each image left to right half of the time, as ADM trains. Each pass
    over the data is a fresh permutation. conditions, labels: for a conditional network, what there is, and
    ``[N]`` int64, which of it each sample has. Same interface as the pools.
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
        self.diffusion, self.data, self.batch_size, self.device = diffusion, data, batch_size, device
        self.flip, self.labels = flip, labels
        self.conditions = None if conditions is None else conditions.to(device)
        self.evaluations = 0  # of a teacher; none here
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.data.shape[1:])

    def __iter__(self) -> NoisedImages:
        return self

    def __next__(self) -> Batch:
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
        if self.conditions is not None:
            dropped = torch.rand(len(index), generator=self._generator) < self.conditions.dropout
            condition = self.conditions[torch.where(dropped, NULL, self.labels[index]).to(self.device)]
        return Batch(x_t, t, noise, self.diffusion.q_posterior(x0, x_t, t), observed, condition)

    def state_dict(self) -> dict:
        """Everything that decides the next batches."""
        return {"generator": self._generator.get_state(), "order": self._order}

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        self._generator.set_state(state["generator"])
        self._order = state["order"]

    def load_shards(self, states: list[dict], rank: int, ranks: int) -> None:
        """Go on after a training by another number of ranks: each has another part of the data now, and
        begins to go through it in a new order."""
        self._generator.set_state(states[rank % len(states)]["generator"])
        branch(self._generator, rank)
