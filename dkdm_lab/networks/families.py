"""How each of diffusers' networks is asked, as data: what it is told of the time, what it takes beside it,
how its latents are packed, what of its answer counts.

A condition of several parts, as embeddings with their mask, travels through sources and pools as one row of
numbers, :func:`pack`; the denoiser takes it apart again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SchedulerMixin,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor, nn

from dkdm_lab.networks.dit import DiT
from dkdm_lab.networks.mlp import MLP


@dataclass(frozen=True)
class Family:
    """One kind of network. text: the parts of a text condition, by the names of the network's arguments;
    none for networks that take labels, or nothing. added: those of them that go into ``added_cond_kwargs``.
    time: what a time is multiplied with, a number, an entry of the configuration, or one by the levels;
    rising: whether it is told 1 - t. negative: whether it answers the negative. packed: whether 2 x 2 latents
    are one token's.
    cuts: whether a second half of its output, a variance that nobody samples with, is left away.
    """

    text: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    time: float | str = 1.0
    rising: bool = False
    negative: bool = False
    packed: bool = False
    cuts: bool = False


_EMBEDDED, _MASK, _POOLED = "encoder_hidden_states", "encoder_attention_mask", "pooled_projections"
FAMILIES: dict[type, Family] = {
    UNet2DModel: Family(),
    DiT: Family(),
    MLP: Family(),
    DiTTransformer2DModel: Family(),
    UNet2DConditionModel: Family((_EMBEDDED,)),
    PixArtTransformer2DModel: Family((_EMBEDDED, _MASK), cuts=True),
    SD3Transformer2DModel: Family((_EMBEDDED, _POOLED)),
    FluxTransformer2DModel: Family((_EMBEDDED, _POOLED), time=1 / 1000, packed=True),
    SanaTransformer2DModel: Family((_EMBEDDED, _MASK), time="timestep_scale", cuts=True),
    AuraFlowTransformer2DModel: Family((_EMBEDDED,), time=1 / 1000),
    Lumina2Transformer2DModel: Family((_EMBEDDED, _MASK), time="levels", rising=True, negative=True),
}
_SDXL = Family((_EMBEDDED, "text_embeds", "time_ids"), added=("text_embeds", "time_ids"))

NETWORK_CLASSES = {kind.__name__: kind for kind in FAMILIES} | {
    "Transformer2DModel": DiTTransformer2DModel,  # its name in pipelines before diffusers 0.29
}


def refuse(config: Mapping, name: str) -> None:
    """ValueError for the configuration of a network that wants what no source has."""
    for key, known in _TAKEN.items():
        if config.get(key) not in known:
            why = _WHY.get(key, "for which no source here has what it takes")
            raise ValueError(
                f"{name}: found {key} {config[key]!r}, {why}; "
                f"expected {' or '.join(repr(value) for value in known)}"
            )


def family_of(network: nn.Module) -> Family:
    """How a network is asked; ValueError for one that wants what no source has."""
    refuse(network.config, type(network).__name__)
    text_time = network.config.get("addition_embed_type") == "text_time"
    if isinstance(network, UNet2DConditionModel) and text_time:
        return _SDXL
    for kind, family in FAMILIES.items():
        if isinstance(network, kind):
            return family
    return Family()


_TAKEN = {
    "class_embed_type": (None,),
    "addition_embed_type": (None, "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "time_cond_proj_dim": (None,),
}
_WHY = {
    "time_cond_proj_dim": "a teacher of few steps that embeds its guidance",
    "addition_embed_type": "a condition on images or on other than prompts",
    "encoder_hid_dim_type": "a condition on images",
}


@dataclass(frozen=True, eq=False)
class Terms:
    """What a network's configuration does not say of how it is asked.

    times: ``[T]``, what it is told of each level; None: the level's index. layout: the shape of each part of
    a condition, as it is packed; None for labels and for embeddings alone. size: of a sample's side where the
    configuration has none. guidance: of a network that embeds it. scheduler: diffusers' own, of a flow and of
    EDM. negative: whether it answers the negative. scale: what samples are multiplied with to be images or
    latents, for EDM's are divided by the size of its data.
    """

    times: Tensor | None = None
    layout: Mapping[str, tuple[int, ...]] | None = None
    size: int | None = None
    guidance: float = 3.5
    scheduler: SchedulerMixin | None = field(default=None, repr=False)
    negative: bool = False
    scale: float = 1.0


def pack(parts: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, tuple[int, ...]]]:
    """The parts of ``K`` conditions, each ``[K, ...]``, as one table ``[K, numbers]``, and its layout."""
    layout = {name: tuple(value.shape[1:]) for name, value in parts.items()}
    return torch.cat([value.float().flatten(1) for value in parts.values()], dim=1), layout


def unpack(condition: Tensor, layout: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The parts of packed conditions ``[B, numbers]``; masks are integers."""
    sizes = [math.prod(shape) for shape in layout.values()]
    if condition.ndim != 2 or condition.shape[1] != sum(sizes):
        raise ValueError(
            f"condition: found shape {tuple(condition.shape)}, expected [B, {sum(sizes)}], packed"
        )
    parts = {
        name: part.unflatten(1, shape) if shape else part[:, 0]
        for (name, shape), part in zip(layout.items(), condition.split(sizes, dim=1), strict=True)
    }
    return {name: part.long() if name.endswith("mask") else part for name, part in parts.items()}


def ask(network: nn.Module, family: Family, terms: Terms, x: Tensor, time: Tensor, given: dict) -> Tensor:
    """A network's whole output for ``x`` ``[B, C, ...]`` at ``time`` ``[B]``, unpacked again.

    given: its conditions by the names of its arguments."""
    added = {name: given.pop(name) for name in family.added if name in given}
    if isinstance(network, PixArtTransformer2DModel):
        added = _resolution(network, x)
    if added:
        given["added_cond_kwargs"] = added
    factor = family.time
    if factor == "levels":
        factor = 1.0 if terms.times is None else 1 / len(terms.times)
    elif isinstance(factor, str):
        factor = network.config.get(factor, 1.0)
    if factor != 1.0:
        time = time * factor
    if family.rising:
        time = 1 - time
    if family.packed:
        height, width = x.shape[2:]
        x = nn.functional.pixel_unshuffle(x, 2).flatten(2).mT  # channels first, then the 2 x 2 of each
        rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)
        given["img_ids"] = places.to(x.device, x.dtype)
        given["txt_ids"] = torch.zeros(given[_EMBEDDED].shape[1], 3, device=x.device, dtype=x.dtype)
        if network.config.get("guidance_embeds"):
            given["guidance"] = torch.full((len(x),), terms.guidance, device=x.device)
    out = network(x, timestep=time, **given).sample
    if family.packed:
        out = nn.functional.pixel_shuffle(out.mT.unflatten(2, (height // 2, width // 2)), 2)
    return -out if family.negative != terms.negative else out


def _resolution(network: nn.Module, x: Tensor) -> dict:
    """What PixArt is told of an image's size, where it is told of it."""
    if not getattr(network, "use_additional_conditions", False):
        return {"resolution": None, "aspect_ratio": None}
    height, width = (8.0 * side for side in x.shape[2:])
    options = {"device": x.device, "dtype": x.dtype}
    return {
        "resolution": torch.tensor([[height, width]], **options).expand(len(x), 2),
        "aspect_ratio": torch.tensor([[height / width]], **options).expand(len(x), 1),
    }
