"""DKDM Lab: data-free knowledge distillation of diffusion models (Xiang et al., CVPR 2025).

The names that a reader needs stand here, each imported from its room when it is first asked for: torch takes
seconds to load, and ``import dkdm_lab`` loads none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dkdm_lab.data import load_images
    from dkdm_lab.diffusion import ForwardProcess, Gaussian, GaussianDiffusion
    from dkdm_lab.losses import dkdm_loss, simple_loss, vlb_loss
    from dkdm_lab.metrics import score
    from dkdm_lab.networks import NETWORKS, Denoiser, build
    from dkdm_lab.pools import POOLS, DynamicPool, IterativePool, ShuffledPool
    from dkdm_lab.sources import Batch, Conditions, NoisedImages, Replay, Source
    from dkdm_lab.teachers.distill import distill
    from dkdm_lab.teachers.pipelines import Pipeline
    from dkdm_lab.training import train

_ROOMS = {
    "data": ("load_images",),
    "diffusion": ("ForwardProcess", "Gaussian", "GaussianDiffusion"),
    "losses": ("dkdm_loss", "simple_loss", "vlb_loss"),
    "metrics": ("score",),
    "networks": ("NETWORKS", "Denoiser", "build"),
    "pools": ("POOLS", "DynamicPool", "IterativePool", "ShuffledPool"),
    "sources": ("Batch", "Conditions", "NoisedImages", "Replay", "Source"),
    "teachers.distill": ("distill",),
    "teachers.pipelines": ("Pipeline",),
    "training": ("train",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "NETWORKS", "POOLS", "Batch", "Conditions", "Denoiser", "DynamicPool", "ForwardProcess", "Gaussian",
    "GaussianDiffusion", "IterativePool", "NoisedImages", "Pipeline", "Replay", "ShuffledPool", "Source",
    "build", "distill", "dkdm_loss", "load_images", "score", "simple_loss", "train", "vlb_loss",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
