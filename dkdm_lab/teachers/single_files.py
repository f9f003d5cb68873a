"""Checkpoints of other programs, read key by key into diffusers' networks: ADM's and its descendants', and
CompVis' latent diffusion. No pickle is run, and no key is left over."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel, VQModel
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from dkdm_lab.networks.denoiser import Denoiser
from dkdm_lab.networks.folders import build_within, not_inflated, shortened
from dkdm_lab.networks.schedulers import diffusion_of
from dkdm_lab.networks.unet import adm_unet


def load_adm(
    path: str | Path, size: int = 32, head_channels: int = 32, new_attention_order: bool = True
) -> Denoiser:
    """Read a checkpoint of ADM, DDPM-IP or the DKDM authors (``.pt``); in eval mode.

    The architecture is read from the weights, but for what weights cannot tell: the ``size`` of
    the images in pixels, ``head_channels``, and the order of q, k and v in the attention (new: all q, all
    k, all v; legacy: interleaved per head).
    The authors' networks use the new order. Every key must be used once; ValueError otherwise.
    """
    state = _read_weights(path)
    if "input_blocks.0.0.weight" not in state:
        raise ValueError(f"{path}: found no 'input_blocks.0.0.weight', expected an ADM U-Net's weights")
    with _named(path):
        return Denoiser(adm_to_unet(state, size, head_channels, new_attention_order, path)).eval()


def load_ldm(
    path: str | Path, size: int = 64, head_channels: int = 32
) -> tuple[Denoiser, VQModel, DDIMScheduler]:
    """Read an unconditional latent diffusion model of CompVis (``.ckpt``) with its VQ first stage.

    Of the U-Net's weights the averaged ones are taken where there are some, as CompVis samples with them.
    size: of the latents, in pixels; head_channels: of the attention; weights cannot tell either. Returns the
    denoiser, in eval mode, the first stage, and a scheduler with the checkpoint's own betas, which is the
    denoiser's ``diffusion`` too. ValueError where a key is missing or left over, or for a conditional model.
    """
    state = _read_weights(path)
    prefix = "model.diffusion_model."
    unet = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    first_stage = {key: value for key, value in state.items() if key.startswith("first_stage_model.")}
    if not unet or not first_stage or "betas" not in state:
        raise ValueError(
            f"{path}: found {len(unet)} keys of model.diffusion_model, {len(first_stage)} of "
            f"first_stage_model and {'its' if 'betas' in state else 'no'} betas, expected all three"
        )
    if conditional := [key for key in state if key.startswith("cond_stage_model.")]:
        raise ValueError(f"{path}: found {conditional[0]}, expected an unconditional model")
    for key in unet:
        unet[key] = state.get(f"model_ema.diffusion_model{key.replace('.', '')}", unet[key])
    with _named(path):
        scheduler = _scheduler(state["betas"])
        network = adm_to_unet(unet, size, head_channels, new_attention_order=False, path=path)
        vae = _first_stage(first_stage, float(state.get("scale_factor", 1.0)), path)
    return Denoiser(network, diffusion_of(scheduler)).eval(), vae, scheduler


class _Inert:
    """Stands for what a training program left in its checkpoint, which nobody needs here."""


@contextlib.contextmanager
def _named(path: str | Path) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]} is missing") from error
    except Exception as error:  # where shapes do not fit, or weights are none, torch and diffusers raise many
        said = shortened(error)
        raise ValueError(said if said.startswith(str(path)) else f"{path}: {said}") from error


def _read_weights(path: str | Path) -> dict:
    """The weights of a file, of no more than it holds; what is beside them is left as it was."""
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path}: found a pipe, a device or a folder, expected a file of weights")
    not_inflated(Path(path))
    # Lightning names its callbacks in a checkpoint by their classes.
    callback = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    try:
        with torch.serialization.safe_globals([(_Inert, callback)]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path}: not a readable checkpoint of plain weights ({shortened(error)})"
        ) from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict):
        return {}
    state = {key: value for key, value in state.items() if isinstance(key, str)}
    _plausible(Path(path), state)
    return state


def _plausible(path: Path, state: dict) -> None:
    """ValueError for tensors of more numbers than the file has, and for numbers of blocks in names that so
    few keys cannot have: networks are built by both."""
    most = 4 * path.stat().st_size  # some share their numbers
    for key, value in state.items():
        if isinstance(value, Tensor):
            most -= value.numel()
            if value.layout is not torch.strided or most < 0:
                raise ValueError(
                    f"{path}: found {key} of {tuple(value.shape)}, expected no more than it holds"
                )
        if any(len(number) > 6 or int(number) > len(state) for number in re.findall(r"\d+", key)):
            raise ValueError(
                f"{path}: found a key {key[:80]!r} among {len(state)}, expected their blocks in turn"
            )


def _counts(state: dict) -> tuple[int, int]:
    return sum(value.numel() for value in state.values()), len(state)


def _scheduler(betas: Tensor) -> DDIMScheduler:
    """One with these betas: CompVis' "linear", which is diffusers' "scaled_linear", or the list of them."""
    ends = {"beta_start": float(betas[0]), "beta_end": float(betas[-1])}
    options = {"num_train_timesteps": len(betas), "clip_sample": False, "set_alpha_to_one": False}
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", **ends, **options)
    if torch.allclose(scheduler.betas, betas.float(), rtol=1e-5):
        return scheduler
    return DDIMScheduler(trained_betas=betas.tolist(), **options)


def _first_stage(state: dict[str, Tensor], scaling_factor: float, path: str | Path) -> VQModel:
    state = {key: value for key, value in state.items() if not key.startswith("first_stage_model.loss.")}
    codes = state.pop("first_stage_model.quantize.embedding.weight", None)
    if codes is None:
        raise ValueError("first_stage_model.quantize.embedding.weight is missing, expected a VQ first stage")

    def shape(key: str) -> torch.Size:
        if f"first_stage_model.{key}" not in state:
            raise ValueError(f"first_stage_model.{key} is missing")
        return state[f"first_stage_model.{key}"].shape

    levels = 1 + max(int(m.group(1)) for key in state if (m := re.search(r"encoder\.down\.(\d+)\.", key)))
    blocks = 1 + max(
        int(m.group(1)) for key in state if (m := re.search(r"encoder\.down\.0\.block\.(\d+)", key))
    )
    layout = dict(
        in_channels=shape("encoder.conv_in.weight")[1],
        out_channels=shape("decoder.conv_out.weight")[0],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(shape(f"encoder.down.{n}.block.0.conv1.weight")[0] for n in range(levels)),
        layers_per_block=blocks,
        latent_channels=shape("encoder.conv_out.weight")[0],
        num_vq_embeddings=codes.shape[0],
        vq_embed_dim=codes.shape[1],
        scaling_factor=scaling_factor,
    )
    build_within(lambda: VQModel(**layout), _counts(state), Path(path))
    vae = VQModel(**layout)
    found = convert_ldm_vae_checkpoint(dict(state), vae.config)
    used = {value.data_ptr() for value in found.values()}
    if left := [key for key, value in state.items() if value.data_ptr() not in used]:
        raise ValueError(f"{len(left)} keys have no place, the first is {left[0]!r}")
    found["quantize.embedding.weight"] = codes
    vae.load_state_dict(found, strict=True)
    return vae.eval()


def adm_to_unet(
    state: dict[str, Tensor], size: int, head_channels: int, new_attention_order: bool, path: str | Path
) -> UNet2DModel:
    """An ADM state dict as a ``UNet2DModel`` with the same outputs; strict in both directions. path: of its
    file, for messages."""
    left = {key: value.float() for key, value in state.items() if isinstance(value, Tensor)}
    try:
        layout = _adm_layout(left, size)
    except KeyError as error:
        raise ValueError(f"U-Net: {error.args[0]} is missing") from error
    build_within(lambda: adm_unet(**layout, head_channels=head_channels), _counts(left), Path(path))
    network = adm_unet(**layout, head_channels=head_channels)
    weights: dict[str, Tensor] = {}

    def take(key: str) -> Tensor:
        if key not in left:
            raise ValueError(f"U-Net: {key} is missing")
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

    residual = layout["residual_sampling"]
    levels, blocks = len(layout["multipliers"]), layout["blocks"]
    with_attention = [layout["size"] >> level in layout["attention"] for level in range(levels)]
    move("time_embed.0", "time_embedding.linear_1")
    move("time_embed.2", "time_embedding.linear_2")
    move("input_blocks.0.0", "conv_in")
    if layout["classes"]:
        weights["class_embedding.weight"] = take("label_emb.weight")
    number = 1
    for level in range(levels):
        for block in range(blocks):
            resnet(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{block}")
            if with_attention[level]:
                attention(f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{block}")
            number += 1
        if level < levels - 1:
            old, new = f"input_blocks.{number}.0", f"down_blocks.{level}.downsamplers.0"
            resnet(old, new) if residual else move(f"{old}.op", f"{new}.conv")
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
                old, new = f"output_blocks.{number}.{part}", f"up_blocks.{up}.upsamplers.0"
                resnet(old, new) if residual else move(f"{old}.conv", f"{new}.conv")
            number += 1
    move("out.0", "conv_norm_out")
    move("out.2", "conv_out")
    if left:
        raise ValueError(f"U-Net: {len(left)} keys have no place, the first is {next(iter(left))!r}")
    network.load_state_dict(weights, strict=True)
    return network


def _adm_layout(state: dict[str, Tensor], size: int) -> dict:
    """The arguments of :func:`adm_unet` that an ADM state dict implies, given the size of its images."""
    channels, in_channels = state["input_blocks.0.0.weight"].shape[:2]
    numbers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("input_blocks."))
    # The upsamplers, one a level but for the last: a second residual block, or a bare convolution.
    part = r"output_blocks\.\d+\.[12]\.(in_layers\.0|conv)\.weight"
    upsamplers = [match for key in state if (match := re.fullmatch(part, key))]
    levels = 1 + len(upsamplers)
    firsts = [f"input_blocks.{1 + level * (numbers // levels)}" for level in range(levels)]
    missing = [first for first in firsts if f"{first}.0.out_layers.3.weight" not in state]
    if numbers % levels or missing:
        raise ValueError("U-Net: its blocks fit no ADM U-Net whose up- and downsampling are blocks")
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
        "residual_sampling": not upsamplers or upsamplers[0].group(1) == "in_layers.0",
        "scale_shift": state["input_blocks.1.0.emb_layers.1.bias"].shape[0]
        == 2 * state["input_blocks.1.0.out_layers.3.weight"].shape[0],
        "classes": state["label_emb.weight"].shape[0] if "label_emb.weight" in state else None,
    }
