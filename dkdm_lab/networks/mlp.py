"""A small network for points in the plane."""

from __future__ import annotations

from diffusers import (
    ModelMixin,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from dkdm_lab.networks.dit import timestep_embedding


class MLP(ModelMixin, ConfigMixin):
    """A small network for points: ``[B, D]`` in, ``[B, 2 D]`` out. For the toy preset, not the paper's."""

    @register_to_config
    def __init__(self, *, in_channels: int = 2, out_channels: int = 4, width: int = 128, depth: int = 3):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Linear(in_channels, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.last = nn.Linear(width, out_channels)

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        """sample: ``[B, in_channels]``; timestep: ``[B]``. ``.sample`` is ``[B, out_channels]``."""
        c = self.time(timestep_embedding(timestep, 64).to(sample.dtype))
        x = self.first(sample)
        for layer in self.layers:
            x = x + layer(nn.functional.silu(x + c))
        return UNet2DOutput(sample=self.last(nn.functional.silu(x)))
