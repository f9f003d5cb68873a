"""Small autoencoders whose latents a latent model denoises: VQGAN's without its discriminator, for the book.

The paper's are those of LDM, read with their pipelines; see :mod:`dkdm_lab.teachers.pipelines`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import VQModel
from torch import Tensor, nn

from dkdm_lab.beyond.descent import descend
from dkdm_lab.data.images import content_hash, to_model
from dkdm_lab.system import budget

AUTOENCODERS = {
    # 8x8 grey to 4x4 with 3 channels: f = 2, where the paper's have f = 4
    "digits-vq": lambda: VQModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        num_vq_embeddings=256,
        mid_block_add_attention=False,
    ),
}


def train_autoencoder(
    name: str,
    images: Tensor,
    iterations: int = 600,
    batch_size: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    progress: bool = True,
) -> VQModel:
    """Train one of :data:`AUTOENCODERS` on uint8 images ``[N, C, H, W]``: squared error, VQ's commitment.

    Its ``scaling_factor`` is set to give the latents of these images unit variance, as the noise of the
    diffusion expects. Returns it in eval mode, on the CPU. checkpoint: where the training saves itself, see
    :func:`~dkdm_lab.beyond.descent.descend`.
    """
    if name not in AUTOENCODERS:
        raise ValueError(f"autoencoder: found {name!r}, expected one of {', '.join(AUTOENCODERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AUTOENCODERS[name]()
        # Codes begin as latents do; in the tiny cube of diffusers' default most would never be used.
        with torch.no_grad():
            latents = vae.encode(to_model(images[: 8 * batch_size])).latents
            latents = latents.permute(0, 2, 3, 1).flatten(0, 2)
            codes = vae.quantize.embedding.weight
            codes.copy_(latents[torch.randint(len(latents), (len(codes),))])
        optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)

        def loss(_: int) -> Tensor:
            x = to_model(images[torch.randint(len(images), (batch_size,))])
            decoded = vae(x)
            return nn.functional.mse_loss(decoded.sample, x) + decoded.commit_loss

        descend(
            vae,
            loss,
            iterations,
            optimizer,
            settings={"images": content_hash(images), "batch_size": batch_size, "lr": lr, "seed": seed},
            schedule=schedule,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            progress=progress,
            description=f"training {name}",
        )
    with torch.no_grad():
        latents = torch.cat([vae.encode(to_model(part)).latents for part in budget.each(images.split(512))])
    vae.register_to_config(scaling_factor=1 / float(latents.std()))
    return vae
