"""The paper's convolutional networks: ADM's U-Net, as diffusers' own class."""

from __future__ import annotations

from diffusers import (
    UNet2DModel,
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
