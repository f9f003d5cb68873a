"""Networks: the paper's by name, small ones for the book, and the ``Denoiser`` that makes any of them,
and any checkpoint of diffusers, answer ``(x_t, t) -> eps, v``.

The CNNs are ADM's, written as configurations of diffusers' ``UNet2DModel``, equal to the authors' to
the last parameter (Tables 6, 8); the DiT is Table 10's.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import diffusers
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiTTransformer2DModel,
    ModelMixin,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import LabelEmbedding
from diffusers.models.unets.unet_2d import UNet2DOutput
from huggingface_hub import snapshot_download
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dkdm_lab.diffusion import GaussianDiffusion
from dkdm_lab.files import whole_folder
from dkdm_lab.models import check

PREDICTIONS = ("epsilon", "v_prediction", "sample")
Answer = tuple[Tensor, Tensor | None]  # a denoiser's eps and v


class Denoiser(nn.Module):
    """Any network as the book's denoiser: ``eps, v = denoiser(x_t, t)``, or ``denoiser(x_t, t, condition)``.

    network: called as ``network(x, t).sample`` with ``out_channels`` 2C (learned variance: the second
    half is ``v`` in [-1, 1]) or C (``v`` is None). x_t: ``[B, C, ...]``; t: ``[B]`` int64, 0-based.
    condition: class labels ``[B]`` int64 or text embeddings ``[B, L, D]``, for networks that take them.

    diffusion: the process it was trained for, as its scheduler says; None for a bare network.
    prediction: what it predicts, one of :data:`PREDICTIONS`; eps is worked out from it. variance:
    ``"learned_range"``, ADM's and the book's; or ``"learned"``, where its second half is the variance itself.
    """

    def __init__(
        self,
        network: nn.Module,
        diffusion: GaussianDiffusion | None = None,
        prediction: str = "epsilon",
        variance: str = "learned_range",
    ):
        super().__init__()
        self.network = network
        config = network.config
        self.channels = config.in_channels
        outputs = config.out_channels or self.channels
        if outputs not in (self.channels, 2 * self.channels):
            raise ValueError(
                f"network: found {outputs} output channels, expected {self.channels} "
                f"(eps) or {2 * self.channels} (eps and v)"
            )
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction: found {prediction!r}, expected one of {PREDICTIONS}")
        self.learns_variance = outputs == 2 * self.channels
        self.diffusion, self.prediction, self.variance = diffusion, prediction, variance
        if diffusion is None and (prediction, variance) != ("epsilon", "learned_range"):
            raise ValueError(f"diffusion: found None, expected the process, to read {prediction}, {variance}")
        for module in network.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0  # sources drop conditions, and know which
        network.to(memory_format=torch.channels_last)  # convolutions are faster so, on a CPU too

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch."""
        size = self.network.config.get("sample_size")
        if size is None:
            return (self.channels,)
        height, width = (size, size) if isinstance(size, int) else size
        return (self.channels, height, width)

    @property
    def condition(self) -> str | None:
        """What it is conditioned on: ``"class"``, ``"text"`` or None."""
        if isinstance(self.network, UNet2DConditionModel):
            return "text"
        config = self.network.config
        classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
        return "class" if classes else None

    @property
    def parameter_count(self) -> int:
        """Trainable and fixed parameters together, as the paper counts them."""
        return sum(p.numel() for p in self.parameters())

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if x_t.ndim < 2 or x_t.shape[1] != self.channels:
            raise ValueError(f"x_t: found shape {tuple(x_t.shape)}, expected [B, {self.channels}, ...]")
        if (condition is None) != (self.condition is None):
            found = "None" if condition is None else f"shape {tuple(condition.shape)}"
            raise ValueError(f"condition: found {found}, but the network takes {self.condition or 'none'}")
        names = {"class": "class_labels", "text": "encoder_hidden_states"}
        given = {} if condition is None else {names[self.condition]: condition}
        out = self.network(x_t, t, **given).sample
        out, v = out.chunk(2, dim=1) if self.learns_variance else (out, None)
        if self.prediction != "epsilon":
            out = self.diffusion.predict_eps(self.prediction, x_t, t, out)
        if v is not None and self.variance == "learned":
            v = self.diffusion.share_of(v.clamp(min=1e-20).log(), t)
        return out, v

    def compile_network(self, mode: str) -> None:
        """Compile the network where it stands, by `torch.compile` in one of its modes: "default", or
        "reduce-overhead", which records CUDA graphs. Weights, names and what is saved stay as they are; a
        copy is not compiled. RuntimeError for an unknown mode."""
        self.network.compile(mode=mode)

    def save_pretrained(self, folder: str | Path, diffusion: GaussianDiffusion) -> None:
        """Write diffusers' own folder format, so that ``DDPMPipeline.from_pretrained(folder)`` samples it.

        The folder appears whole or not at all. A network that ``DDPMPipeline`` cannot sample (MLP, DiT, a
        conditional one) is written in the same layout, ``unet/`` and ``scheduler/``, and read back by
        :meth:`from_pretrained`.
        """
        folder = Path(folder)
        scheduler = ddpm_scheduler(diffusion, self.learns_variance)
        with whole_folder(folder) as new, as_saved(self.network) as network:
            if isinstance(network, UNet2DModel) and self.condition is None:
                DDPMPipeline(network, scheduler).save_pretrained(new)
            else:
                network.save_pretrained(new / "unet")
                scheduler.save_pretrained(new / "scheduler")

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Denoiser:
        """Load a diffusers pipeline or model folder, or a Hub id; in eval mode.

        Its scheduler's configuration says what the network predicts and becomes its ``diffusion``; a model
        folder without a scheduler is taken to predict eps. Errors: FileNotFoundError where nothing is found;
        ValueError for a foreign, truncated or unsupported checkpoint, naming the file.
        """
        local = find_folder(path)
        diffusion, options = None, {}
        if (local / "scheduler").is_dir():
            scheduler = read_scheduler(local / "scheduler")
            diffusion = diffusion_of(scheduler)
            learned = scheduler.config.get("variance_type") == "learned"
            options["prediction"] = scheduler.config.get("prediction_type", "epsilon")
            options["variance"] = "learned" if learned else "learned_range"
        folder = next((f for name in ("unet", "transformer") if (f := local / name).is_dir()), local)
        return cls(read_model(folder, NETWORK_CLASSES), diffusion, **options).eval()


def guide(own: Answer, null: Answer, scale: float) -> Answer:
    """Classifier-free guidance: ``eps(null) + scale * (eps(own) - eps(null))``, and the v of ``own``."""
    return null[0] + scale * (own[0] - null[0]), own[1]


def at_least_float32(answer: Answer) -> Answer:
    """An answer out of the half precision that autocast leaves it in; what follows is no network's work."""
    return tuple(x if x is None or x.dtype == torch.float64 else x.float() for x in answer)


class Guided:
    """A denoiser under guidance, called as the one it wraps, with twice the cost. null: the condition that
    stands for none."""

    def __init__(self, denoiser: Denoiser, scale: float, null: Tensor):
        self.denoiser, self.scale, self.null = denoiser, scale, null
        self.shape = denoiser.shape

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        null = self.null.to(condition.device).expand_as(condition)
        eps, v = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([condition, null]))
        own, null = zip(eps.chunk(2), (None, None) if v is None else v.chunk(2), strict=True)
        return guide(own, null, self.scale)


# -- reading and writing diffusers' folders -----------------------------------------------------------


@contextlib.contextmanager
def as_saved(network: nn.Module) -> Iterator[nn.Module]:
    """A network with its weights laid out as safetensors wants them, for as long as the block lasts."""
    network.to(memory_format=torch.contiguous_format)
    try:
        yield network
    finally:
        network.to(memory_format=torch.channels_last)


def find_folder(path: str | Path) -> Path:
    """A folder here, or what a Hub id names, fetched into the Hub's cache."""
    local = Path(path)
    if local.suffix in (".pt", ".pth", ".ckpt"):
        raise ValueError(
            f"{path}: a bare list of weights, not diffusers' folder; read it with load_adm() or load_ldm()"
        )
    if local.exists():
        check(local)
        return local
    try:
        return Path(snapshot_download(str(path), allow_patterns=_NEEDED, ignore_patterns=_COPIES))
    except Exception as error:  # the Hub's client raises many kinds, by cause
        raise FileNotFoundError(
            f"{path}: found neither a folder here nor such a model on the Hub ({error})"
        ) from error


# Of a repository on the Hub: not the same weights again at its root, in half precision or for other programs.
_NEEDED = ["*.json", "*.txt", "*/diffusion_pytorch_model*", "*/model*", "diffusion_pytorch_model*"]
_NEEDED += ["README.md"]  # the card, for its licence
_COPIES = ["*.fp16.*", "*.non_ema.*", "*.msgpack", "*.onnx*"]


def read_model(folder: Path, classes: Mapping[str, type]) -> nn.Module:
    """The model of a diffusers folder, one of ``classes`` by the names that config.json may give.

    Strict: a weight missing or left over is an error. Weights saved as pickles are read without running
    what they say.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{folder}: found no config.json, expected a diffusers model or pipeline folder")
    name = json.loads(config_file.read_text()).get("_class_name")
    if name not in classes:
        raise ValueError(f"{config_file}: found network class {name!r}, expected one of {sorted(classes)}")
    try:
        model, info = classes[name].from_pretrained(folder, output_loading_info=True, low_cpu_mem_usage=False)
    except Exception as error:  # diffusers raises many kinds here; one clear kind leaves
        raise ValueError(f"{folder}: the checkpoint cannot be read ({error})") from error
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    if wrong := {kind: keys for kind, keys in info.items() if keys and kind in kinds}:
        raise ValueError(f"{folder}: weights and config.json do not agree: {wrong}")
    return model


def read_scheduler(folder: Path):
    """The scheduler of a pipeline, by its own class; ValueError for one that is no Gaussian diffusion in
    discrete steps, or that predicts or clips what the book has no terms for."""
    file = folder / "scheduler_config.json"
    try:
        name = json.loads(file.read_text()).get("_class_name")
        scheduler = getattr(diffusers, str(name)).from_pretrained(folder)
    except Exception as error:
        raise ValueError(f"{file}: the scheduler cannot be read ({error})") from error
    if not hasattr(scheduler, "betas"):
        raise ValueError(f"{file}: found {name}, expected a scheduler with betas (DDPM, DDIM, PNDM, ...)")
    found = scheduler.config.get("prediction_type", "epsilon")
    if found not in PREDICTIONS:
        raise ValueError(f"{file}: found prediction_type {found!r}, expected one of {PREDICTIONS}")
    if scheduler.config.get("thresholding"):
        raise ValueError(f"{file}: found thresholding, expected clip_sample or none")
    return scheduler


def diffusion_of(scheduler) -> GaussianDiffusion:
    """The process that a diffusers scheduler was configured for: its betas, clipping and fixed variance."""
    config = scheduler.config
    large = str(config.get("variance_type")).startswith("fixed_large")
    return GaussianDiffusion(
        scheduler.betas.double().numpy(),
        clip=config.get("clip_sample", False) and config.get("clip_sample_range", 1.0),
        schedule=config.get("beta_schedule", "custom"),
        variance="large" if large else "small",
    )


def ddpm_scheduler(diffusion: GaussianDiffusion, learned_variance: bool) -> DDPMScheduler:
    """The diffusers scheduler that agrees with ``diffusion``; its tables are float32."""
    names = {"cosine": "squaredcos_cap_v2", "linear": "linear", "scaled_linear": "scaled_linear"}
    names |= {
        name: name for name in names.values()
    }  # diffusers' own, of a process that was read from a folder
    if diffusion.schedule not in names:
        raise ValueError(f"schedule: found {diffusion.schedule!r}, expected one of {sorted(names)}")
    return DDPMScheduler(
        num_train_timesteps=diffusion.T,
        beta_schedule=names[diffusion.schedule],
        beta_start=float(diffusion.betas[0]),  # the cosine has no use for either
        beta_end=float(diffusion.betas[-1]),
        variance_type="learned_range" if learned_variance else f"fixed_{diffusion.variance}",
        timestep_spacing="linspace",
        clip_sample=bool(diffusion.clip),
        clip_sample_range=float(diffusion.clip or 1),
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
    residual_sampling: bool = True,
    scale_shift: bool = True,
    classes: int | None = None,
) -> UNet2DModel:
    """ADM's U-Net as a ``UNet2DModel``. attention: the resolutions with attention, in pixels.

    residual_sampling, scale_shift: whether residual blocks, not bare convolutions, halve and double the
    size, and whether the time scales and shifts, or is only added; ADM does both, LDM neither. classes: how
    many labels a class-conditional one takes.
    ``attn_norm_num_groups`` matters: without it the middle attention loses its GroupNorm and the
    parameters no longer equal the authors'.
    """
    has_attention = [size >> level in attention for level in range(len(multipliers))]
    kind = "Resnet{0}sampleBlock2D" if residual_sampling else "{0}Block2D"
    down, up = kind.format("Down"), kind.format("Up")
    sampling = "resnet" if residual_sampling else "conv"
    return UNet2DModel(
        sample_size=size,
        in_channels=in_channels,
        out_channels=in_channels * (2 if learned_variance else 1),
        block_out_channels=tuple(channels * m for m in multipliers),
        layers_per_block=blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else down for a in has_attention),
        up_block_types=tuple("AttnUpBlock2D" if a else up for a in has_attention[::-1]),
        downsample_type=sampling,
        upsample_type=sampling,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        num_class_embeds=classes,
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


NETWORK_CLASSES = {kind.__name__: kind for kind in (UNet2DModel, UNet2DConditionModel, DiT, MLP)} | {
    "DiTTransformer2DModel": DiTTransformer2DModel,
    "Transformer2DModel": DiTTransformer2DModel,  # its name in pipelines before diffusers 0.29
}


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
