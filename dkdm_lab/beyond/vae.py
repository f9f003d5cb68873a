"""A ladder VAE, its loss and its distillation: a generative model that is not a diffusion model.

The network and the distillation are those of Chen et al., *A Unified Knowledge Distillation Framework for
Deep Directed Graphical Models* (CVPR 2023), to the last parameter. Every latent is written as
``mean + std * noise`` with noise from N(0, I), so that a VAE is one function of its noise, and of an image
where it sees one. Teacher and student are compared on the same noise; methods differ only in which images
both see, if any.

Images are in [0, 1] here, as in that paper. Lists over levels begin at the top, the smallest.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from dkdm_lab.beyond.descent import descend
from dkdm_lab.data.images import Shuffled, content_hash, to_uint8
from dkdm_lab.diffusion import Gaussian
from dkdm_lab.system import budget
from dkdm_lab.system.checkpoint import tensors_hash

SIGMA_X = math.sqrt(0.05)  # of p(x | z), in all pixels: 0.2236, the authors' sqrt(beta / 2) with beta = 0.1
LEVEL_WEIGHT = 0.1  # of the distances of latents beside that of images, their lambda


class Pass(NamedTuple):
    """What one pass of a VAE gives: the mean of ``p(x | z)``, ``[B, C, H, W]``, and its Gaussians a level.

    priors: ``p(z_l | z_{l+1})``, N(0, I) at the top. posteriors: ``q(z_l | z_{l+1}, x)``; none without x.
    """

    mean: Tensor
    priors: list[Gaussian]
    posteriors: list[Gaussian]


class LVAE(ModelMixin, ConfigMixin):
    """A ladder VAE: ``levels`` latents, each of half the side of the one below, and the lowest of half the
    image's.

    Upwards each level sees the image through two residual blocks; downwards two more make the prior of the
    level below, and the posterior there is the product of that prior and what the level saw
    (:func:`merge`). At 3x32x32 with 5 levels it has 5,386,496, 366,656 and 30,416 parameters at width 128,
    32 and 8. One level makes it an ordinary VAE.

    ValueError for an image that cannot be halved so often.
    """

    @register_to_config
    def __init__(
        self,
        *,  # by name only: diffusers takes what is given by position for a default, and forgets it
        in_channels: int = 3,
        sample_size: int = 32,
        width: int = 128,
        levels: int = 5,
        latent_channels: int = 16,
    ):
        super().__init__()
        if sample_size % 2**levels:
            raise ValueError(
                f"sample_size: found {sample_size}, expected a multiple of {2**levels} for {levels} levels"
            )
        stem = nn.Conv2d(in_channels, width, 5, stride=2, padding=2)
        upwards = [nn.Sequential(stem, _Block(width, width), _Block(width, width))]
        for _ in range(levels - 1):
            upwards.append(nn.Sequential(_Block(width, width, stride=2), _Block(width, width)))
        self.encoder = nn.ModuleList(upwards)
        self.seen = nn.ModuleList([_conv1x1(width, 2 * latent_channels) for _ in range(levels)])
        # Twice the image's channels: the authors' last layer has a variance too, which nothing reads.
        outputs = [2 * latent_channels] * (levels - 1) + [2 * in_channels]
        self.decoder = nn.ModuleList(
            [
                nn.Sequential(
                    _Block(latent_channels, width, up=True), _Block(width, width), _conv1x1(width, n)
                )
                for n in outputs
            ]
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image."""
        return (self.config.in_channels, self.config.sample_size, self.config.sample_size)

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """The shape of each level's latent, from the top."""
        sides = [self.config.sample_size >> level for level in range(self.config.levels, 0, -1)]
        return [(self.config.latent_channels, side, side) for side in sides]

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def noise(self, n: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """Standard normal noise for ``n`` passes, a level each, on the VAE's device; drawn on the CPU, so
        that one seed means the same everywhere."""
        drawn = [torch.randn(n, *shape, generator=generator) for shape in self.latent_shapes]
        return [level.to(self.device, self.dtype) for level in drawn]

    def forward(self, noise: list[Tensor], x: Tensor | None = None) -> Pass:
        """From noise to an image: through the priors, or with ``x``, ``[B, C, H, W]`` in [0, 1], through the
        posteriors. noise: as :meth:`noise` gives it."""
        found = [tuple(level.shape[1:]) for level in noise]
        if found != self.latent_shapes:
            raise ValueError(f"noise: found levels of {found}, expected {self.latent_shapes}")
        if x is not None and tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x: found images of {tuple(x.shape[1:])}, expected {self.shape}")
        seen = [] if x is None else self._look(x)
        priors, posteriors = [], []
        prior = Gaussian(torch.zeros_like(noise[0]), torch.zeros_like(noise[0]))
        for level, (n, decode) in enumerate(zip(noise, self.decoder, strict=True)):
            priors.append(prior)
            if seen:
                posteriors.append(merge(seen[level], prior) if level else seen[level])
            z = (posteriors if seen else priors)[-1].sample(n)
            out = decode(z)
            if level < len(noise) - 1:
                prior = _gaussian(out)
        return Pass(out[:, : self.config.in_channels], priors, posteriors)

    def _look(self, x: Tensor) -> list[Gaussian]:
        """What each level sees of an image, before it knows of the levels above."""
        found = []
        for encode, head in zip(self.encoder, self.seen, strict=True):
            x = encode(x)
            found.append(_gaussian(head(x)))
        return found[::-1]


class _Block(nn.Module):
    """conv3x3-BN-ReLU-conv3x3-BN beside a skip, 1x1 where the shape changes. up: doubles the side first."""

    def __init__(self, channels: int, width: int, stride: int = 1, up: bool = False):
        super().__init__()
        self.before = nn.Upsample(scale_factor=2, mode="nearest") if up else nn.Identity()
        same = stride == 1 and channels == width and not up
        self.skip = nn.Identity() if same else _conv1x1(channels, width, stride)
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return torch.relu(self.body(x) + self.skip(x))


def _conv1x1(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 1, stride, bias=False)


def _gaussian(out: Tensor) -> Gaussian:
    """A layer's output as a Gaussian: std = softplus(raw) / ln 2 + 1e-6, which is 1 at 0."""
    mean, raw = out.chunk(2, dim=1)
    std = nn.functional.softplus(raw) / math.log(2) + 1e-6
    return Gaussian(mean, 2 * torch.log(std))


def merge(a: Gaussian, b: Gaussian) -> Gaussian:
    """The product of two Gaussians, normalised: means weighted by precision, precisions added."""
    of_a, of_b = torch.exp(-a.log_variance), torch.exp(-b.log_variance)
    precision = of_a + of_b
    return Gaussian((of_a * a.mean + of_b * b.mean) / precision, -torch.log(precision))


# -- losses -------------------------------------------------------------------------------------------


class Elbo(NamedTuple):
    """The parts of a negative evidence lower bound, in nats: ``reconstruction`` and ``total`` ``[B]``, ``kl``
    ``[levels, B]`` from the top."""

    reconstruction: Tensor
    kl: Tensor
    total: Tensor


def negative_elbo(
    vae: LVAE, x: Tensor, noise: list[Tensor], beta: float = 1.0, sigma: float = SIGMA_X
) -> Elbo:
    """``-log N(x; mean, sigma^2) + beta * sum_l KL(q_l || p_l)``. x: images in [0, 1]."""
    mean, priors, posteriors = vae(noise, x)
    pixels = x[0].numel()
    constant = pixels * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    reconstruction = _squared(x - mean) / (2 * sigma**2) + constant
    kl = torch.stack([q.kl(p).flatten(1).sum(1) for q, p in zip(posteriors, priors, strict=True)])
    return Elbo(reconstruction, kl, reconstruction + beta * kl.sum(0))


def distillation_loss(
    teacher: LVAE,
    student: LVAE,
    noise: list[Tensor],
    x: Tensor | None = None,
    weight: float = LEVEL_WEIGHT,
    sigma: float = SIGMA_X,
) -> Tensor:
    """Chen et al.'s unified distillation on shared noise, ``[B]``; ``x``: images that both networks see.

    ``||mean_T - mean_S||^2 / (2 sigma^2)``, which is the KL of their ``p(x | z)``, plus ``weight`` times the
    sum over levels of ``(mu_T - mu_S)^2 + (std_T - std_S)^2``, averaged over a level's values. Each network
    draws its latents from its own Gaussians. Without ``x`` these are the priors: this is their loss, and it
    needs no data. With ``x`` they are the posteriors, and both kinds are compared.

    Errors: ValueError for a teacher in training mode, whose batch norm would change with every batch, and for
    a student with other latents.
    """
    if teacher.training:
        raise ValueError("teacher: found it in training mode, expected eval mode")
    if student.latent_shapes != teacher.latent_shapes:
        raise ValueError(f"student: found latents {student.latent_shapes}, expected {teacher.latent_shapes}")
    with torch.no_grad():
        theirs = teacher(noise, x)
    ours = student(noise, x)
    pairs = zip(theirs.priors + theirs.posteriors, ours.priors + ours.posteriors, strict=True)
    levels = sum(_squared_distance(a, b) for a, b in pairs)
    return _squared(theirs.mean - ours.mean) / (2 * sigma**2) + weight * levels


def _squared(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).sum(1)


def _squared_distance(a: Gaussian, b: Gaussian) -> Tensor:
    """The squared 2-Wasserstein distance of two Gaussians, averaged over their values; ``[B]``."""
    stds = torch.exp(0.5 * a.log_variance) - torch.exp(0.5 * b.log_variance)
    return ((a.mean - b.mean).square() + stds.square()).flatten(1).mean(1)


# -- training and sampling ----------------------------------------------------------------------------


def train_vae(
    vae: LVAE,
    images: Tensor | None,
    iterations: int,
    *,
    teacher: LVAE | None = None,
    batch_size: int = 128,
    lr: float = 1e-4,
    weight_decay: float = 1e-4,
    warmup: float = 0.5,
    blind: float = 0.0,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    progress: bool = True,
    description: str = "training a VAE",
) -> list[float]:
    """Train a VAE, from images or from a teacher; the defaults are the authors'. Returns the losses.

    images: uint8 ``[N, C, H, W]``, or None for a student that sees none. teacher: without one the loss is the
    negative ELBO, its beta warmed up from 0 to 1 over the share ``warmup`` of the iterations (25 of the
    authors' 50 epochs); with one :func:`distillation_loss`. The teacher is put into eval mode; the VAE is in
    training mode meanwhile, and left in eval mode. A student that sees no images keeps an untrained encoder.
    blind: the share of a student's iterations, evenly spread, in which it sees no images all the same, so
    that it learns its priors where sampling visits them, not only where posteriors do. checkpoint: where the
    training saves itself, see :func:`~dkdm_lab.beyond.descent.descend`.
    """
    if images is None and teacher is None:
        raise ValueError("images: found None, expected some where there is no teacher")
    if not 0 <= blind < 1 or (blind and teacher is None):
        found = f"{blind}, and no teacher" if teacher is None else blind
        raise ValueError(f"blind: found {found}, expected a share in [0, 1), for students only")
    if teacher is not None:
        teacher.eval()
    generator = torch.Generator().manual_seed(seed)
    batches = None if images is None else Shuffled(len(images), batch_size, generator)

    def loss(step: int) -> Tensor:
        sees = batches is not None and int((step + 1) * (1 - blind)) > int(step * (1 - blind))
        x = (images[next(batches)].to(vae.device) / 255).to(vae.dtype) if sees else None
        noise = vae.noise(batch_size, generator)
        if teacher is not None:
            return distillation_loss(teacher, vae, noise, x).mean()
        return negative_elbo(vae, x, noise, beta=min(1.0, (step + 1) / (warmup * iterations))).total.mean()

    settings = {
        "images": None if images is None else content_hash(images),
        "teacher": None if teacher is None else tensors_hash(teacher.state_dict()),
        **{"batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "seed": seed, "blind": blind},
        "warmup": None if teacher is not None else warmup,
    }
    return descend(
        vae,
        loss,
        iterations,
        torch.optim.Adam(vae.parameters(), lr=lr, weight_decay=weight_decay),
        settings=settings,
        generator=generator,
        batches=batches,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        description=description,
    )


@torch.no_grad()
def sample_vae(vae: LVAE, n: int, seed: int = 0, batch_size: int = 256) -> Tensor:
    """``n`` images of a VAE, the means of ``p(x | z)``: uint8 ``[n, C, H, W]`` on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    sizes = budget.each([min(batch_size, n - start) for start in range(0, n, batch_size)])
    return torch.cat([from_unit(vae(vae.noise(size, generator)).mean) for size in sizes])


def from_unit(x: Tensor) -> Tensor:
    """Images in [0, 1] as uint8, on the CPU."""
    return to_uint8(2 * x - 1).cpu()
