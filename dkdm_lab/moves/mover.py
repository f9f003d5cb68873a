"""How a pool's samples move to lower levels, by a teacher's answer."""

from __future__ import annotations

import torch
from torch import Tensor

from dkdm_lab.diffusion import Gaussian, GaussianDiffusion
from dkdm_lab.moves.guidance import GuidedTeacher
from dkdm_lab.moves.variance import OF_THE_TEACHER, VARIANCES, AnalyticVariance
from dkdm_lab.networks.denoiser import Answer

_LEARNS_NONE = "variance: found {!r}, but the teacher learns none; expected small, large, analytic or ddim"


class Mover:
    """Moves samples of ``shape``: one evaluation of the teacher brings a sample as far down as is asked.

    variance: of a move, one of :data:`~dkdm_lab.moves.VARIANCES`. None: "learned" where the teacher learns
    one; else the fixed variance of the process for steps of one, as in the paper, and the analytic one for
    longer moves, in which a fixed variance would lose the samples' spread. generator: of the noise, on the
    device of the samples. Errors: ValueError for a variance that is unknown, or that the teacher lacks.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        teacher: GuidedTeacher,
        shape: tuple[int, ...],
        variance: str | None,
        generator: torch.Generator,
    ):
        if variance not in (None, *VARIANCES):
            raise ValueError(f"variance: found {variance!r}, expected None or one of {', '.join(VARIANCES)}")
        if variance in OF_THE_TEACHER and not getattr(teacher.teacher, "learns_variance", True):
            raise ValueError(_LEARNS_NONE.format(variance))
        self.diffusion, self.teacher, self.shape, self.variance = diffusion, teacher, shape, variance
        self.generator = generator
        self.analytic = AnalyticVariance(diffusion, generator.device)

    def noise(self, n: int) -> Tensor:
        """Standard normal, ``[n, *shape]``."""
        return torch.randn(n, *self.shape, generator=self.generator, device=self.generator.device)

    def move(
        self, x_t: Tensor, t: Tensor, s: Tensor, answer: Answer, steps: int, p: Gaussian | None = None
    ) -> Tensor:
        """Samples ``x_s`` at levels ``s``, ``steps`` below ``t`` or fewer; t, s: ``[B]``.

        answer: the teacher's to ``x_t``. p: what follows from it for a single step, where that is at hand:
        then the paper's move, a draw from p, needs nothing else. ValueError where ``variance`` is one that
        only a teacher can give, and this one gave none.
        """
        eps, v = answer
        if p is not None and steps == 1 and self.variance is None:
            return self.diffusion.step(p, s, self.noise(len(t)))
        name = self.variance or ("learned" if v is not None else "analytic" if steps > 1 else None)
        if name in OF_THE_TEACHER and v is None:
            raise ValueError(_LEARNS_NONE.format(name))
        if name == "ddim":
            return self.diffusion.ddim(x_t, t, eps, s)
        variance: str | Tensor | None = name
        if name == "analytic":
            self.analytic.see(x_t, t, eps)
            variance = self.analytic.at(t)
        elif name in OF_THE_TEACHER:  # for a step of one they are the teacher's p as it is, as in the paper
            long = v is not None and name == "learned" and steps > 1
            variance = self.diffusion.x0_variance(t, v) if long else None
        moved = self.diffusion.p(x_t, t, eps, v, s, self.diffusion.clip, variance)
        return self.diffusion.step(moved, s, self.noise(len(t)))
