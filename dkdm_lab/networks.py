"""Networks: the paper's by name, small ones for the book, and the ``Denoiser`` that makes any of them,
and any checkpoint, answer ``(x_t, t) -> eps, v``.

The CNNs are ADM's, written as configurations of diffusers' ``UNet2DModel``, equal to the authors' to
the last parameter (Tables 6, 8); the DiT is Table 10's.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from huggingface_hub import snapshot_download
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dkdm_lab.diffusion import GaussianDiffusion


class Denoiser(nn.Module):
    """Any network as the book's denoiser: ``eps, v = denoiser(x_t, t)``.

    network: called as ``network(x, t).sample`` with ``out_channels`` 2C (learned variance: the second
    half is ``v`` in [-1, 1]) or C (``v`` is None). x_t: ``[B, C, ...]``; t: ``[B]`` int64, 0-based.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        config = network.config
        self.channels = config.in_channels
        if config.out_channels not in (self.channels, 2 * self.channels):
            raise ValueError(
                f"network: found {config.out_channels} output channels, expected {self.channels} "
                f"(eps) or {2 * self.channels} (eps and v)"
            )
        self.learns_variance = config.out_channels == 2 * self.channels

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch."""
        size = self.network.config.get("sample_size")
        if size is None:
            return (self.channels,)
        height, width = (size, size) if isinstance(size, int) else size
        return (self.channels, height, width)

    @property
    def parameter_count(self) -> int:
        """Trainable and fixed parameters together, as the paper counts them."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        if x_t.ndim < 2 or x_t.shape[1] != self.channels:
            raise ValueError(f"x_t: found shape {tuple(x_t.shape)}, expected [B, {self.channels}, ...]")
        out = self.network(x_t, t).sample
        return tuple(out.chunk(2, dim=1)) if self.learns_variance else (out, None)

    def save_pretrained(self, folder: str | Path, diffusion: GaussianDiffusion) -> None:
        """Write diffusers' own folder format, so that ``DDPMPipeline.from_pretrained(folder)`` samples it.

        The folder appears whole or not at all. A network diffusers does not know (MLP, DiT) is written
        in the same layout, ``unet/`` and ``scheduler/``, and read back by :meth:`from_pretrained`.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scheduler = ddpm_scheduler(diffusion, self.learns_variance)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            new = Path(scratch) / "new"
            if isinstance(self.network, UNet2DModel):
                DDPMPipeline(self.network, scheduler).save_pretrained(new)
            else:
                self.network.save_pretrained(new / "unet")
                scheduler.save_pretrained(new / "scheduler")
            if folder.exists():
                shutil.rmtree(folder)
            new.rename(folder)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Denoiser:
        """Load a diffusers pipeline or model folder, or a Hub id; in eval mode.

        Errors: FileNotFoundError where nothing is found; ValueError for a foreign, truncated
        or unsupported checkpoint, naming the file.
        """
        local = Path(path)
        if local.suffix in (".pt", ".pth"):
            raise ValueError(f"{path}: an ADM checkpoint is a bare list of weights; read it with load_adm()")
        if not local.exists():  # a Hub id: fetched into the Hub's cache, then checked like any folder
            try:
                local = Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"]))
            except Exception as error:  # the Hub's client raises many kinds, by cause
                raise FileNotFoundError(
                    f"{path}: found neither a folder here nor such a model on the Hub ({error})"
                ) from error
        _refuse_other_predictions(local / "scheduler" / "scheduler_config.json")
        folder = local / "unet" if (local / "unet").is_dir() else local
        config_file = folder / "config.json"
        if not config_file.is_file():
            raise ValueError(f"{local}: found no config.json, expected a diffusers model or pipeline folder")
        name = json.loads(config_file.read_text()).get("_class_name")
        classes = {c.__name__: c for c in (UNet2DModel, DiT, MLP)}
        if name not in classes:
            raise ValueError(
                f"{config_file}: found network class {name!r}, expected one of {sorted(classes)}"
            )
        try:
            network, info = classes[name].from_pretrained(
                folder, output_loading_info=True, low_cpu_mem_usage=False, use_safetensors=True
            )
        except Exception as error:  # diffusers raises many kinds here; one clear kind leaves
            raise ValueError(f"{folder}: the checkpoint cannot be read ({error})") from error
        wrong = {
            k: v for k, v in info.items() if v and k in ("missing_keys", "unexpected_keys", "mismatched_keys")
        }
        if wrong:
            raise ValueError(f"{folder}: weights and config.json do not agree: {wrong}")
        return cls(network).eval()


def _refuse_other_predictions(scheduler_file: Path) -> None:
    """A teacher that predicts v or x_0 would be read as eps and quietly distil nonsense."""
    if scheduler_file.is_file():
        found = json.loads(scheduler_file.read_text()).get("prediction_type", "epsilon")
        if found != "epsilon":
            raise ValueError(f"{scheduler_file}: found prediction_type {found!r}, expected 'epsilon'")


def ddpm_scheduler(diffusion: GaussianDiffusion, learned_variance: bool) -> DDPMScheduler:
    """The diffusers scheduler that agrees with ``diffusion``; its tables are float32."""
    names = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
    if diffusion.schedule not in names:
        raise ValueError(f"schedule: found {diffusion.schedule!r}, expected one of {sorted(names)}")
    scale = 1000 / diffusion.T
    return DDPMScheduler(
        num_train_timesteps=diffusion.T,
        beta_schedule=names[diffusion.schedule],
        beta_start=scale * 1e-4,
        beta_end=scale * 0.02,
        variance_type="learned_range" if learned_variance else "fixed_small",
        timestep_spacing="linspace",
        clip_sample=diffusion.clip,
    )


# -- the paper's networks -----------------------------------------------------------------------------


def adm_unet(
    channels: int,
    multipliers: tuple[int, ...],
    blocks: int,
    attention: tuple[int, ...],
    size: int,
    *,
    head_channels: int = 32,
    dropout: float = 0.0,
    in_channels: int = 3,
    learned_variance: bool = True,
    groups: int = 32,
) -> UNet2DModel:
    """ADM's U-Net as a ``UNet2DModel``. attention: the resolutions with attention, in pixels.

    ``attn_norm_num_groups`` matters: without it the middle attention loses its GroupNorm and the
    parameters no longer equal the authors'.
    """
    has_attention = [size >> level in attention for level in range(len(multipliers))]
    return UNet2DModel(
        sample_size=size,
        in_channels=in_channels,
        out_channels=in_channels * (2 if learned_variance else 1),
        block_out_channels=tuple(channels * m for m in multipliers),
        layers_per_block=blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in has_attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in has_attention[::-1]),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=head_channels,
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
        dropout=dropout,
    )


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


def _cifar(channels: int, blocks: int, dropout: float = 0.3):
    return lambda: adm_unet(channels, (1, 2, 2, 2), blocks, (16, 8), 32, dropout=dropout)


def _celeba(channels: int, blocks: int, head_channels: int):
    return lambda: adm_unet(
        channels, (1, 2, 3, 4), blocks, (32, 16, 8), 64, head_channels=head_channels, dropout=0.1
    )


def _digits(channels: int, blocks: int):
    return lambda: adm_unet(channels, (1, 2), blocks, (4,), 8, head_channels=8, in_channels=1, groups=8)


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
        network(torch.empty(1, *network.shape), torch.empty(1, dtype=torch.int64))
    return counter.get_total_flops()


# -- ADM checkpoints ----------------------------------------------------------------------------------


def load_adm(
    path: str | Path, size: int = 32, head_channels: int = 32, new_attention_order: bool = True
) -> Denoiser:
    """Read a checkpoint of ADM, DDPM-IP or the DKDM authors (``.pt``); in eval mode.

    The architecture is read from the weights, but for what weights cannot tell: the ``size`` of
    the images in pixels, ``head_channels``, and the order of q, k and v in the attention (new: all q, all
    k, all v; legacy: interleaved per head).
    The authors' networks use the new order. Every key must be used once; ValueError otherwise.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a readable checkpoint of plain weights ({error})") from error
    if not (isinstance(state, dict) and "input_blocks.0.0.weight" in state):
        raise ValueError(f"{path}: found no 'input_blocks.0.0.weight', expected an ADM U-Net's weights")
    try:
        return Denoiser(adm_to_unet(state, size, head_channels, new_attention_order)).eval()
    except (ValueError, RuntimeError) as error:  # RuntimeError is torch's, where shapes do not fit
        raise ValueError(f"{path}: {error}") from error


def adm_to_unet(
    state: dict[str, Tensor], size: int, head_channels: int, new_attention_order: bool
) -> UNet2DModel:
    """An ADM state dict as a ``UNet2DModel`` with the same outputs; strict in both directions."""
    left = {key: value.float() for key, value in state.items() if isinstance(value, Tensor)}
    try:
        layout = _adm_layout(left, size)
    except KeyError as error:
        raise ValueError(f"ADM checkpoint: {error.args[0]} is missing") from error
    network = adm_unet(**layout, head_channels=head_channels)
    weights: dict[str, Tensor] = {}

    def take(key: str) -> Tensor:
        if key not in left:
            raise ValueError(f"ADM checkpoint: {key} is missing")
        return left.pop(key)

    def move(old: str, new: str) -> None:
        for part in ("weight", "bias"):
            weights[f"{new}.{part}"] = take(f"{old}.{part}")

    def resnet(old: str, new: str) -> None:
        move(f"{old}.in_layers.0", f"{new}.norm1")
        move(f"{old}.in_layers.2", f"{new}.conv1")
        move(f"{old}.emb_layers.1", f"{new}.time_emb_proj")
        move(f"{old}.out_layers.0", f"{new}.norm2")
        move(f"{old}.out_layers.3", f"{new}.conv2")
        if f"{old}.skip_connection.weight" in left:
            move(f"{old}.skip_connection", f"{new}.conv_shortcut")

    def attention(old: str, new: str) -> None:
        move(f"{old}.norm", f"{new}.group_norm")
        move(f"{old}.proj_out", f"{new}.to_out.0")
        weights[f"{new}.to_out.0.weight"] = weights[f"{new}.to_out.0.weight"].squeeze(-1)
        for part in ("weight", "bias"):
            qkv = take(f"{old}.qkv.{part}")
            qkv = qkv.squeeze(-1) if part == "weight" else qkv
            if new_attention_order:
                q, k, v = qkv.chunk(3)
            else:
                heads = qkv.unflatten(0, (-1, 3, head_channels))  # one row of q, k, v a head
                q, k, v = (heads[:, i].flatten(0, 1) for i in range(3))
            for letter, value in zip("qkv", (q, k, v), strict=True):
                weights[f"{new}.to_{letter}.{part}"] = value

    levels, blocks = len(layout["multipliers"]), layout["blocks"]
    with_attention = [layout["size"] >> level in layout["attention"] for level in range(levels)]
    move("time_embed.0", "time_embedding.linear_1")
    move("time_embed.2", "time_embedding.linear_2")
    move("input_blocks.0.0", "conv_in")
    number = 1
    for level in range(levels):
        for block in range(blocks):
            resnet(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{block}")
            if with_attention[level]:
                attention(f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{block}")
            number += 1
        if level < levels - 1:
            resnet(f"input_blocks.{number}.0", f"down_blocks.{level}.downsamplers.0")
            number += 1
    resnet("middle_block.0", "mid_block.resnets.0")
    attention("middle_block.1", "mid_block.attentions.0")
    resnet("middle_block.2", "mid_block.resnets.1")
    number = 0
    for up, level in enumerate(reversed(range(levels))):
        for block in range(blocks + 1):
            resnet(f"output_blocks.{number}.0", f"up_blocks.{up}.resnets.{block}")
            if with_attention[level]:
                attention(f"output_blocks.{number}.1", f"up_blocks.{up}.attentions.{block}")
            if level > 0 and block == blocks:  # the upsampler is the last part of the level's last block
                part = 2 if with_attention[level] else 1
                resnet(f"output_blocks.{number}.{part}", f"up_blocks.{up}.upsamplers.0")
            number += 1
    move("out.0", "conv_norm_out")
    move("out.2", "conv_out")
    if left:
        raise ValueError(f"ADM checkpoint: {len(left)} keys have no place, the first is {next(iter(left))!r}")
    network.load_state_dict(weights, strict=True)
    return network


def _adm_layout(state: dict[str, Tensor], size: int) -> dict:
    """The arguments of :func:`adm_unet` that an ADM state dict implies, given the size of its images."""
    channels, in_channels = state["input_blocks.0.0.weight"].shape[:2]
    numbers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("input_blocks."))
    # A second residual block within an output block is an upsampler: one a level, but for the last.
    upsamplers = [k for k in state if re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight", k)]
    levels = 1 + len(upsamplers)
    firsts = [f"input_blocks.{1 + level * (numbers // levels)}" for level in range(levels)]
    missing = [first for first in firsts if f"{first}.0.out_layers.3.weight" not in state]
    if numbers % levels or missing:
        raise ValueError("ADM checkpoint: its blocks fit no ADM U-Net whose up- and downsampling are blocks")
    return {
        "channels": channels,
        "multipliers": tuple(
            state[f"{first}.0.out_layers.3.weight"].shape[0] // channels for first in firsts
        ),
        "blocks": numbers // levels - 1,
        "attention": tuple(size >> n for n, first in enumerate(firsts) if f"{first}.1.qkv.weight" in state),
        "size": size,
        "in_channels": in_channels,
        "learned_variance": state["out.2.weight"].shape[0] == 2 * in_channels,
    }
