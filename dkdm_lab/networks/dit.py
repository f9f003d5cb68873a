"""The paper's transformer: a DiT over patches."""

from __future__ import annotations

import math

import torch
from diffusers import (
    ModelMixin,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn


class DiT(ModelMixin, ConfigMixin):
    """Peebles and Xie's DiT without classes, on timm's blocks; Table 10 is its default but for ``depth``."""

    @register_to_config
    def __init__(
        self,
        *,  # by name only: diffusers takes what is given by position for a default, and forgets it
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 6,
        patch_size: int = 2,
        hidden_size: int = 384,
        depth: int = 7,
        num_heads: int = 6,
    ):
        super().__init__()
        self.patches = PatchEmbed(sample_size, patch_size, in_channels, hidden_size)
        self.time = nn.Sequential(nn.Linear(256, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        grid = sample_size // patch_size
        # Fixed, but a parameter, so that it is saved and counted as the paper counts it.
        self.position = nn.Parameter(sincos_positions(hidden_size, grid)[None], requires_grad=False)
        self.blocks = nn.ModuleList([DiTBlock(hidden_size, num_heads) for _ in range(depth)])
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))
        self.final_norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.final = nn.Linear(hidden_size, patch_size**2 * out_channels)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier everywhere; every block and the output start at zero (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patches.proj.weight.flatten(1))
        nn.init.zeros_(self.patches.proj.bias)
        for layer in (self.time[0], self.time[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (*(block.modulation[1] for block in self.blocks), self.final_modulation[1], self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        """sample: ``[B, C, H, W]``; timestep: ``[B]``. ``.sample`` is ``[B, out_channels, H, W]``."""
        x = self.patches(sample) + self.position
        c = self.time(timestep_embedding(timestep, 256).to(x.dtype))
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c)[:, None].chunk(2, dim=-1)
        x = self.final(self.final_norm(x) * (1 + scale) + shift)
        p, grid = self.config.patch_size, self.config.sample_size // self.config.patch_size
        x = x.view(len(x), grid, grid, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return UNet2DOutput(sample=x.reshape(len(x), -1, grid * p, grid * p))


class DiTBlock(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the time embedding (adaLN-Zero)."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(hidden_size, num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, 4 * hidden_size, act_layer=lambda: nn.GELU(approximate="tanh"))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of ``t``, cosines first, as in ADM and DiT; ``[B, width]``."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def sincos_positions(width: int, grid: int) -> Tensor:
    """DiT's fixed 2-D positions: half the width encodes the column, half the row; ``[grid**2, width]``."""
    frequencies = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(*[torch.arange(grid, dtype=torch.float64)] * 2, indexing="ij")
    halves = []
    for axis in (column, row):
        angles = axis.flatten()[:, None] * frequencies
        halves.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    return torch.cat(halves, dim=1).float()
