"""Data: real images and exact toy distributions, and ``NoisedImages``, the source of Algorithm 2."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dkdm_lab.diffusion import Batch, GaussianDiffusion


def cache_dir() -> Path:
    """``data_cache`` of this checkout, or the folder named by the variable DKDM_DATA_CACHE."""
    if "DKDM_DATA_CACHE" in os.environ:
        return Path(os.environ["DKDM_DATA_CACHE"])
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "data_cache"


def to_model(images: Tensor) -> Tensor:
    """uint8 images to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Float images in [-1, 1] to uint8, quantised as ADM does."""
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def content_hash(images: Tensor) -> str:
    """Twelve hex digits of the SHA-256 of an array's bytes: what names a set of images in a cache."""
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()[:12]


def load_images(name: str, split: str = "train") -> Tensor:
    """A data set as uint8 ``[N, C, H, W]``.

    ``digits``: scikit-learn's 1,797 real 8x8 digits, no download (one split). ``cifar10``: from
    ``data_cache/cifar10``, where either ``train.npz`` / ``test.npz`` (``x``: uint8 ``[N, H, W, C]``) or
    torchvision's own layout may lie; torchvision downloads it if neither does.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        grey = load_digits().images  # 17 grey levels, 0..16
        return torch.from_numpy(np.rint(grey * (255 / 16)).astype(np.uint8))[:, None]
    if name == "cifar10":
        if split not in ("train", "test"):
            raise ValueError(f"cifar10 split: found {split!r}, expected 'train' or 'test'")
        folder = cache_dir() / "cifar10"
        if (folder / f"{split}.npz").is_file():
            images = np.load(folder / f"{split}.npz", allow_pickle=False)["x"]
        else:
            from torchvision.datasets import CIFAR10

            images = CIFAR10(folder, train=split == "train", download=True).data
        if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
            raise ValueError(
                f"{folder}: found {images.dtype} of shape {images.shape}, expected uint8 [N, 32, 32, 3]"
            )
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    raise ValueError(f"data set: found {name!r}, expected 'digits' or 'cifar10'")


class NoisedImages:
    """Algorithm 2's batches: real (or synthetic) samples, uniform t, fresh noise. An endless iterator.

    data: uint8 images ``[N, C, H, W]``, scaled to [-1, 1] batch by batch, or float samples ``[N, ...]``
    used as they are. Each pass over the data is a fresh permutation. Same interface as the pools.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        data: Tensor,
        batch_size: int,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ):
        if len(data) < batch_size:
            raise ValueError(f"data: found {len(data)} samples, expected at least one batch of {batch_size}")
        self.diffusion, self.data, self.batch_size, self.device = diffusion, data, batch_size, device
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
        t = torch.randint(self.diffusion.T, (len(x0),), generator=self._generator)
        noise = torch.randn(x0.shape, generator=self._generator)
        x0, t, noise = x0.to(self.device), t.to(self.device), noise.to(self.device)
        x_t = self.diffusion.q_sample(x0, t, noise)
        return Batch(x_t, t, noise, self.diffusion.q_posterior(x0, x_t, t), observed)

    def state_dict(self) -> dict:
        """Everything that decides the next batches."""
        return {"generator": self._generator.get_state(), "order": self._order}

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        self._generator.set_state(state["generator"])
        self._order = state["order"]


@dataclass(frozen=True)
class GaussianMixture:
    """Equal isotropic Gaussians, ``means`` ``[K, D]`` and one ``std``: a distribution whose optimal
    denoiser is known in closed form, so that a teacher needs no training and has no error."""

    means: Tensor
    std: float

    @classmethod
    def ring(cls, modes: int = 8, radius: float = 1.0, std: float = 0.08) -> GaussianMixture:
        """``modes`` Gaussians evenly on a circle in the plane."""
        angles = torch.arange(modes) * (2 * math.pi / modes)
        return cls(radius * torch.stack([angles.cos(), angles.sin()], dim=1), std)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """``n`` exact samples, ``[n, D]`` float32."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(len(self.means), (n,), generator=generator)
        return self.means[which] + self.std * torch.randn(n, self.means.shape[1], generator=generator)

    def denoiser(self, diffusion: GaussianDiffusion) -> MixtureDenoiser:
        """The exact teacher for this distribution."""
        return MixtureDenoiser(self, diffusion)


class MixtureDenoiser(nn.Module):
    """The optimal denoiser of a mixture: ``(x_t, t) -> eps, v``, the best that Eqs. 4 and 12 can say.

    eps follows from E[x_0 | x_t] by Eq. 4. v follows from Var[x_0 | x_t]: the best diagonal Gaussian
    for ``x_{t-1}`` has the variance ``beta_tilde + coef_x0^2 Var[x_0 | x_t]``, solved for v in Eq. 12.
    Between modes that is above Eq. 12's range (on the ring by 1.5% on average where it is most, and far
    from all data without limit). v ends at 1 there: respaced steps would magnify the rest.
    """

    def __init__(self, mixture: GaussianMixture, diffusion: GaussianDiffusion):
        super().__init__()
        self.mixture, self.diffusion = mixture, diffusion
        self.register_buffer("means", mixture.means.double())

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.means.shape[1],)

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x = x_t.double()
        log_alpha_bar = self.diffusion.log_alpha_bar(t)[:, None].double()
        root, noise = torch.exp(0.5 * log_alpha_bar), -torch.expm1(log_alpha_bar)
        data_variance = self.mixture.std**2
        total = torch.exp(log_alpha_bar) * data_variance + noise  # of x_t around each scaled mean
        offset = x[:, None] - root[:, :, None] * self.means  # [B, K, D]
        weight = torch.softmax(-0.5 * offset.square().sum(-1) / total, dim=1)[:, :, None]
        centre = self.means + (root * data_variance / total)[:, :, None] * offset  # E[x_0 | x_t, k]
        mean = (weight * centre).sum(1)
        variance = data_variance * noise / total + (weight * (centre - mean[:, None]).square()).sum(1)
        eps = (x - root * mean) / noise.sqrt()
        c = self.diffusion.transition(t)
        low, high = c.log_beta_tilde[:, None].double(), c.log_beta[:, None].double()
        best = torch.log(c.beta_tilde[:, None] + c.coef_x0[:, None] ** 2 * variance)
        # Where the two bounds meet, v has no effect and no definition.
        v = 2 * (best - low) / (high - low).clamp(min=1e-12) - 1
        return eps.to(x_t.dtype), v.clamp(-1, 1).to(x_t.dtype)
