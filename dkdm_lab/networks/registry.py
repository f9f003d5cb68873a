"""Every network that a preset can name, and what it costs."""

from __future__ import annotations

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.networks.dit import DiT
from dkdm_lab.networks.mlp import MLP
from dkdm_lab.networks.unet import adm_unet


def _cifar(channels: int, blocks: int, dropout: float = 0.3):
    return lambda: adm_unet(channels, (1, 2, 2, 2), blocks, (16, 8), 32, dropout=dropout)


def _celeba(channels: int, blocks: int, head_channels: int):
    return lambda: adm_unet(
        channels, (1, 2, 3, 4), blocks, (32, 16, 8), 64, head_channels=head_channels, dropout=0.1
    )


def _digits(channels: int, blocks: int, classes: int | None = None):
    return lambda: adm_unet(
        channels, (1, 2), blocks, (4,), 8, head_channels=8, in_channels=1, groups=8, classes=classes
    )


def _ldm(channels: int):
    return lambda: adm_unet(
        channels, (1, 2, 3, 4), 2, (32, 16, 8), 64,
        learned_variance=False, residual_sampling=False, scale_shift=False,
    )  # fmt: skip


def _latent(channels: int):
    return lambda: adm_unet(
        channels, (1, 2), 1, (4, 2), 4, head_channels=8, groups=8,
        learned_variance=False, residual_sampling=False, scale_shift=False,
    )  # fmt: skip


def _cifar16(channels: int):
    return lambda: adm_unet(channels, (1, 2, 2), 1, (8,), 16, head_channels=16, groups=8)


def _short(channels: int, blocks: int):
    return lambda: adm_unet(channels, (1, 2, 2), blocks, (16, 8), 32)


def _fashion(channels: int, blocks: int):
    return lambda: adm_unet(channels, (1, 2, 2), blocks, (16, 8), 32, in_channels=1, dropout=0.1)


NETWORKS = {
    # Table 8, and Table 6 for CIFAR-10 and ImageNet 32x32 (teacher 57M, student 14M)
    "cnn-57m": _cifar(128, 3),
    "cnn-44m": _cifar(128, 2),
    "cnn-32m": _cifar(96, 3),
    "cnn-24m": _cifar(96, 2),
    "cnn-14m": _cifar(64, 3),
    # Table 6, CelebA 64x64
    "celeba-295m": _celeba(192, 3, 64),
    "celeba-57m": _celeba(96, 2, 32),
    # Table 7, for latents; by its own configuration the student has 89.5M parameters, not 86M
    "ldm-274m": _ldm(224),
    "ldm-86m": _ldm(128),
    # Table 10
    "vit-19m": lambda: DiT(),
    "celeba-vit": lambda: DiT(sample_size=64, patch_size=4),  # as Table 10, at twice the side
    # The book's own: for 8x8 digits, with sizes between and below as Table 8 has them, and a small DiT;
    "digits-teacher": _digits(32, 1),
    "digits-466k": _digits(24, 1),
    "digits-290k": _digits(16, 2),
    "digits-student": _digits(16, 1),
    "digits-53k": _digits(8, 1),
    "digits-vit": lambda: DiT(
        sample_size=8, in_channels=1, out_channels=2, hidden_size=96, depth=4, num_heads=4
    ),
    # class-conditional, with a label more, for none;
    "digits-classes-teacher": _digits(32, 1, classes=11),
    "digits-classes-student": _digits(16, 1, classes=11),
    # for latents of digits, 3 x 4 x 4;
    "latent-teacher": _latent(32),
    "latent-student": _latent(24),
    # for CIFAR-10 at 16x16;
    "cifar16-teacher": _cifar16(32),
    "cifar16-student": _cifar16(16),
    "cifar16-vit": lambda: DiT(sample_size=16, hidden_size=96, depth=4, num_heads=4),
    # for CIFAR-10 in minutes of a GPU;
    "cifar10-6m": _short(64, 1),
    "cifar10-2m": _short(32, 2),
    # for Fashion-MNIST, grey and 32x32; and for points in the plane
    "fashion-teacher": _fashion(64, 2),
    "fashion-6m": _fashion(64, 1),
    "fashion-2m": _fashion(32, 2),
    "fashion-student": _fashion(32, 1),
    "fashion-vit": lambda: DiT(
        in_channels=1, out_channels=2, patch_size=4, hidden_size=192, depth=6, num_heads=6
    ),
    "toy-student": lambda: MLP(),
}


def build(name: str) -> Denoiser:
    """A freshly initialised network of :data:`NETWORKS`, from torch's global random state."""
    if name not in NETWORKS:
        raise ValueError(f"network: found {name!r}, expected one of {', '.join(NETWORKS)}")
    return Denoiser(NETWORKS[name]())


@cache
def flops(name: str) -> int:
    """Floating-point operations of one evaluation of one sample, in matrix products and convolutions.

    Counted on shapes alone: no weights are made and nothing is computed.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = build(name)
        label = torch.empty(1, dtype=torch.int64) if network.condition == "class" else None
        network(torch.empty(1, *network.shape), torch.empty(1, dtype=torch.int64), label)
    return counter.get_total_flops()
