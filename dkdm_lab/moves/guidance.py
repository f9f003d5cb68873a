"""The teacher as a pool asks it: with conditions, under guidance, and each evaluation counted."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dkdm_lab.networks.classifier_free_guidance import guide
from dkdm_lab.networks.denoiser import Answer, at_least_float32
from dkdm_lab.sources import NULL, Conditions
from dkdm_lab.system.profile import section


class Teacher(Protocol):
    """A denoiser that is called as ``eps, v = teacher(x_t, t)``, or with a condition as a third argument.

    It may say more of itself: ``shape`` (of one sample), ``learns_variance`` (whether v is ever anything but
    None), ``condition`` (what it is conditioned on, or None). :class:`~dkdm_lab.networks.Denoiser` does.
    """

    def __call__(self, x_t: Tensor, t: Tensor, *condition: Tensor) -> Any: ...

    def eval(self) -> Any: ...


class Lesson(NamedTuple):
    """What a teacher says of a batch. ``moving`` is the very object ``shown`` where they do not differ."""

    shown: Answer  # to the student
    condition: Tensor | None  # which that is the answer to, ``[B, ...]`` as the network takes it
    moving: Answer  # what the samples move by


class GuidedTeacher:
    """A teacher under classifier-free guidance, called with ``c``, indices into ``conditions``, as its third
    argument; c is None for a teacher that takes no condition.

    guidance: the scale; 1 for none. evaluations: how many samples the teacher has evaluated so far. Errors:
    ValueError where teacher, conditions and guidance do not fit together.
    """

    def __init__(self, teacher: Teacher, conditions: Conditions | None = None, guidance: float = 1.0):
        takes = getattr(teacher, "condition", None)
        if (conditions is None) != (takes is None):
            found = "None" if conditions is None else f"{len(conditions)} of them"
            raise ValueError(f"conditions: found {found}, but the teacher takes {takes or 'none'}")
        if guidance != 1 and (conditions is None or conditions.null is None):
            raise ValueError(f"guidance: found {guidance}, expected 1 where there is no null condition")
        self.teacher: Teacher = teacher.eval()
        self.conditions, self.guidance, self.evaluations = conditions, guidance, 0

    def __call__(self, x_t: Tensor, t: Tensor, c: Tensor | None) -> Answer:
        """eps and v under guidance, float32."""
        own = self._evaluate(x_t, t, c)
        if c is None or self.guidance == 1:
            return own
        return guide(own, self._evaluate(x_t, t, torch.full_like(c, NULL)), self.guidance)

    def teach(self, x_t: Tensor, t: Tensor, c: Tensor | None, generator: torch.Generator) -> Lesson:
        """What the student is shown of a batch, and what its samples move by.

        The student is never shown a guided answer. It is shown the answer to each sample's own condition, or,
        for a share ``conditions.dropout`` of the samples, that to the null condition; so it can be guided as
        its teacher can. Without guidance and null condition one evaluation serves both purposes.
        """
        own = self._evaluate(x_t, t, c)
        if c is None or self.conditions is None:
            return Lesson(own, None, own)
        if self.conditions.null is None:
            return Lesson(own, self.conditions[c], own)
        chance = torch.rand(c.shape, generator=generator, device=c.device)
        dropped = chance < self.conditions.dropout
        asked = dropped if self.guidance == 1 else torch.ones_like(dropped)
        if not asked.any():  # networks with attention take no empty batch
            return Lesson(own, self.conditions[c], own)
        null = self._evaluate(x_t[asked], t[asked], torch.full_like(c[asked], NULL))
        moving = own if self.guidance == 1 else guide(own, null, self.guidance)
        eps, v = own[0].clone(), None if own[1] is None else own[1].clone()
        eps[dropped] = null[0][dropped[asked]]
        if v is not None and null[1] is not None:
            v[dropped] = null[1][dropped[asked]]
        return Lesson((eps, v), self.conditions[torch.where(dropped, NULL, c)], moving)

    def _evaluate(self, x_t: Tensor, t: Tensor, c: Tensor | None) -> Answer:
        self.evaluations += len(t)
        given = () if c is None or self.conditions is None else (self.conditions[c],)
        with section("teacher"):
            return at_least_float32(self.teacher(x_t, t, *given))
