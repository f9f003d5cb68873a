"""Gaussian diffusion: schedules, the forward process, the reverse process, samplers.

Equations are those of the DKDM paper (Xiang et al., CVPR 2025). One convention differs:
**t is 0-based here**. Index ``t`` is the paper's step ``t + 1``; ``t = T - 1`` is the noisiest state
and ``s = -1`` is the clean image, the paper's step 0.

Every reverse step is a *transition* from a level ``t`` to some lower level ``s``. The paper's
one-step process is ``s = t - 1``; IDDPM's respacing and DDIM are the same formulas with larger jumps.
So one function, :meth:`ForwardProcess.transition`, gives the coefficients of Eq. 5, Eq. 6, Eq. 7 and Eq. 12
to all of them.

Two classes: :class:`ForwardProcess` adds noise, and knows every coefficient; :class:`GaussianDiffusion` is
that process with its reverse, and draws samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from dkdm_lab.system.progress import progress_bar
from dkdm_lab.system.seeds import numbered_noise


class Gaussian(NamedTuple):
    """A diagonal Gaussian. ``mean`` and ``log_variance``, the natural logarithm, have the shape of ``x``."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """``mean + std * noise``; ``noise`` is standard normal with the shape of ``mean``."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def kl(self, other: Gaussian) -> Tensor:
        """``KL(self || other)`` element by element, in nats."""
        difference = self.log_variance - other.log_variance
        squared = (self.mean - other.mean) ** 2 * torch.exp(-other.log_variance)
        return 0.5 * (-1.0 - difference + torch.exp(difference) + squared)


class Transition(NamedTuple):
    """Coefficients of ``q(x_s | x_t, x_0)`` for each sample, each ``[B]``: Eq. 5 for a step of any length."""

    beta: Tensor  # the variance that the forward process adds between s and t; beta_t of Eq. 1 for s = t - 1
    beta_tilde: Tensor  # Eq. 6
    log_beta: Tensor  # the upper bound of Eq. 12
    log_beta_tilde: Tensor  # its lower bound; at s = -1 that of the first step whose variance is not zero
    coef_x0: Tensor  # of Eq. 7, the factor of x_0
    coef_xt: Tensor  # of Eq. 7, the factor of x_t


WITHOUT_FLOAT64 = ("mps",)  # Apple's refuses to hold a tensor of them at all


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no wider one."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


# -- schedules: the betas of Eq. 1 --------------------------------------------------------------------


def linear_betas(T: int) -> np.ndarray:
    """``[T]``, rising linearly; scaled so that T steps add the noise of Ho et al.'s 1000."""
    scale = 1000 / T
    return np.linspace(scale * 1e-4, scale * 0.02, T, dtype=np.float64)


def scaled_linear_betas(T: int) -> np.ndarray:
    """``[T]``, linear in the square root of beta; scaled as :func:`linear_betas`."""
    scale = 1000 / T
    return np.linspace((scale * 0.0015) ** 0.5, (scale * 0.0195) ** 0.5, T) ** 2


def cosine_betas(T: int) -> np.ndarray:
    """``[T]``, such that alpha_bar falls as a squared cosine; at most 0.999."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), 0.999) for i in range(T)])


# -- the two processes --------------------------------------------------------------------------------


class ForwardProcess:
    """The forward process, Eq. 1 and Eq. 2, and every coefficient that follows from its schedule.

    betas: ``[T]`` variances of Eq. 1, in (0, 1). The last one may be 1, as rescaling to zero terminal SNR
    leaves it, and is then taken as 1 - 1e-12, so that ``x_0`` can still be solved for. schedule: its name.

    The tables are float64. Inputs and outputs are float32; the coefficients are worked out in float64
    where the device has it. t is checked on the CPU only: on a GPU the check would wait for the device.
    """

    def __init__(self, betas: ArrayLike, schedule: str = "custom"):
        self.betas = np.array(betas, dtype=np.float64)
        row = self.betas.ndim == 1 and len(self.betas) > 0
        if not row or not ((self.betas > 0) & (self.betas <= 1)).all() or (self.betas[:-1] == 1).any():
            raise ValueError(f"betas: found shape {self.betas.shape}, expected one row of numbers in (0, 1)")
        if self.betas[-1] == 1:
            self.betas[-1] = 1 - 1e-12
        self.schedule = schedule
        self.alpha_bar = np.cumprod(1.0 - self.betas)  # of Eq. 3
        # Logarithms keep 1 - alpha_bar exact where alpha_bar is close to 1. Entry 0 is the clean image.
        self._log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-self.betas))])
        self._on_device: dict[torch.device, Tensor] = {}
        self._steps: dict[torch.device, Transition] = {}

    @property
    def T(self) -> int:
        """The number of diffusion steps."""
        return len(self.betas)

    def log_alpha_bar(self, t: Tensor) -> Tensor:
        """``log alpha_bar_t`` for levels in [-1, T - 1], in the shape of ``t``; 0 at -1, the clean image."""
        self._check(t, lowest=-1)
        if t.device not in self._on_device:
            table = torch.as_tensor(self._log_alpha_bar).to(widest(t.device))
            self._on_device[t.device] = table.to(t.device)
        return self._on_device[t.device][t + 1]

    def _check(self, t: Tensor, lowest: int) -> None:
        if t.device.type == "cpu" and t.numel() and not (lowest <= int(t.min()) and int(t.max()) < self.T):
            raise ValueError(f"t: found {int(t.min())}..{int(t.max())}, expected 0..{self.T - 1} (0-based)")

    def transition(self, t: Tensor, s: Tensor | None = None) -> Transition:
        """Coefficients of the step from level ``t`` down to ``s`` (``t - 1`` unless given), ``[B]`` int64."""
        if s is None:  # training takes this step over and over, so its table is worked out once
            self._check(t, lowest=0)
            if t.device not in self._steps:
                levels = torch.arange(self.T, device=t.device)
                self._steps[t.device] = self.transition(levels, levels - 1)
            return Transition(*(table[t] for table in self._steps[t.device]))
        at_t, at_s = self.log_alpha_bar(t), self.log_alpha_bar(s)
        noise_t, noise_s = -torch.expm1(at_t), -torch.expm1(at_s)  # 1 - alpha_bar
        beta = -torch.expm1(at_t - at_s)
        beta_tilde = noise_s / noise_t * beta
        # At s = -1 Eq. 6 is zero and has no logarithm. ADM takes that of the next step instead; so do we.
        clipped_t = torch.where(s < 0, self.log_alpha_bar(t.clamp(min=1)), at_t)
        clipped_s = torch.where(s < 0, self.log_alpha_bar(torch.zeros_like(s)), at_s)
        log_beta_tilde = (
            torch.log(-torch.expm1(clipped_s))
            - torch.log(-torch.expm1(clipped_t))
            + torch.log(-torch.expm1(clipped_t - clipped_s))
        )
        coef_x0 = torch.exp(0.5 * at_s) * beta / noise_t
        coef_xt = torch.exp(0.5 * (at_t - at_s)) * noise_s / noise_t
        return Transition(beta, beta_tilde, torch.log(beta), log_beta_tilde, coef_x0, coef_xt)

    def q_sample(self, x: Tensor, t: Tensor, noise: Tensor, s: Tensor | None = None) -> Tensor:
        """Eq. 4, a draw from Eq. 3: noise ``x`` forward to level ``t``, from the clean image or from level
        ``s`` <= t. x, noise: ``[B, *shape]``; t, s: ``[B]``. Returns the shape of ``x``."""
        log_ratio = self.log_alpha_bar(t) - (0.0 if s is None else self.log_alpha_bar(s))
        return (
            _like(torch.exp(0.5 * log_ratio), x) * x + _like(torch.sqrt(-torch.expm1(log_ratio)), x) * noise
        )

    def predict_x0(self, x_t: Tensor, t: Tensor, eps: Tensor, clip: bool | float = False) -> Tensor:
        """Eq. 4 solved for ``x_0``, as ``x_t``; clamped to [-1, 1], or to another limit, on request."""
        at_t = self.log_alpha_bar(t)
        signal, noise = torch.exp(-0.5 * at_t), torch.sqrt(torch.expm1(-at_t))
        x0 = _like(signal, x_t, eps) * x_t - _like(noise, x_t, eps) * eps
        return x0.clamp(-float(clip), float(clip)) if clip else x0

    def agreeing_eps(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """Eq. 4 solved for the noise: the eps that agrees with an ``x_0``, be it a clamped one."""
        at_t = self.log_alpha_bar(t)
        x0_scaled = _like(torch.exp(0.5 * at_t), x_t) * x0
        return (x_t - x0_scaled) / _like(torch.sqrt(-torch.expm1(at_t)), x_t)

    def q_posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Gaussian:
        """Eq. 5: ``q(x_{t-1} | x_t, x_0)``, with the variance of Eq. 6 and the mean of Eq. 7."""
        c = self.transition(t)
        mean = _like(c.coef_x0, x_t) * x0 + _like(c.coef_xt, x_t) * x_t
        return Gaussian(mean, _like(c.log_beta_tilde, x_t).expand_as(x_t))


class GaussianDiffusion(ForwardProcess):
    """The forward process with its reverse: Eq. 8 with the mean of Eq. 10 and the variance of Eq. 12.

    clip: whether reverse steps clamp the predicted ``x_0`` to [-1, 1], as ADM does for pixels (never in the
    loss on the student's side); or the limit itself where it is another. variance: for a network that learns
    none, ``"small"``, Eq. 6, or ``"large"``, beta_t. betas, schedule: see :class:`ForwardProcess`.
    """

    def __init__(
        self,
        betas: ArrayLike,
        clip: bool | float = True,
        schedule: str = "custom",
        variance: str = "small",
    ):
        super().__init__(betas, schedule)
        if variance not in ("small", "large"):
            raise ValueError(f"variance: found {variance!r}, expected 'small' or 'large'")
        self.clip, self.variance = clip, variance

    @classmethod
    def linear(cls, T: int = 1000, clip: bool = True) -> Self:
        """Ho et al.'s schedule: see :func:`linear_betas`."""
        return cls(linear_betas(T), clip, "linear")

    @classmethod
    def scaled_linear(cls, T: int = 1000, clip: bool = False) -> Self:
        """The schedule of latent diffusion, which Table 7 calls linear: see :func:`scaled_linear_betas`."""
        return cls(scaled_linear_betas(T), clip, "scaled_linear")

    @classmethod
    def cosine(cls, T: int = 1000, clip: bool = True) -> Self:
        """Nichol and Dhariwal's schedule, the one of Tables 6 and 8: see :func:`cosine_betas`."""
        return cls(cosine_betas(T), clip, "cosine")

    def __repr__(self) -> str:
        return f"GaussianDiffusion({self.schedule}, T={self.T}, clip={self.clip})"

    # -- from a network's outputs to p ----------------------------------------------------------------

    def predict_eps(self, prediction: str, x_t: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """The noise, from the ``output`` of a network that predicts something else.

        prediction: ``"v_prediction"``; ``"sample"``, which is x_0; or ``"flow_prediction"``, the velocity
        ``eps - x_0`` of a flow. The result is float64 where the device has it: near the top of the schedule
        ``x_0`` is what is left when nearly all of ``x_t`` and ``eps`` cancel, and :meth:`predict_x0` must
        find it again.
        """
        at_t = self.log_alpha_bar(t)
        output = output.to(widest(output.device))
        signal, noise = _like(torch.exp(0.5 * at_t), output), _like(torch.sqrt(-torch.expm1(at_t)), output)
        if prediction == "v_prediction":  # v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0
            return signal * output + noise * x_t
        if prediction == "flow_prediction":  # Eq. 4 with x_0 = eps - velocity
            return (x_t + signal * output) / (signal + noise)
        return (x_t - signal * output) / noise

    def share_of(self, log_variance: Tensor, t: Tensor) -> Tensor:
        """Eq. 12 solved for ADM's ``v``, given the logarithm of a variance; in its shape."""
        c = self.transition(t)
        low, high = _like(c.log_beta_tilde, log_variance), _like(c.log_beta, log_variance)
        return 2 * (log_variance - low) / (high - low) - 1

    def x0_variance(self, t: Tensor, v: Tensor) -> Tensor:
        """``Var[x_0 | x_t]`` per dimension that a learned variance stands for, in the shape of ``v``.

        The best variance of a step is ``beta_tilde + coef_x0^2 Var[x_0 | x_t]``, and the bounds of Eq. 12 are
        ``coef_x0^2 (1 - alpha_bar_t)`` apart, whatever the length of the step. So the linear share ``f`` of a
        variance between its bounds says ``Var[x_0 | x_t] = f (1 - alpha_bar_t)``, and it is the same for a
        step of any length. The share in Eq. 12 is one of logarithms, and is not the same. A network's ``v``
        may lie outside its range; ``f`` never does.
        """
        c = self.transition(t)
        apart = _like(c.log_beta - c.log_beta_tilde, v)
        share = torch.expm1((v.clamp(-1, 1) + 1) / 2 * apart) / torch.expm1(apart)
        return share * _like(-torch.expm1(self.log_alpha_bar(t)), v)

    def prediction_weight(self, prediction: str, t: Tensor) -> Tensor:
        """``[B]`` factors that turn a squared error of eps into one of what the network predicts."""
        at_t = self.log_alpha_bar(t)
        if prediction == "v_prediction":
            return torch.exp(-at_t)
        if prediction == "flow_prediction":
            return (1 + torch.sqrt(torch.expm1(-at_t))) ** 2
        return torch.expm1(-at_t) if prediction == "sample" else torch.ones_like(at_t)

    def p(
        self,
        x_t: Tensor,
        t: Tensor,
        eps: Tensor,
        v: Tensor | None,
        s: Tensor | None = None,
        clip: bool | float = False,
        variance: str | Tensor | None = None,
    ) -> Gaussian:
        """Eq. 8: ``p(x_s | x_t)`` from a network's outputs; Eq. 10 is its mean and Eq. 12 its variance.

        x_t: ``[B, *shape]``. t, s: ``[B]``, a different one for every sample; s is ``t - 1`` unless given.
        eps: the predicted noise, shaped as ``x_t``. v: the network's variance output in [-1, 1], as ADM emits
        it (the paper's v of Eq. 12 is ``(v + 1) / 2``); None stands for the fixed variance.

        variance: replaces what ``v`` says: ``"small"``, ``"large"``, or ``Var[x_0 | x_t]`` per dimension,
        either ``[B]`` or shaped as ``x_t``. From that follows the variance of the best diagonal Gaussian,
        ``beta_tilde + coef_x0^2 Var[x_0 | x_t]`` (Bao et al., ICLR 2022, their Eq. 8).
        """
        c = self.transition(t, s)
        x0 = self.predict_x0(x_t, t, eps, clip)
        mean = _like(c.coef_x0, x_t) * x0 + _like(c.coef_xt, x_t) * x_t  # Eq. 10 is this with x_0 put in
        if isinstance(variance, Tensor):
            if variance.ndim == 1:
                best = _like(torch.log(c.beta_tilde + c.coef_x0**2 * variance), x_t)
            else:
                best = torch.log(_like(c.beta_tilde, x_t) + _like(c.coef_x0**2, x_t) * variance)
            return Gaussian(mean, best.expand_as(x_t))
        low, high = _like(c.log_beta_tilde, x_t), _like(c.log_beta, x_t)
        if v is None or variance is not None:
            small = (variance or self.variance) == "small"
            return Gaussian(mean, (low if small else high).expand_as(x_t))
        share = (v + 1) / 2
        return Gaussian(mean, share * high + (1 - share) * low)  # Eq. 12

    # -- steps and samples ----------------------------------------------------------------------------

    def step(self, p: Gaussian, s: Tensor, noise: Tensor) -> Tensor:
        """Algorithm 3, lines 3 and 4: ``x_s ~ p``; without noise where ``s`` is -1, the clean image."""
        return p.sample(_like(s >= 0, noise) * noise).to(noise.dtype)

    def ddim(self, x_t: Tensor, t: Tensor, eps: Tensor, s: Tensor) -> Tensor:
        """The deterministic step of DDIM (Song et al., 2021, eta = 0) from level ``t`` to ``s``."""
        at_s = self.log_alpha_bar(s)
        x0 = self.predict_x0(x_t, t, eps, self.clip)
        if self.clip:
            eps = self.agreeing_eps(x_t, t, x0)
        x_s = _like(torch.exp(0.5 * at_s), x_t) * x0 + _like(torch.sqrt(-torch.expm1(at_s)), x_t) * eps
        return x_s.to(x_t.dtype)

    def timesteps(self, steps: int | None = None, method: str = "ddpm") -> list[int]:
        """The levels that a sampler visits, rising. ``ddpm``: IDDPM's even spacing from 0 to T - 1. ``ddim``:
        a whole stride from 0, as in the DDIM paper; ValueError where no stride gives so many steps."""
        steps = self.T if steps is None else steps
        if method not in ("ddpm", "ddim"):
            raise ValueError(f"sampling method: found {method!r}, expected 'ddpm' or 'ddim'")
        if not 1 <= steps <= self.T:
            raise ValueError(f"sampling steps: found {steps}, expected 1..{self.T}")
        if method == "ddpm":
            stride = (self.T - 1) / (steps - 1) if steps > 1 else 0
            return [round(i * stride) for i in range(steps)]
        for stride in range(1, self.T + 1):
            if len(range(0, self.T, stride)) == steps:
                return list(range(0, self.T, stride))
        raise ValueError(f"ddim steps: found {steps}, but no whole stride visits so many of {self.T} levels")

    @torch.no_grad()
    def sample(
        self,
        denoiser: Callable[..., tuple[Tensor, Tensor | None]],
        n: int,
        steps: int | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        condition: Tensor | None = None,
        method: str = "ddpm",
        batch_size: int = 256,
        seed: int = 0,
        first: int = 0,
        device: str | torch.device = "cpu",
        callback: Callable[[int, Tensor], None] | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draw ``n`` samples with Algorithm 3, respaced to ``steps`` levels, or with DDIM.

        shape: of one sample; the denoiser's own ``shape`` unless given. condition: ``[n, ...]``, for a
        denoiser that takes one. callback: called as ``callback(s, x_s)`` after every step. The samples are
        numbered from ``first`` on, and each number has noise of its own: a sample is the same whatever
        ``batch_size`` and ``n`` are. Returns ``[n, *shape]`` float32 on the CPU.
        """
        if condition is not None and len(condition) != n:
            raise ValueError(f"condition: found {len(condition)}, expected one for each of {n} samples")
        if (shape := shape or getattr(denoiser, "shape", None)) is None:
            raise ValueError("shape: found None, expected the shape of one sample (the denoiser names none)")
        levels = self.timesteps(steps, method)
        done = []
        for start in progress_bar(range(0, n, batch_size), desc="sampling", show=progress):
            numbers = range(first + start, first + min(start + batch_size, n))
            x = numbered_noise(seed, self.T, numbers, shape, device)
            given = () if condition is None else (condition[start : start + batch_size].to(device),)
            for t_level, s_level in zip(levels[::-1], [*levels[-2::-1], -1], strict=True):
                t = torch.full((len(x),), t_level, device=device)
                s = torch.full((len(x),), s_level, device=device)
                eps, v = denoiser(x, t, *given)
                if method == "ddim":
                    x = self.ddim(x, t, eps, s)
                else:
                    noise = numbered_noise(seed, t_level, numbers, shape, device)
                    x = self.step(self.p(x, t, eps, v, s, self.clip), s, noise)
                if callback is not None:
                    callback(s_level, x)
            done.append(x.cpu())
        return torch.cat(done)


def _like(values: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
    """``[B]`` coefficients in the dtype of ``x``, or of ``x`` and ``y`` together, shaped to multiply them."""
    dtype = x.dtype if y is None else torch.result_type(x, y)
    return values.to(dtype).view(-1, *[1] * (x.ndim - 1))
