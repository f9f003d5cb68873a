"""Checkpoints of other programs, read key by key into diffusers' networks: ADM's and its descendants'."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor

from dkdm_lab.networks import Denoiser, adm_unet


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
