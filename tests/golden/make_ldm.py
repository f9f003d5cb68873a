"""How ldm.npz was made: CompVis' own modules with random weights, in the layout of their checkpoints.

    python make_ldm.py LATENT_DIFFUSION TAMING_TRANSFORMERS

takes checkouts of the two repositories of github.com/CompVis; needs einops.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path[:0] = sys.argv[1:3]
from ldm.modules.diffusionmodules.model import Decoder, Encoder  # noqa: E402
from ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from ldm.modules.diffusionmodules.util import make_beta_schedule  # noqa: E402
from ldm.modules.ema import LitEma  # noqa: E402
from taming.modules.vqvae.quantize import VectorQuantizer2  # noqa: E402

torch.manual_seed(0)

model = nn.Module()
model.diffusion_model = UNetModel(
    image_size=8, in_channels=3, out_channels=3, model_channels=32, attention_resolutions=[2],
    num_res_blocks=1, channel_mult=(1, 2), num_head_channels=16,
)  # fmt: skip
sizes = {
    "double_z": False, "z_channels": 3, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
first = nn.Module()
first.encoder, first.decoder = Encoder(**sizes), Decoder(**sizes)
first.quantize = VectorQuantizer2(32, 3, beta=0.25)
first.quant_conv, first.post_quant_conv = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
for p in [*model.parameters(), *first.parameters()]:
    if p.ndim > 1:
        nn.init.normal_(p, std=p[0].numel() ** -0.5)
    else:
        nn.init.normal_(p, mean=float(p.mean() > 0.5), std=0.1)
    p.data = p.data.half().float()

x, t, image = torch.randn(2, 3, 8, 8), torch.tensor([3, 77]), torch.randn(2, 3, 16, 16)
with torch.no_grad():
    output = model.eval().diffusion_model(x, t)
    latents = first.quant_conv(first.eval().encoder(image))
    decoded = first.decoder(first.post_quant_conv(first.quantize(latents)[0]))
# The averaged weights are those of the outputs; a test adds raw ones that are not.
state = {f"model_ema.{key}": value.half() for key, value in LitEma(model).named_buffers() if value.ndim}
state |= {f"first_stage_model.{key}": value.half() for key, value in first.state_dict().items()}
state["betas"] = torch.tensor(
    make_beta_schedule("linear", 100, linear_start=0.0015, linear_end=0.0195)
).float()
vectors = {"input": x, "t": t, "output": output, "image": image, "latents": latents, "decoded": decoded}
arrays = {f"state.{key}": value.numpy() for key, value in state.items()}
arrays["names"] = np.array([name for name, _ in model.named_parameters()])
arrays |= {key: value.numpy() for key, value in vectors.items()}
np.savez_compressed(Path(__file__).parent / "ldm.npz", **arrays)
